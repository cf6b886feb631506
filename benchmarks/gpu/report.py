"""The table of README.md: every piece, what of it was measured, where, and what was not."""

from pathlib import Path

from benchmarks.gpu.piece import Ask, Piece, Result
from benchmarks.gpu.pieces import PIECES
from benchmarks.tables import fill


def table(ask: Ask) -> str:
    """Return the pieces as a Markdown table."""
    lines = ["| piece | question | measured | not measured |", "|---|---|---|---|"]
    return "\n".join([*lines, *(_row(piece, ask) for piece in PIECES)]) + "\n"


def write_table(file: Path, ask: Ask) -> None:
    """Write the table between the marks of a Markdown file. Raises ValueError where there are none."""
    fill(file, {"pieces": lambda: table(ask)})


def _row(piece: Piece, ask: Ask) -> str:
    """One piece: of trials with tiny sizes nothing counts."""
    result, steps = Result.read(piece, ask.results), [step.name for step in piece.steps(ask)]
    done = [step for step in result.done if not step.tiny and step.step in steps]
    places: dict[str, list[str]] = {}
    for step in done:
        places.setdefault(f"{step.device}, {step.commit}", []).append(step.step)
    measured = [f"{_all(names, steps)}: {place}" for place, names in places.items()]
    missing = [name for name in steps if name not in {step.step for step in done}]
    reasons = [f"{name} failed: {result.failed[name]}" for name in missing if name in result.failed]
    link = f"[{piece.name}]({piece.name}.json)" if done else f"`{piece.name}`"
    cells = (link, piece.question, "; ".join(measured) or "-", "; ".join([_all(missing, steps) or "-", *reasons]))
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _all(names: list[str], steps: list[str]) -> str:
    return "everything" if len(names) == len(steps) else "; ".join(names)
