"""A picture of the curves: points with their quartiles, and the power laws through them, on logarithmic axes."""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.growth.curves import Values, power
from benchmarks.growth.result import Measured

PANELS = (
    ("steps", "steps", "a lone image", ("answer, ms", "device, ms")),
    ("sides", "pixels a side", "one evaluation of one image", ("one evaluation, ms",)),
    ("clients", "clients", "requests of 4 steps", ("p50, ms", "p95, ms", "images/s")),
    ("exact", "clients", "exact mode: 1 is free", ("p50, exact ÷ fast", "images/s, exact ÷ fast")),
    ("families", "families", "one server, relative to one family", ()),
    (
        "waiting",
        "jobs waiting (leftmost: none)",
        "one more order, milliseconds",
        ("order: event loop, ms", "order: Redis, ms"),
    ),
)
"""Curve, what is on the horizontal axis, title, and the quantities; none are all of them, relative to the first point."""


def draw(measured: Measured, file: Path) -> None:
    """Draw the curves into a picture file. Raises ImportError without matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.5, 7.4), layout="constrained")
    for axes, (name, x, title, quantities) in zip(figure.subplots(2, 3).flat, PANELS, strict=True):
        if name == "waiting":
            _stores(axes, measured, quantities)
        elif name == "families":
            _relative(axes, measured.curve(name))
        elif values := measured.curve(name):
            _points(axes, {quantity: values[quantity] for quantity in quantities}, fitted=name != "exact")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(x)
        _finish(axes, linear=name == "exact")
    figure.savefig(file, dpi=110)


def _points(axes: Any, values: Values, *, fitted: bool) -> None:
    for number, (quantity, found) in enumerate(values.items()):
        xs, colour = [*found], f"C{number}"
        middle = np.array([spread.median for spread in found.values()])
        spread = np.array([[one.median - one.low, one.high - one.median] for one in found.values()]).T
        label = f"{quantity}: x^{power(found).exponent:.2f}" if fitted else quantity
        axes.errorbar(xs, middle, spread, fmt="o" if fitted else "o-", color=colour, capsize=3, label=label)
        if fitted:
            ends = np.geomspace(min(x for x in xs if x), max(xs), 50)
            axes.plot(ends, [power(found)(x) for x in ends], color=colour, linewidth=1, alpha=0.6)


def _relative(axes: Any, values: Values) -> None:
    """Every quantity as a multiple of its first point."""
    for quantity, found in values.items():
        first = next(iter(found.values())).median
        axes.plot([*found], [spread.median / first for spread in found.values()], "o-", label=quantity.split(",")[0])


def _stores(axes: Any, measured: Measured, quantities: tuple[str, ...]) -> None:
    """Both stores; no jobs at all, which has no logarithm, stands a tenth to the left of the first point that has one."""
    for store, style in (("memory", "o-"), ("redis", "s--")):
        values = measured.curve(f"waiting-{store}")
        for quantity in (quantity for quantity in quantities if quantity in values):
            found = values[quantity]
            least = min(x for x in found if x)
            label = f"{quantity.removesuffix(', ms').removeprefix('order: ')}, jobs in {store}"
            axes.plot([x or least / 10 for x in found], [one.median for one in found.values()], style, label=label)


def _finish(axes: Any, *, linear: bool) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_xscale("log", base=2 if axes.get_xlim()[1] < 1000 else 10)
    axes.xaxis.set_major_formatter("{x:,g}")
    if linear:
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_ylim(0, None)
    else:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:,g}")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
