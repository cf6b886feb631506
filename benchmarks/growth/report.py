"""Tables of the curves and their fits, as Markdown between marks."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.growth.curves import CURVES, Curve, line, power
from benchmarks.growth.result import Measured
from benchmarks.record import Record, Spread
from benchmarks.tables import fill, table

PICTURE = "growth.png"
"""Beside the page."""


def curve_table(curve: Curve, measured: Measured) -> str:
    """Return a curve's points, its exponents, its lines, and what they mean."""
    values = measured.curve(curve.name)
    if not values:
        return "Not measured.\n"
    xs = [*next(iter(values.values()))]
    fits = [] if curve.ratios else ["exponent b", "c + d·x"]
    rows = []
    for quantity, found in values.items():
        cells = [quantity, *(_cell(found[x]) for x in xs)]
        rows.append(cells if curve.ratios else [*cells, *_fits(quantity in curve.lines, found)])
    return table([curve.x, *(f"{x:,g}" for x in xs), *fits], rows) + f"\n{curve.meaning(values)}\n"


def method(record: Record) -> str:
    """Return the picture, and how the numbers came about."""
    settings = record.settings
    load = f"{settings['requests']} requests" if settings["requests"] else f"{settings['seconds']:g} s"
    rounds, evaluations = settings["rounds"], settings["rounds"] * settings["evaluations"]
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    command = record.command.partition(" --note")[0]
    note = f" {record.note}" if record.note else ""
    return (
        f"![points, quartiles and fitted power laws of each curve]({PICTURE})\n\n"
        f"Medians over {rounds} rounds, in brackets the quartiles; each load {load}. Image size: {evaluations} "
        f"evaluations; jobs: one pass, {settings['probes']} probes at each point. Family {settings['family']}, "
        f"{record.device}, client included. `{command}`, {record.measured_at[:10]}, commit {record.commit}; {versions}.{note}\n"
    )


def tables(record: Record, measured: Measured) -> dict[str, Callable[[], str]]:
    """Return what may stand between `<!-- growth NAME -->` and `<!-- end -->`, by mark."""
    made = {f"growth {curve.name}": partial(curve_table, curve, measured) for curve in CURVES}
    return {**made, "growth method": partial(method, record)}


def write_tables(record: Record, measured: Measured, file: Path) -> None:
    """Replace what stands between the file's marks. Raises ValueError where there are no marks, OSError."""
    fill(file, tables(record, measured))


def _fits(with_line: bool, found: dict[float, Spread]) -> list[str]:
    fitted = power(found)
    exponent = f"{fitted.exponent:.2f} ± {fitted.error:.2f}"
    if not with_line:
        return [exponent, ""]
    straight = line(found)
    return [exponent, f"{_digits(straight.fixed)} + {_digits(straight.each)}·x"]


def _cell(spread: Spread) -> str:
    if spread.count == 1 or spread.low == spread.high:
        return _digits(spread.median)
    return f"{_digits(spread.median)} ({_digits(spread.low)}–{_digits(spread.high)})"


def _digits(value: float) -> str:
    """Three digits, without an exponent of ten for what is not tiny."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
