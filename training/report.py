"""`stepdial report`: the frontier as a table in a Markdown file, so that no number is ever typed."""

import re
from collections import defaultdict
from pathlib import Path

from diffusion.family import Family
from diffusion.frontier import Frontier, Measure, Position
from training.datasets import DataError


def dial_table(family: Family) -> str:
    """Return a family's frontier as a Markdown table, and how it was measured.  Raises DataError if it was not."""
    frontier = family.frontier
    if frontier is None:
        raise DataError(f"family {family.name!r} has not been measured; run stepdial evaluate first")
    head = "| steps | drawn by | Fréchet distance | of real images | obeyed | held-out prompts | one image | images/s |"
    rows = [head, "|---:|---|---:|---:|---:|---:|---:|---:|"]
    rows += [_row(position, _drawn_by(family, position)) for position in frontier.positions]
    missing = sorted(set(family.positions) - {position.steps for position in frontier.positions})
    notes = [f"Offered, but not measured yet: {', '.join(map(str, missing))} steps."] if missing else []
    return "\n".join(rows) + "\n\n" + " ".join([_ruler(frontier), *_how(frontier), *notes]) + "\n"


def _drawn_by(family: Family, position: Position) -> str:
    """Name the source, and say which is the default where a position was measured in several ways."""
    default = family.positions[position.steps] == position.plan and len(family.choices(position.steps)) > 1
    return f"{position.source} (default)" if default else position.source


def _row(position: Position, drawn_by: str) -> str:
    runs = len(position.seeds)
    cells = (
        str(position.steps),
        drawn_by,
        _number(position.frechet, runs),
        _number(position.floor, runs),
        _number(position.agreement, runs, percent=True),
        _number(position.agreement_held_out, runs, percent=True),
        f"{position.latency_ms.mean:,.0f} ms",
        f"{position.images_per_second:,.0f}",
    )
    return "| " + " | ".join(cells) + " |"


def _number(value: Measure | None, runs: int, *, percent: bool = False) -> str:
    if value is None:
        return ""
    scale, digits, unit = (100, 1, " %") if percent else (1, 2, "")
    spread = f" ± {scale * value.spread:.{digits}f}" if runs > 1 else ""
    return f"{scale * value.mean:.{digits}f}{spread}{unit}"


def _ruler(frontier: Frontier) -> str:
    return (
        f"Distance to {frontier.reference}, and of as many real images to others; judge: {frontier.judge}. "
        "± is the standard deviation over runs; frontier.json has commits and versions."
    )


def _how(frontier: Frontier) -> list[str]:
    """Say how the positions were measured: a sentence for each command, quality first, then speed."""
    quality, speed = defaultdict(list), defaultdict(list)
    for position in frontier.positions:
        how, timed = position.measured, position.timed
        about = f"{position.samples} images in {len(position.seeds)} run(s), networks in {how.precision}"
        quality[f"{about}: `{how.command}`"].append(position.steps)
        about = f"{timed.precision}, images/s {position.batch} at a time, on {timed.device}"
        speed[f"{about}: `{timed.command}`"].append(position.steps)
    return [f"Steps {_list(steps)}: {what}." for what, steps in quality.items()] + [
        f"Speed of steps {_list(steps)}: {what}." for what, steps in speed.items()
    ]


def _list(steps: list[int]) -> str:
    return ", ".join(map(str, dict.fromkeys(steps)))


def write_report(family: Family, file: Path) -> None:
    """Replace what stands between the file's markers `<!-- dial NAME -->` and `<!-- end -->` by the table.

    Raises DataError if the markers are missing or the family has not been measured.
    """
    text = file.read_text()
    pattern = re.compile(rf"(<!-- dial {re.escape(family.name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not pattern.search(text):
        raise DataError(f"{file.name} has no markers <!-- dial {family.name} --> and <!-- end -->")
    table = dial_table(family)
    file.write_text(pattern.sub(lambda found: found[1] + table + found[2], text))
