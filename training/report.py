"""`stepdial report`: what was measured as tables in a Markdown file, so that no number is ever typed."""

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from diffusion.family import Family
from diffusion.frontier import Frontier, Measure, Position, Rescue, Source
from training.ablations import RESULTS, Ablation, AblationsRecord, Study, read_ablations
from training.arms import ARMS, BASELINE, Arm
from training.composition import students_of, words
from training.curve import NAMES, Point, student_curves
from training.datasets import DataError
from training.metrics import Row, read_metrics
from training.paper import paper_table
from training.samplers import SamplersRecord, read_samplers

DIAL_RESULTS = Path("benchmarks/dial")
"""Where stepdial evaluate puts samplers and metrics, by default."""


def dial_table(family: Family) -> str:
    """Return a family's frontier as a Markdown table, and how it was measured.  Raises DataError if it was not."""
    frontier = family.frontier
    if frontier is None:
        raise DataError(f"family {family.name!r} has not been measured; run stepdial evaluate first")
    head = "| steps | drawn by | Fréchet distance (proxy) | of real images | obeyed | held-out prompts | one image | images/s |"
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
        "A proxy: FID is of Inception's features and 50,000 images. "
        "± is the standard deviation over runs; frontier.json has commits and versions."
    )


def _how(frontier: Frontier) -> list[str]:
    """Say how the positions were measured: a sentence for each command, quality first, then speed."""
    speed = defaultdict(list)
    for position in frontier.positions:
        timed = position.timed
        about = f"{timed.precision}, images/s {position.batch} at a time, on {timed.device}"
        speed[f"{about}: `{timed.command}`"].append(position.steps)
    timing = [f"Speed of steps {_list(steps)}: {what}." for what, steps in speed.items()]
    return _quality(frontier.positions) + timing


def _quality(rows: Iterable[Position | Rescue]) -> list[str]:
    """Say how quality was measured: a sentence for each command."""
    quality = defaultdict(list)
    for row in rows:
        about = f"{row.samples} images in {len(row.seeds)} run(s), networks in {row.measured.precision}"
        quality[f"{about}: `{row.measured.command}`"].append(row.steps)
    return [f"Steps {_list(steps)}: {what}." for what, steps in quality.items()]


def _list(steps: list[int]) -> str:
    return ", ".join(map(str, dict.fromkeys(steps)))


def searched_table(family: Family) -> str:
    """Return the best plan of each number of evaluations beside the students' own, as a Markdown table."""
    frontier, students = family.frontier, students_of(family.manifest)
    if frontier is None or not any(position.source == "searched" for position in frontier.positions):
        return "Not searched yet.\n"
    rows = [
        "| evaluations | best plan | Fréchet distance (proxy) | its student's own | the whole-dial student's own "
        "| obeyed | held-out |",
        "|---:|---|---:|---:|---:|---:|---:|",
    ]
    shown = []
    for steps in family.positions:
        choices = [choice for choice in family.choices(steps) if choice.source != "teacher"]
        if choices:
            own = {choice.source: _number(choice.frechet, len(choice.seeds)) for choice in choices}
            shown.append(choices[0])
            rows.append(_best_row(choices[0], words(choices[0].plan, students), own))
    return "\n".join(rows) + "\n\n" + " ".join([_ruler(frontier), *_quality(shown)]) + "\n"


def _best_row(best: Position, plan: str, own: dict[Source, str]) -> str:
    runs = len(best.seeds)
    cells = (
        str(best.steps),
        plan,
        _number(best.frechet, runs),
        own.get("student", ""),
        own.get("whole", ""),
        _number(best.agreement, runs, percent=True),
        _number(best.agreement_held_out, runs, percent=True),
    )
    return "| " + " | ".join(cells) + " |"


