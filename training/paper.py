"""The paper's Tables 1 to 4 beside ours: small trainings of a family's teacher, several of each so that a spread is known."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffusion.family import Family
from diffusion.frontier import Measure
from training.ablations import Ablation, AblationsRecord, Study, read_ablations
from training.yardstick import measure

RESULTS = Path("benchmarks/paper")
"""Where stepdial ablate puts what the tables are made of."""


class PaperTable(NamedTuple):
    """One of the paper's tables: what it compares, and what it prints."""

    title: str
    arms: dict[str, tuple[str, ...]]
    """Column -> our arm, or several of which the first that was measured counts."""
    printed: dict[int, tuple[float, ...]]
    """Student steps -> the paper's FID by column."""


PAPER_TABLES = (
    PaperTable(
        "Table 1: trained on data alone (CT) against distilled (CD), ImageNet64, small network",
        {"CT": ("ct",), "CD": ("unguided", "baseline")},
        {1: (7.2, 4.3), 2: (2.7, 2.0), 4: (1.8, 1.7), 8: (1.5, 1.6), 16: (1.5, 1.5)},
    ),
    PaperTable(
        "Table 2: teacher steps annealed against as many from the start (the paper's 64 to 1280 against 1024), ImageNet128",
        {"annealed": ("baseline",), "constant": ("constant",)},
        {1: (7.0, 10.8), 2: (3.1, 3.8), 4: (2.3, 2.6), 8: (2.1, 2.2)},
    ),
    PaperTable(
        "Table 3: progressive distillation (PD) against CT and CD, ImageNet64",
        {"PD": ("pd",), "CT": ("ct",), "CD": ("unguided", "baseline")},
        {1: (10.7, 7.2, 4.3), 2: (4.7, 2.7, 2.0), 4: (2.4, 1.8, 1.7), 8: (1.8, 1.5, 1.6)},
    ),
    PaperTable(
        "Table 4: the teacher steps by DDIM or by aDDIM, ImageNet64",
        {"DDIM": ("ddim",), "aDDIM": ("baseline",)},
        {1: (3.91, 4.35), 2: (1.99, 2.02), 4: (1.77, 1.68), 8: (1.70, 1.58), 16: (1.72, 1.54)},
    ),
)


def paper_table(family: Family) -> str:
    """Return the paper's tables beside ours as Markdown, one block for each set of settings, or what is missing.

    Raises DataError if the result file is not one.
    """
    file = RESULTS / f"{family.name}.json"
    if not file.exists():
        return f"Not measured yet; `make paper PAPER_FAMILY=families/{family.name}` does.\n"
    record = read_ablations(file)
    groups: defaultdict[str, list[Study]] = defaultdict(list)
    for study in record.studies:
        alike = study.model_copy(update={"baseline": study.baseline.model_copy(update={"seed": 0}), "rows": ()})
        groups[alike.model_dump_json(exclude={"floor"})].append(study)
    return "\n".join(_group(studies, record) for studies in groups.values())


def _group(studies: Sequence[Study], record: AblationsRecord) -> str:
    rows = [row for study in studies for row in study.rows]
    tables = [_table(table, rows, len(studies)) for table in PAPER_TABLES]
    return "\n".join([*tables, _how(studies, record)])


def _table(table: PaperTable, rows: Sequence[Ablation], trainings: int) -> str:
    """Return one table; a row of student steps is there once two of its columns were measured."""
    names = list(table.arms)
    head = [
        "steps",
        *(f"{name}, here" for name in names),
        *(f"{name}, paper" for name in names),
        "nearest here",
        "in the paper",
    ]
    lines = [f"**{table.title}**", "", "| " + " | ".join(head) + " |", "|---:|" + "---:|" * 2 * len(names) + "---|---|"]
    missing = []
    for steps, printed in table.printed.items():
        ours = {name: measured for name in names if (measured := _measured(rows, table.arms[name], steps))}
        missing += [f"{name} at {steps}" for name in names if name not in ours]
        if len(ours) < 2:
            continue
        cells = [_cell(ours.get(name), _trainings(rows, table.arms[name], steps) < trainings) for name in names]
        theirs = {
            name: Measure(mean=value, spread=0.0) for name, value in zip(names, printed, strict=True) if name in ours
        }
        cells += [f"{value:g}" for value in printed]
        lines.append("| " + " | ".join([str(steps), *cells, nearest(ours), nearest(theirs)]) + " |")
    body = lines if len(lines) > 4 else lines[:1]
    notes = [f"Not measured: {', '.join(missing)}."] if missing else []
    return "\n".join([*body, "", *notes, ""])


def _measured(rows: Sequence[Ablation], arms: tuple[str, ...], steps: int) -> Measure | None:
    """Return what the trainings of the first of these arms that was measured gave, over trainings where there are several."""
    for arm in arms:
        found = [row.frechet for row in rows if (row.arm, row.steps) == (arm, steps)]
        if found:
            return measure([one.mean for one in found]) if len(found) > 1 else found[0]
    return None


def nearest(columns: dict[str, Measure]) -> str:
    """Name the column of the least distance, or those that are level with it: no further than their spreads together."""
    best = min(columns.values(), key=lambda one: one.mean)
    level = [
        name for name, one in columns.items() if one.mean - best.mean <= float(np.hypot(one.spread, best.spread)) + 1e-9
    ]
    return level[0] if len(level) == 1 else f"level: {', '.join(level)}"


def _trainings(rows: Sequence[Ablation], arms: tuple[str, ...], steps: int) -> int:
    """Return how many trainings are behind `_measured`."""
    counts = [sum((row.arm, row.steps) == (arm, steps) for row in rows) for arm in arms]
    return next(filter(None, counts), 0)


def _cell(value: Measure | None, fewer: bool) -> str:
    """A dagger says that fewer trainings were measured than of others."""
    return f"{value.mean:.2f} ± {value.spread:.2f}{' †' if fewer else ''}" if value else ""


def _how(studies: Sequence[Study], record: AblationsRecord) -> str:
    base, first = studies[0].baseline, studies[0]
    seeds = sorted(study.baseline.seed for study in studies)
    commands: dict[str, Any] = dict.fromkeys(
        f"`{row.training.command}` (commit {row.training.commit}, {row.training.device})"
        for study in studies
        for row in study.rows
    )
    over = (
        f"{len(seeds)} trainings (seeds {', '.join(map(str, seeds))}; † of fewer, of drawing where of one)"
        if len(seeds) > 1
        else "runs of drawing, of one training"
    )
    return (
        f"Here: proxy distance of the judge's features, family {record.family}, {first.samples} images a run, {len(first.seeds)} "
        f"run(s); ± is the standard deviation over {over}. {first.floor.mean:.2f} is the distance of as many real images. "
        f"Each student: {base.iterations} iterations of {base.batch} images, learning rate {base.lr:g}, recipe {base.recipe}, "
        f"guidance {base.guidance:g}. Distance to {record.reference}; judge: {record.judge}. Made by {'; '.join(commands)}.\n"
    )
