"""What result files say of a family, as tables: ablations, the teacher's samplers, metrics of every network."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from diffusion.family import Family
from training.ablations import RESULTS, Ablation, AblationsRecord, Study, read_ablations
from training.arms import ARMS, BASELINE, Arm
from training.curve import NAMES, Point, student_curves
from training.frontier_tables import number
from training.metrics import Row, read_metrics
from training.samplers import Sampled, SamplersRecord, read_samplers

DIAL_RESULTS = Path("benchmarks/dial")
"""Where stepdial evaluate puts samplers and metrics, by default."""
METRIC_COLUMNS = (
    *("steps", "drawn by", "network", "Fréchet distance", "precision", "recall", "density", "coverage"),
    *("obeyed", "held-out", "CLIP score"),
)
METRIC_ALIGNMENT = ("---:", "---", "---", *["---:"] * 8)


def ablations_table(family: Family) -> str:
    """Return what every ablation of a family found as Markdown tables, one for each baseline, or what is missing.

    What one choice of training is worth against another outlives the teacher that it was tried on, so that is only named:
    RESULTS/NAME.json comes first, then those that were moved to folders below, out of the way of a later teacher's.
    Raises DataError if a result file is not one.
    """
    name, teacher = f"{family.name}.json", family.manifest.teacher
    files = [*RESULTS.glob(name), *sorted(RESULTS.glob(f"*/{name}"))]
    tables = [_ablations(read_ablations(file), teacher.weights.sha256 if teacher else "") for file in files]
    return "\n".join(tables) or _unmeasured(family, "ablate")


def _unmeasured(family: Family, command: str) -> str:
    return f"Not measured yet; `stepdial {command} --family families/{family.name}` does.\n"


def _ablations(record: AblationsRecord, teacher: str) -> str:
    earlier = f"Distilled from an earlier teacher of the family, of weights sha256 {record.teacher[:12]}.\n\n"
    return (earlier if record.teacher != teacher else "") + "\n".join(_study(study, record) for study in record.studies)


def _study(study: Study, record: AblationsRecord) -> str:
    measured = {(row.arm, row.steps): row for row in study.rows}
    counts, arms = sorted({row.steps for row in study.rows}), {row.arm for row in study.rows}
    head = ["arm", "what it is", *map(str, counts)]
    rows = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * len(counts)]
    missing = []
    for arm in [known for known in ARMS if known.name in arms]:
        cells = [_arm_cell(measured.get((arm.name, steps)), arm, study, steps) for steps in counts]
        rows.append("| " + " | ".join([arm.name, arm.about, *cells]) + " |")
        missing += [f"{arm.name} at {steps}" for steps, cell in zip(counts, cells, strict=True) if not cell]
    notes = [f"Not measured yet: {', '.join(missing)}."] if missing else []
    return "\n".join(rows) + "\n\n" + " ".join([_study_ruler(study, record), *_study_runs(study), *notes]) + "\n"


def _arm_cell(row: Ablation | None, arm: Arm, study: Study, steps: int) -> str:
    if row is None:
        return "as baseline" if arm != BASELINE and arm.is_baseline(study.baseline, steps) else ""
    agreement = f", {row.agreement.mean:.1%}" if row.agreement else ""
    return number(row.frechet, len(study.seeds)) + agreement.replace("%", " %")


def _study_ruler(study: Study, record: AblationsRecord) -> str:
    base, runs = study.baseline, len(study.seeds)
    return (
        "Columns are step counts; a cell is the Fréchet distance (proxy), and how often everything asked for is seen. "
        f"± is the standard deviation over {runs} run(s) of drawing {study.samples} images from one trained network. "
        f"Distance to {record.reference}; {number(study.floor, runs)} is that of as many real images; judge: {record.judge}. "
        f"Baseline: {base.iterations} iterations of {base.batch} images, learning rate {base.lr:g}, EMA {base.ema:g}, "
        f"guidance {base.guidance:g}, recipe {base.recipe}, seed {base.seed}."
    )


def _study_runs(study: Study) -> list[str]:
    """Say by which commands and on what: a sentence for each."""
    made: dict[str, dict[tuple[str, str], float]] = defaultdict(dict)
    for row in study.rows:
        how = f"`{row.training.command}`, commit {row.training.commit}, on {row.training.device}"
        made[how][row.arm, row.training.finished_at] = row.training.seconds
    return [f"Made by {how}: {sum(took.values()) / 60:,.0f} minutes of training." for how, took in made.items()]


def samplers_table(family: Family) -> str:
    """Return the teacher under every rule on every grid as a Markdown table for each guidance, or what is missing.

    Raises DataError if the result file is not one.
    """
    file, teacher = DIAL_RESULTS / f"samplers-{family.name}.json", family.manifest.teacher
    if not file.exists():
        return _unmeasured(family, "evaluate --samplers")
    record = read_samplers(file)
    if not teacher or teacher.weights.sha256 != record.teacher:
        return f"Not measured yet: what {file} holds is of a teacher that the family no longer has.\n"
    return _guidances(family, record)


def _guidances(family: Family, record: SamplersRecord) -> str:
    guidances, students = dict.fromkeys(row.guidance for row in record.rows), student_curves(family, record)
    tables = [_samplers(record, guidance, students) for guidance in guidances]
    return "\n".join([*tables, _samplers_how(record, bool(students))])


def _samplers(record: SamplersRecord, guidance: float, students: dict[str, list[Point]]) -> str:
    cells = {
        (row.grid, row.rule, row.evaluations): number(row.frechet, len(record.seeds))
        for row in record.rows
        if row.guidance == guidance
    }
    counts = sorted({count for _, rule, count in cells if rule != "heun"})
    counts = sorted({*counts, *(point.evaluations for points in students.values() for point in points)})
    about = f"Guided, w = {guidance:g}" if guidance else "Unguided"
    rows = [f"| {about}: times | rule | " + " | ".join(map(str, counts)) + " |", "|---|---|" + "---:|" * len(counts)]
    for grid, rule in dict.fromkeys((grid, rule) for grid, rule, _ in cells):
        taken = [2 * ((count + 1) // 2) - 1 if rule == "heun" else count for count in counts]
        numbers = [cells.get((grid, rule, count), "") for count in taken]
        rows.append(f"| {grid} | {rule} | " + " | ".join(numbers) + " |")
    for source, points in students.items():
        own = {point.evaluations: number(point.frechet, len(record.seeds)) for point in points}
        rows.append(f"| *{NAMES[source]}* | | " + " | ".join(own.get(count, "") for count in counts) + " |")
    return "\n".join(rows) + "\n"


def _samplers_how(record: SamplersRecord, students: bool) -> str:
    runs = len(record.seeds)
    spread = "± is the standard deviation over runs. " if runs > 1 else ""
    beside = "The students are the rows of the dial that were measured alike. " if students else ""
    return (
        f"Fréchet distance (proxy) by network evaluations; heun takes one less where the number is even. "
        f"{record.samples} images in {runs} run(s), to {record.reference}; "
        f"{number(record.floor, runs)} is that of as many real images. "
        f"{beside}{spread}{_made(record.rows)}\n"
    )


def _made(rows: Iterable[Sampled | Row]) -> str:
    """Say by which commands and on what, in one sentence."""
    made = dict.fromkeys(
        f"`{one.command}`, commit {one.commit}, on {one.device}" for one in (row.measured for row in rows)
    )
    return f"Made by {'; '.join(made)}."


def metrics_table(family: Family) -> str:
    """Return what every feature network says of the positions as a Markdown table, or what is missing.

    Raises DataError if the result file is not one.
    """
    file = DIAL_RESULTS / f"metrics-{family.name}.json"
    if not file.exists():
        return _unmeasured(family, "evaluate --metrics")
    record = read_metrics(file)
    drawn = [row for row in record.rows if row.is_of(family)]
    cells = [line for row in drawn for line in _metric_cells(row, len(record.seeds))]
    columns = [column for column, heading in enumerate(METRIC_COLUMNS) if any(line[column] for line in cells)]
    rows = [[line[column] for column in columns] for line in (METRIC_COLUMNS, METRIC_ALIGNMENT, *cells)]
    labels = "; ".join(f"{metric.network}: {metric.label}" for metric in drawn[-1].metrics)
    references = "; ".join(
        f"{one.network} (sha256 {one.network_sha256[:12]}) by {one.count} real images of {one.data}"
        for one in record.references
    )
    return (
        "\n".join(f"| {' | '.join(line)} |" for line in rows)
        + f"\n\n{labels}. References: {references}. {record.samples} images in {len(record.seeds)} run(s). "
        f"{_made(drawn)}\n"
    )


def _metric_cells(row: Row, runs: int) -> list[list[str]]:
    """Return a line of cells for each network, "" where there is nothing to say."""
    lines = []
    for at, one in enumerate(row.metrics):
        runs = 1 if row.plan is None else runs
        overlap = [number(getattr(one, name), runs) for name in ("precision", "recall", "density", "coverage")]
        first = [str(row.steps or ""), row.source] if at == 0 else ["", ""]
        asked = [number(of, runs, percent=True) for of in (row.agreement, row.agreement_held_out)]
        met = [*asked, number(row.clip_score, runs)] if at == 0 else [""] * 3
        lines.append([*first, one.network, number(one.frechet, runs), *overlap, *met])
    return lines