def rescues_table(family: Family) -> str:
    """Return what leaving each student's own position early gives, as a Markdown table."""
    frontier, students = family.frontier, students_of(family.manifest)
    if frontier is None or not frontier.rescues:
        return "Not measured yet.\n"
    rows = [
        "| steps | leaves after | ends with | evaluations | Fréchet distance (proxy) | of the whole plan | obeyed |",
        "|---:|---:|---|---:|---:|---:|---:|",
    ]
    shown = []
    for rescue in frontier.rescues:
        offered = family.positions.get(rescue.steps)  # none, once the member is gone that its plan ran on
        position = family.measured(offered) if offered else None
        pairs = enumerate(zip(rescue.plan.hops, position.plan.hops, strict=False)) if position else ()
        taken = next((at for at, (ours, theirs) in pairs if ours != theirs), 0)
        ending = {(hop.member, hop.segments) for hop in rescue.plan.hops[taken:]}
        if not position or position.source == "searched" or not taken or len(ending) > 1:
            continue  # what a searched plan's images do, which may have begun like those of the default one
        shown.append(rescue)
        cells = (
            str(rescue.steps),
            str(taken),
            words(rescue.plan, students).split(", then ", 1)[-1],
            str(rescue.plan.steps),
            _number(rescue.frechet, len(rescue.seeds)),
            _number(position.frechet, len(position.seeds)),
            _number(rescue.agreement, len(rescue.seeds), percent=True),
        )
        rows.append("| " + " | ".join(cells) + " |")
    notes = ["Those of searched plans are in frontier.json."] if len(shown) < len(frontier.rescues) else []
    return "\n".join(rows) + "\n\n" + " ".join([_ruler(frontier), *_quality(shown), *notes]) + "\n"


def ablations_table(family: Family) -> str:
    """Return what every ablation of a family found as Markdown tables, one for each baseline, or what is missing.

    Raises DataError if the result file is not one.
    """
    file = RESULTS / f"{family.name}.json"
    if not file.exists():
        return f"Not measured yet; `stepdial ablate --family families/{family.name}` does.\n"
    record, teacher = read_ablations(file), family.manifest.teacher
    if not teacher or teacher.weights.sha256 != record.teacher:
        return f"Not measured yet: what {file} holds is of a teacher that the family no longer has.\n"
    return "\n".join(_study(study, record) for study in record.studies)


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
    return _number(row.frechet, len(study.seeds)) + agreement.replace("%", " %")


