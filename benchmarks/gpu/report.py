"""The table of README.md: every piece, what of it was measured, where, and what was not."""

import re
from pathlib import Path

from benchmarks.gpu.piece import Ask, Piece, Result
from benchmarks.gpu.pieces import PIECES

MARKED = re.compile(r"(<!-- pieces -->\n).*?(<!-- end -->)", re.DOTALL)


def table(ask: Ask) -> str:
    """Return the pieces as a Markdown table."""
    lines = ["| piece | question | measured | not measured |", "|---|---|---|---|"]
    return "\n".join([*lines, *(_row(piece, ask) for piece in PIECES)]) + "\n"


def write_table(file: Path, ask: Ask) -> None:
    """Write the table between the marks of a Markdown file. Raises ValueError where there are none."""
    text = file.read_text()
    if not MARKED.search(text):
        raise ValueError(f"{file.name} has no marks <!-- pieces --> and <!-- end -->")
    file.write_text(MARKED.sub(lambda found: found[1] + table(ask) + found[2], text))


def _row(piece: Piece, ask: Ask) -> str:
    """One piece: of trials with tiny sizes nothing counts."""
    result = Result.read(piece, ask.results)
    done = {name: step for name, step in result.done.items() if not step.tiny}
    places = dict.fromkeys(f"{step.device}, {step.commit}" for step in done.values())
    measured = [
        f"{', '.join(name for name, step in done.items() if f'{step.device}, {step.commit}' == place)}: {place}"
        for place in places
    ]
    missing = [
        f"{step.name} (failed: {result.failed[step.name]})" if step.name in result.failed else step.name
        for step in piece.steps(ask)
        if step.name not in done
    ]
    link = f"[{piece.name}]({piece.name}.json)" if done else f"`{piece.name}`"
    return f"| {link} | {piece.question} | {'; '.join(measured) or 'nothing'} | {_cell(missing)} |"


def _cell(steps: list[str]) -> str:
    return "; ".join(steps).replace("|", "/") or "-"
