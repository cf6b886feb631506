"""`stepdial curve`: quality against network evaluations, students and the teacher's samplers in one picture."""

from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from diffusion.family import Family
from diffusion.frontier import Frontier, Measure
from diffusion.plans import Rule
from training.datasets import DataError
from training.samplers import Grid, SamplersRecord

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
BESIDE = {"student": "#1c1917", "whole": "#78716c"}
"""Colours of students beside the teacher's samplers."""
GREYS = {"ddim": "o", "addim": "s", "ancestral": "^", "noise_ddim": "v", "heun": "x"}
RULES: dict[Rule, tuple[str, str]] = {
    "ddim": ("DDIM", "#57534e"),
    "addim": ("aDDIM", "#c2410c"),
    "noise_ddim": ("noise-DDIM", "#1d4ed8"),
    "ancestral": ("ancestral", "#15803d"),
    "heun": ("Heun", "#a21caf"),
}
"""Sampling rules, how a legend names them, and their colours."""
TITLES: dict[Grid, str] = {"cosine": "equal steps of t (cosine)", "karras": "times of Karras et al. 2022"}
DISTANCE = "Fréchet distance to real images, in the judge's units (proxy)"
"""What the judge's distance is called."""


class Point(NamedTuple):
    """One measured point of a curve."""

    evaluations: int
    """Times the network runs for one image: an evaluation of the teacher runs it twice where guidance acts."""
    frechet: Measure
    agreement: Measure | None


def frontier_curves(frontier: Frontier) -> dict[str, list[Point]]:
    """Return the curves of what is served by source, points by rising evaluations."""
    curves: defaultdict[str, list[Point]] = defaultdict(list)
    for position in frontier.positions:
        runs = position.plan.runs(position.guidance if position.source == "teacher" else 0.0)
        curves[position.source].append(Point(runs, position.frechet, position.agreement))
    return {source: sorted(curves[source], key=lambda point: point.evaluations) for source in NAMES if source in curves}


def sampler_curves(record: SamplersRecord) -> dict[tuple[Grid, Rule, float], list[Point]]:
    """Return the teacher's curves by grid, rule and guidance, points by rising evaluations."""
    curves = defaultdict(list)
    for row in record.rows:
        curves[row.grid, row.rule, row.guidance].append(Point(row.runs, row.frechet, row.agreement))
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
    figure = new_figure(11, 4.6)
    left, right = figure.subplots(1, 2)
    for key, points in sampler_curves(samplers).items() if samplers else ():
        grid, rule, guidance = key
        if grid != "cosine":  # the others have a picture of their own
            continue
        style = {"color": "#57534e" if guidance else "#a8a29e", "linestyle": "-" if guidance else "--", "linewidth": 1}
        name = f"teacher, {rule}" + (
            f", guided (w = {guidance:g}, a step may run it twice)" if guidance else ", unguided"
        )
        _line(left, right, points, name, marker=GREYS[rule], markersize=4, **style)
    for source, points in frontier_curves(frontier).items():
        colour, marker = LOOKS[source]
        _line(left, right, points, NAMES[source], color=colour, marker=marker, markersize=6, linewidth=2)
    _finish(left, right, frontier)
    figure.legend(*left.get_legend_handles_labels(), loc="outside right upper", fontsize=7, frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)


def student_curves(family: Family, record: SamplersRecord) -> dict[str, list[Point]]:
    """Return the curves of a family's own students, as far as they were measured as the teacher's samplers were.

    That is to the same real images, by the same judge, with as many drawn images: else distances do not compare.
    """
    frontier = family.frontier
    if frontier is None or (frontier.judge, frontier.reference) != (record.judge, record.reference):
        return {}
    alike = [row for row in frontier.positions if (row.samples, row.seeds) == (record.samples, record.seeds)]
    students = tuple(row for row in alike if row.source in ("student", "whole"))
    return frontier_curves(frontier.model_copy(update={"positions": students}))


