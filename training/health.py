"""`stepdial health`: how a run goes, in one picture: loss, gradients, and what the probe found, beside a run known to be well."""

import json
from pathlib import Path
from typing import Any

from training.command import Command
from training.curve import new_figure
from training.datasets import DataError
from training.probe import PLACES
from training.watch import FOUND, read_found

REFERENCE = {"color": "#a8a29e", "linestyle": "--", "linewidth": 1.2}
"""How the run that is compared with is drawn."""


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's log.jsonl by iteration, of those written twice the later one.  Raises DataError without one."""
    file = folder / "log.jsonl"
    if not file.exists():
        raise DataError(f"{folder.name} holds no log.jsonl; name the folder of a run, runs/FAMILY/MEMBER")
    lines = {line["iteration"]: line for line in map(json.loads, file.read_text().splitlines())}
    return [lines[iteration] for iteration in sorted(lines)]


def draw_health(run: Path, out: Path, *, reference: Path | None = None) -> None:
    """Draw a run's curves into a PNG, a second run's dashed.  Raises DataError where there is no run or no matplotlib."""
    if out.suffix != ".png":
        raise DataError(f"--out must name a .png file, got {out.name!r}")
    log, found = read_log(run), read_found(run)
    parts = list(found[max(found)]) if found else []
    rows = 1 + len(parts)
    figure = new_figure(13, 3.6 * rows)
    panels = figure.subplots(rows, 4, squeeze=False)
    if reference:
        _training(panels[0], read_log(reference), REFERENCE, " (reference)")
    _training(panels[0], log, {"color": "#c2410c", "linewidth": 1.4}, "")
    _annealing(panels[0][3], found)
    others = read_found(reference) if reference else {}
    for row, part in zip(panels[1:], parts, strict=True):
        known = {at: one[part] for at, one in others.items() if part in one}
        if part == "teacher":
            _teacher(row, {at: one[part] for at, one in found.items()}, known)
        else:
            _student(row, {at: one[part] for at, one in found.items()}, known, part)
    panels[0][0].legend(fontsize=7, frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


def _training(row: Any, log: list[dict[str, Any]], style: dict[str, Any], said: str) -> None:
    iterations = [line["iteration"] for line in log]
    _name(row[0], "training loss (noisy: other images and times each step)", "iteration")
    row[0].plot(
        iterations, [line["loss"] for line in log], label=f"this run{said}" if not said else "reference", **style
    )
    _log(row[0])
    known = [line for line in log if "gradient_norm" in line]
    _name(row[1], "gradient norm before clipping, mean of 50", "iteration")
    row[1].plot([line["iteration"] for line in known], [line["gradient_norm"] for line in known], **style)
    _log(row[1])
    _name(row[2], "seconds spent in training steps", "iteration")
    row[2].plot(iterations, [line["seconds"] for line in log], **style)


def _annealing(axes: Any, found: dict[int, Any]) -> None:
    """Draw how many teacher steps each student had, where there are students."""
    students = {part: found[max(found)][part] for part in found[max(found)] if part != "teacher"} if found else {}
    if not students:
        axes.set_axis_off()
        return
    tuned = "stage" in next(iter(students.values()))
    _name(axes, "stage of Easy Consistency Tuning" if tuned else "teacher steps (annealed)", "iteration")
    for at, part in enumerate(students):
        steps = [found[i][part]["stage" if tuned else "teacher_steps"] for i in sorted(found)]
        axes.plot(sorted(found), steps, color=_shade(at, len(students)), label=part)
    axes.legend(fontsize=6, frameon=False)


def _teacher(row: Any, found: dict[int, Any], known: dict[int, Any]) -> None:
    """Draw a teacher's loss over training, and over t."""
    iterations = sorted(found)
    times = found[iterations[-1]]["t"]
    _name(row[0], "probe: v-loss at each t", "iteration")
    for at, t in enumerate(times):
        colour = _shade(at, len(times))
        row[0].plot(iterations, [found[i]["loss"][at] for i in iterations], color=colour, label=f"t = {t:.2f}")
        if known:
            row[0].plot(sorted(known), [known[i]["loss"][at] for i in sorted(known)], **REFERENCE)
    _log(row[0])
    row[0].legend(fontsize=6, frameon=False)
    _name(row[1], "probe: v-loss over t, first to last", "t")
    for at, i in enumerate(iterations):
        row[1].plot(times, found[i]["loss"], color=_shade(at, len(iterations)), linewidth=1)
    for axes in row[2:]:
        axes.set_axis_off()


def _student(row: Any, found: dict[int, Any], known: dict[int, Any], part: str) -> None:
    """Draw a student's loss by segment and by place, lambda and x_var over t, and its distance from the teacher."""
    iterations = sorted(found)
    _name(row[0], f"{part}, probe: loss by segment", "iteration")
    segments = len(found[iterations[-1]]["loss"])
    for at in range(segments):
        _line(row[0], found, known, lambda one, at=at: _mean(one["loss"][at]), _shade(at, segments), f"segment {at}")
    _name(row[1], "probe: loss by place in the segment", "iteration")
    places = found[iterations[-1]].get("places", PLACES)
    alike = {at: one for at, one in known.items() if one.get("places", PLACES) == places}
    for at, place in enumerate(places):
        told = "n_rel = 1" if place == 0 else f"n_rel = {place:.0%}"
        _line(
            row[1], found, alike, lambda one, at=at: _mean([s[at] for s in one["loss"]]), _shade(at, len(places)), told
        )
    _name(row[2], "probe: λ (solid), x_var (dotted) over t, first to last", "t")
    for at, i in enumerate(iterations):
        t = [value for segment in found[i]["t"] for value in segment]
        for name, dash in (("lambda", "-"), ("x_var", ":")):
            values = [value for segment in found[i][name] for value in segment]
            row[2].plot(t, values, dash, marker=".", markersize=3, color=_shade(at, len(iterations)), linewidth=0.8)
    _name(row[3], "probe: distance from the teacher's trajectory", "iteration")
    for at in range(segments):
        said = f"at t = {(segments - 1 - at) / segments:.2f}"
        _line(row[3], found, known, lambda one, at=at: one["trajectory"][at], _shade(at, segments), said)
    row[2].set_yscale("log")
    for axes in (row[0], row[1], row[3]):
        _log(axes)
        if segments <= 8:
            axes.legend(fontsize=6, framealpha=0.7, ncols=2)


def _line(axes: Any, found: dict[int, Any], known: dict[int, Any], of: Any, colour: Any, said: str) -> None:
    axes.plot(sorted(found), [of(found[i]) for i in sorted(found)], color=colour, label=said, linewidth=1.2)
    if known:
        axes.plot(sorted(known), [of(known[i]) for i in sorted(known)], **REFERENCE)


def _log(axes: Any) -> None:
    """Draw the upright axis by powers, with plain numbers."""
    axes.set_yscale("log")
    for axis_format in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        axis_format("{x:g}")
    axes.tick_params(which="both", labelsize=6)


def _shade(at: int, count: int) -> tuple[float, float, float]:
    """From blue to red."""
    share = at / max(1, count - 1)
    return (0.11 + 0.7 * share, 0.3, 0.85 - 0.7 * share)


def _name(axes: Any, title: str, below: str) -> None:
    axes.set_title(title, fontsize=8)
    axes.set_xlabel(below, fontsize=7)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


class Health(Command):
    """Draw how a run goes: its loss and gradients, and what its probe found, beside a run that is known to be well."""

    run: Path
    """Folder of the run: runs/FAMILY/MEMBER."""
    reference: Path | None = None
    """Folder of another run, to compare with; its curves are dashed. docs/training.md names some that are well."""
    out: Path = Path("health.png")
    """PNG file to write."""

    def cli_cmd(self) -> None:
        """Draw."""
        draw_health(self.run, self.out, reference=self.reference)
        print(
            f"wrote {self.out}" + ("" if read_found(self.run) else f"; there is no {FOUND}, only what log.jsonl says")
        )