def _study_ruler(study: Study, record: AblationsRecord) -> str:
    base, runs = study.baseline, len(study.seeds)
    return (
        "Columns are step counts; a cell is the Fréchet distance (proxy), and how often everything asked for is seen. "
        f"± is the standard deviation over {runs} run(s) of drawing {study.samples} images from one trained network. "
        f"Distance to {record.reference}; {_number(study.floor, runs)} is that of as many real images; judge: {record.judge}. "
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


def training_table(family: Family) -> str:
    """Return how long each member of a family took to train, as recorded, as a Markdown table."""
    records = {member.name: member.training for member in family.manifest.members}
    rows = ["| member | iterations | images | time | on |", "|---|---:|---:|---:|---|"]
    for name, made in records.items():
        cells = (name, f"{made.iterations:,}", f"{made.images:,}", _duration(made.seconds), made.device)
        rows.append("| " + " | ".join(cells) + " |")
    total = _duration(sum(made.seconds for made in records.values()))
    note = f"Together {total}, one after another; time that other work on the machine took is in it. family.json has the commands."
    return "\n".join(rows) + "\n\n" + note + "\n"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def samplers_table(family: Family) -> str:
    """Return the teacher under every rule on every grid as a Markdown table for each guidance, or what is missing.

    Raises DataError if the result file is not one.
    """
    file = DIAL_RESULTS / f"samplers-{family.name}.json"
    if not file.exists():
        return f"Not measured yet; `stepdial evaluate --samplers --family families/{family.name}` does.\n"
    record, teacher = read_samplers(file), family.manifest.teacher
    if not teacher or teacher.weights.sha256 != record.teacher:
        return f"Not measured yet: what {file} holds is of a teacher that the family no longer has.\n"
    guidances, students = dict.fromkeys(row.guidance for row in record.rows), student_curves(family, record)
    tables = [_samplers(record, guidance, students) for guidance in guidances]
    return "\n".join([*tables, _samplers_how(record, bool(students))])


def _samplers(record: SamplersRecord, guidance: float, students: dict[str, list[Point]]) -> str:
    cells = {
        (row.grid, row.rule, row.evaluations): _number(row.frechet, len(record.seeds))
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
        own = {point.evaluations: _number(point.frechet, len(record.seeds)) for point in points}
        rows.append(f"| *{NAMES[source]}* | | " + " | ".join(own.get(count, "") for count in counts) + " |")
    return "\n".join(rows) + "\n"


def _samplers_how(record: SamplersRecord, students: bool) -> str:
    runs, made = len(record.seeds), record.measured
    spread = "± is the standard deviation over runs. " if runs > 1 else ""
    beside = "The students are the rows of the dial that were measured alike. " if students else ""
    return (
        f"Fréchet distance (proxy) by network evaluations; heun takes one less where the number is even. "
        f"{record.samples} images in {runs} run(s), to {record.reference}; "
        f"{_number(record.floor, runs)} is that of as many real images. "
        f"{beside}{spread}Made by `{made.command}`, commit {made.commit}, on {made.device}.\n"
    )


def metrics_table(family: Family) -> str:
    """Return what every feature network says of the positions as a Markdown table, or what is missing.

    Raises DataError if the result file is not one.
    """
    file = DIAL_RESULTS / f"metrics-{family.name}.json"
    if not file.exists():
        return f"Not measured yet; `stepdial evaluate --metrics --family families/{family.name}` does.\n"
    record = read_metrics(file)
    head = "| steps | drawn by | network | Fréchet distance | precision | recall | density | coverage | CLIP score |"
    rows = [head, "|---:|---|---|---:|---:|---:|---:|---:|---:|"]
    for row in record.rows:
        rows += _metric_rows(row, len(record.seeds))
    labels = "; ".join(f"{metric.network}: {metric.label}" for metric in record.rows[-1].metrics)
    references = "; ".join(
        f"{one.network} (sha256 {one.network_sha256[:12]}) by {one.count} real images of {one.data} (statistics {one.sha256[:12]})"
        for one in record.references
    )
    made = record.measured
    return (
        "\n".join(rows)
        + f"\n\n{labels}. References: {references}. {record.samples} images in {len(record.seeds)} run(s). "
        f"Made by `{made.command}`, commit {made.commit}, on {made.device}.\n"
    )


def _metric_rows(row: Row, runs: int) -> list[str]:
    lines = []
    for at, one in enumerate(row.metrics):
        runs = 1 if row.plan is None else runs
        overlap = [_number(getattr(one, name), runs) for name in ("precision", "recall", "density", "coverage")]
        first = [str(row.steps or ""), row.source] if at == 0 else ["", ""]
        clip = _number(row.clip_score, runs) if at == 0 else ""
        lines.append("| " + " | ".join([*first, one.network, _number(one.frechet, runs), *overlap, clip]) + " |")
    return lines


TABLES = {
    "dial": dial_table,
    "searched": searched_table,
    "rescues": rescues_table,
    "ablations": ablations_table,
    "samplers": samplers_table,
    "metrics": metrics_table,
    "paper": paper_table,
    "training": training_table,
}
"""What may stand between markers `<!-- KIND NAME -->` and `<!-- end -->`, by kind."""


def write_report(family: Family, file: Path) -> None:
    """Replace what stands between the file's markers of this family, `<!-- KIND NAME -->` and `<!-- end -->`, by its tables.

    Raises DataError if there are no markers, or the family has no frontier for its dial.
    """
    text = file.read_text()
    names = "|".join(TABLES)
    pattern = re.compile(rf"(<!-- ({names}) {re.escape(family.name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not pattern.search(text):
        raise DataError(f"{file.name} has no markers <!-- KIND {family.name} --> (KIND: {names}) and <!-- end -->")
    file.write_text(pattern.sub(lambda found: found[1] + TABLES[found[2]](family) + found[3], text))
