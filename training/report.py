"""`stepdial report`: the frontier as a table in a Markdown file, so that no number is ever typed."""

import re
from pathlib import Path

from diffusion.frontier import Frontier, Measure, Position
from training.datasets import DataError


def dial_table(frontier: Frontier) -> str:
    """Return the frontier as a Markdown table and a sentence that says how it was measured."""
    head = "| steps | drawn by | Fréchet distance | real images | prompt obeyed | held-out prompts | one image | images/s |"
    rows = [head, "|---:|---|---:|---:|---:|---:|---:|---:|", *map(_row, frontier.positions)]
    return "\n".join(rows) + "\n\n" + _how(frontier) + "\n"


def _row(position: Position) -> str:
    cells = (
        str(position.steps),
        position.source,
        _number(position.frechet, 2),
        _number(position.floor, 2),
        _percent(position.agreement),
        _percent(position.agreement_held_out),
        f"{position.latency_ms.mean:,.0f} ms",
        f"{position.images_per_second:,.1f}",
    )
    return "| " + " | ".join(cells) + " |"


def _number(value: Measure, digits: int) -> str:
    return f"{value.mean:.{digits}f} ± {value.spread:.{digits}f}"


def _percent(value: Measure | None) -> str:
    return "" if value is None else f"{100 * value.mean:.1f} ± {100 * value.spread:.1f} %"


def _how(frontier: Frontier) -> str:
    sizes = sorted({(position.samples, len(position.seeds)) for position in frontier.positions}, reverse=True)
    counts = " and ".join(
        f"{samples} images in each of {runs} runs"
        if len(sizes) == 1
        else f"{samples} images in {runs} run(s) "
        f"at steps {', '.join(str(p.steps) for p in frontier.positions if (p.samples, len(p.seeds)) == (samples, runs))}"
        for samples, runs in sizes
    )
    first = frontier.positions[0]
    devices = sorted({position.measured.device for position in frontier.positions})
    precisions = sorted({position.measured.precision for position in frontier.positions})
    return (
        f"Distance to {frontier.reference}; judge: {frontier.judge}. {counts[0].upper()}{counts[1:]}, drawn in "
        f'{" or ".join(precisions)}; ± is the standard deviation over runs; "real images" is the distance of as many real '
        f"ones. Speed on {'; '.join(devices)}, fp32; images/s at {first.batch} at a time. "
        f"Made by `{first.measured.command}` at {first.measured.commit}."
    )


def write_report(frontier: Frontier, file: Path) -> None:
    """Replace what stands between the file's markers `<!-- dial NAME -->` and `<!-- end -->` by the table.

    Raises DataError if the markers are missing.
    """
    text = file.read_text()
    pattern = re.compile(rf"(<!-- dial {re.escape(frontier.family)} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not pattern.search(text):
        raise DataError(f"{file.name} has no markers <!-- dial {frontier.family} --> and <!-- end -->")
    file.write_text(pattern.sub(lambda found: found[1] + dial_table(frontier) + found[2], text))
