"""What the report shows of every curve, and what each means for who plans capacity."""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.growth.fit import Line, Power
from benchmarks.record import Spread

ACTS, PARTS = ("order", "look", "take back"), ("event loop", "Redis")
Values = dict[str, dict[float, Spread]]
"""A curve's values by quantity and x."""


@dataclass(frozen=True, slots=True)
class Curve:
    """How a curve is shown."""

    name: str
    x: str
    """What the cost grows with, as the head of the table."""
    meaning: Callable[[Values], str]
    """One sentence, from the numbers."""
    lines: tuple[str, ...] = ()
    """Quantities of which c + d·x is told as well."""
    ratios: bool = False
    """Whether the quantities are ratios, which have no exponent."""


def power(values: dict[float, Spread]) -> Power:
    """Return the power law through a quantity's medians."""
    return Power.of([*values], [spread.median for spread in values.values()])


def line(values: dict[float, Spread]) -> Line:
    """Return the line through a quantity's medians."""
    return Line.of([*values], [spread.median for spread in values.values()])


def _steps(values: Values) -> str:
    answer, device = line(values["answer, ms"]), line(values["device, ms"])
    return (
        f"Every step more makes a lone image {answer.each:.1f} ms later, {device.each:.1f} ms of them on the device; "
        f"{max(answer.fixed, 0.0):.1f} ms come on top whatever the number of steps."
    )


def _sides(values: Values) -> str:
    seconds, work = (power(values[name]) for name in ("one evaluation, ms", "arithmetic, Gflop (counted)"))
    return (
        f"Twice the height and width takes {2**seconds.exponent:.1f} times as long, for {2**work.exponent:.1f} times the "
        "arithmetic: pixels are four times as many, the products of attention sixteen times."
    )


def _clients(values: Values) -> str:
    rates = {x: spread.median for x, spread in values["images/s"].items()}
    most = max(rates.values())
    enough = min(x for x, rate in rates.items() if rate >= 0.9 * most)
    waits = line({x: spread for x, spread in values["p50, ms"].items() if x >= enough}) if enough < max(rates) else None
    later = f": each one more makes all others wait {waits.each:.0f} ms longer" if waits else ""
    return f"From {enough:g} clients on the device is busy, {most:.0f} images/s at most; further clients only queue{later}."


def _exact(values: Values) -> str:
    rates = [spread.median for spread in values["images/s, exact ÷ fast"].values()]
    lone = values["p50, exact ÷ fast"][min(values["p50, exact ÷ fast"])]
    return (
        f"The same bytes in any crowd make a lone image take {lone.median:.2f} times as long ({lone.low:.2f}–{lone.high:.2f}) "
        f"and leave {min(rates):.2f} to {max(rates):.2f} of fast mode's throughput."
    )


def _families(values: Values) -> str:
    start, memory = line(values["start, s"]), line(values["resident memory, MiB"])
    rate = next(found for name, found in values.items() if name.startswith("images/s"))
    few, many = min(rate), max(rate)
    return (
        f"One family more takes {memory.each:.0f} MiB and {start.each:.1f} s at start; a crowd spread over {many:g} families "
        f"gets {rate[many].median / rate[few].median:.0%} of what it gets of one, since a wave holds images of one network."
    )


def _waiting(values: Values) -> str:
    order = values["order: event loop, ms"]
    few, many = min(order), max(order)
    added = max(order[many].median - order[few].median, 0.0)
    return (
        f"With {many:,g} jobs waiting an order takes {order[many].median:.2f} ms of the event loop instead of "
        f"{order[few].median:.2f}: {1e6 * added / (many - few):.0f} ns for each job that waits."
    )


CURVES = (
    Curve("steps", "steps", _steps, lines=("answer, ms", "device, ms")),
    Curve("sides", "pixels a side", _sides),
    Curve("clients", "clients", _clients, lines=("p50, ms", "p95, ms")),
    Curve("exact", "clients", _exact, ratios=True),
    Curve("families", "families", _families, lines=("start, s", "resident memory, MiB")),
    Curve("waiting-memory", "jobs waiting", _waiting, lines=tuple(f"{act}: event loop, ms" for act in ACTS)),
    Curve(
        "waiting-redis", "jobs waiting", _waiting, lines=tuple(f"{act}: {part}, ms" for act in ACTS for part in PARTS)
    ),
)
"""In the order of the page."""