def draw_samplers(record: SamplersRecord, students: dict[str, list[Point]], out: Path) -> None:
    """Draw the teacher's distance against evaluations, a panel for each grid and guidance, into a PNG, the students' in all.

    Raises DataError if matplotlib is not installed.
    """
    curves = sampler_curves(record)
    grids = list(dict.fromkeys(grid for grid, _, _ in curves))
    guidances = list(dict.fromkeys(guidance for _, _, guidance in curves))
    figure = new_figure(5.2 * len(grids), 4.4 * len(guidances))
    panels = figure.subplots(len(guidances), len(grids), sharex=True, sharey=True, squeeze=False)
    for (grid, rule, guidance), points in curves.items():
        name, colour = RULES[rule]
        axes = panels[guidances.index(guidance)][grids.index(grid)]
        _distances(axes, points, name, color=colour, marker=GREYS[rule], markersize=5, linewidth=1.4)
    for row, guidance in zip(panels, guidances, strict=True):
        for axes, grid in zip(row, grids, strict=True):
            for source, points in students.items():
                colour, marker = BESIDE[source], LOOKS[source][1]
                _distances(axes, points, NAMES[source], color=colour, marker=marker, markersize=6, linewidth=2.6)
            guided = f"guided, w = {guidance:g} (an evaluation may run the network twice)" if guidance else "unguided"
            axes.set_title(f"{TITLES[grid]}; {guided}", fontsize=9)
            _floor(axes, [record.floor])
            _scale(axes)
        row[0].set_ylabel(DISTANCE, fontsize=8)
    panels[0][-1].legend(fontsize=8, frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=130)


def new_figure(width: float, height: float) -> Any:
    """Return an empty figure, in inches.  Raises DataError if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise DataError("matplotlib is not installed; pip install -e '.[training]'") from None
    return Figure(figsize=(width, height), layout="constrained")


def _scale(axes: Any) -> None:
    """Draw both axes by powers, evaluations below."""
    axes.set_yscale("log")
    for axis_format in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        axis_format("{x:g}")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set_xlabel("times the network runs for one image")
    axes.tick_params(which="both", labelsize=7)
    axes.grid(alpha=0.3)


def _floor(axes: Any, floors: list[Measure]) -> None:
    """Draw the band of the distances of as many real images, with their spreads."""
    low, high = min(floor.mean - floor.spread for floor in floors), max(floor.mean + floor.spread for floor in floors)
    axes.axhspan(max(low, 1e-3), high, color="#fde68a", alpha=0.6, label="as many real images")


def _distances(axes: Any, points: list[Point], name: str, **style: Any) -> None:
    """Draw the distances of a curve, with their spreads."""
    spreads = [point.frechet.spread for point in points]
    means = [point.frechet.mean for point in points]
    axes.errorbar([point.evaluations for point in points], means, yerr=spreads, label=name, capsize=2, **style)


def _line(left: Any, right: Any, points: list[Point], name: str, **style: Any) -> None:
    _distances(left, points, name, **style)
    asked = [(point.evaluations, point.agreement) for point in points if point.agreement]
    if asked:
        below = [100 * a.spread for _, a in asked]
        above = [100 * min(a.spread, 1 - a.mean) for _, a in asked]
        means = [100 * a.mean for _, a in asked]
        right.errorbar([at for at, _ in asked], means, yerr=[below, above], capsize=2, **style)


def _finish(left: Any, right: Any, frontier: Frontier) -> None:
    """Put the floor, scales and names of the axes on."""
    _floor(left, [position.floor for position in frontier.positions])
    left.set_yscale("log")
    for axis_format in (left.yaxis.set_major_formatter, left.yaxis.set_minor_formatter):
        axis_format("{x:g}")
    lowest = min(95, right.get_ylim()[0])  # some images of a thousand are no trend
    right.set_ylim(lowest, 100 + (100 - lowest) / 30)
    left.set_ylabel(DISTANCE, fontsize=8)
    right.set_ylabel("images in which everything asked for is seen, %", fontsize=8)
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.set_xlabel("times the network runs for one image")
        axes.grid(alpha=0.3)
