"""`stepdial curve`: quality against network evaluations, students and the teacher's samplers in one picture."""

from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from diffusion.family import Family
from diffusion.frontier import Frontier, Measure
from training.datasets import DataError
from training.samplers import SamplersRecord

NAMES = {
    "student": "separate students",
    "whole": "one student for the whole dial",
    "searched": "searched plans",
    "teacher": "teacher, as it is served",
}
"""Sources of the frontier's curves and how the legend names them."""
LOOKS = {
    "student": ("#c2410c", "o"),
    "whole": ("#1d4ed8", "s"),
    "searched": ("#15803d", "D"),
    "teacher": ("#1c1917", "*"),
}
GREYS = {"ddim": "o", "addim": "s", "ancestral": "^", "noise_ddim": "v", "heun": "x"}


class Point(NamedTuple):
    """One measured point of a curve."""

    evaluations: int
    """Times the network runs for one image: a guided evaluation of the teacher runs it twice."""
    frechet: Measure
    agreement: Measure | None


def frontier_curves(frontier: Frontier) -> dict[str, list[Point]]:
    """Return the curves of what is served by source, points by rising evaluations."""
    curves: defaultdict[str, list[Point]] = defaultdict(list)
    for position in frontier.positions:
        runs = position.steps * (2 if position.source == "teacher" and position.guidance else 1)
        curves[position.source].append(Point(runs, position.frechet, position.agreement))
    return {source: sorted(curves[source], key=lambda point: point.evaluations) for source in NAMES if source in curves}


def sampler_curves(record: SamplersRecord) -> dict[tuple[str, float], list[Point]]:
    """Return the teacher's curves by rule and guidance, points by rising evaluations."""
    curves = defaultdict(list)
    for row in record.rows:
        runs = row.evaluations * (2 if row.guidance else 1)
        curves[row.rule, row.guidance].append(Point(runs, row.frechet, row.agreement))
    return {key: sorted(points, key=lambda point: point.evaluations) for key, points in curves.items()}


def draw_curve(family: Family, samplers: SamplersRecord | None, out: Path) -> None:
    """Draw a family's curves into a PNG.

    Raises DataError if it has not been measured, the samplers' distances do not compare, or matplotlib is not installed.
    """
    frontier = family.frontier
    if frontier is None:
        raise DataError(f"family {family.name!r} has not been measured; run stepdial evaluate first")
    if samplers and (samplers.family, samplers.judge, samplers.reference) != (
        family.name,
        frontier.judge,
        frontier.reference,
    ):
        raise DataError(
            f"the samplers' distances do not compare with those of {family.name!r}: another judge or reference"
        )
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise DataError("matplotlib is not installed; pip install -e '.[training]'") from None
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for key, points in sampler_curves(samplers).items() if samplers else ():
        rule, guidance = key
        style = {"color": "#57534e" if guidance else "#a8a29e", "linestyle": "-" if guidance else "--", "linewidth": 1}
        name = f"teacher, {rule}" + (
            f", guided (w = {guidance:g}, each step runs it twice)" if guidance else ", unguided"
        )
        _line(left, right, points, name, marker=GREYS[rule], markersize=4, **style)
    for source, points in frontier_curves(frontier).items():
        colour, marker = LOOKS[source]
        _line(left, right, points, NAMES[source], color=colour, marker=marker, markersize=6, linewidth=2)
    _finish(left, right, frontier)
    figure.legend(*left.get_legend_handles_labels(), loc="outside right upper", fontsize=7, frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)


def _line(left: Any, right: Any, points: list[Point], name: str, **style: Any) -> None:
    x = [point.evaluations for point in points]
    left.errorbar(
        x, [p.frechet.mean for p in points], yerr=[p.frechet.spread for p in points], label=name, capsize=2, **style
    )
    asked = [(point.evaluations, point.agreement) for point in points if point.agreement]
    if asked:
        right.errorbar(
            [at for at, _ in asked], [100 * a.mean for _, a in asked], yerr=[100 * a.spread for _, a in asked],
            capsize=2, **style,
        )  # fmt: skip


def _finish(left: Any, right: Any, frontier: Frontier) -> None:
    """Put the floor, scales and names of the axes on."""
    floors = [position.floor.mean for position in frontier.positions]
    left.axhspan(min(floors), max(floors), color="#fde68a", alpha=0.6, label="as many real images")
    left.set_yscale("log")
    for axis_format in (left.yaxis.set_major_formatter, left.yaxis.set_minor_formatter):
        axis_format("{x:g}")
    right.set_ylim(top=min(100.5, right.get_ylim()[1]))
    left.set_ylabel("Fréchet distance to real images, in the judge's units")
    right.set_ylabel("images in which everything asked for is seen, %")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.set_xlabel("times the network runs for one image")
        axes.grid(alpha=0.3)
