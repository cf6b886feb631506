"""What a family's own folder says, as tables: its dial, searched plans, early endings, how long each member was trained."""

from collections import defaultdict
from collections.abc import Iterable

from diffusion.family import Family
from diffusion.frontier import Frontier, Measure, Position, Rescue, Source
from training.composition import students_of, words
from training.datasets import DataError
from training.rescues import endings


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
        number(position.frechet, runs),
        number(position.floor, runs),
        number(position.agreement, runs, percent=True),
        number(position.agreement_held_out, runs, percent=True),
        f"{position.latency_ms.mean:,.0f} ms",
        f"{position.images_per_second:,.0f}",
    )
    return "| " + " | ".join(cells) + " |"


def number(value: Measure | None, runs: int, *, percent: bool = False) -> str:
    """Return a measured number with its spread over runs, where there are several; nothing for None."""
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
            own = {choice.source: number(choice.frechet, len(choice.seeds)) for choice in choices}
            shown.append(choices[0])
            rows.append(_best_row(choices[0], words(choices[0].plan, students), own))
    return "\n".join(rows) + "\n\n" + " ".join([_ruler(frontier), *_quality(shown)]) + "\n"


def _best_row(best: Position, plan: str, own: dict[Source, str]) -> str:
    runs = len(best.seeds)
    cells = (
        str(best.steps),
        plan,
        number(best.frechet, runs),
        own.get("student", ""),
        own.get("whole", ""),
        number(best.agreement, runs, percent=True),
        number(best.agreement_held_out, runs, percent=True),
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
        offered = rescue.steps in family.positions  # not, once the member is gone that its plan ran on
        position = family.measured(family.dedicated(rescue.steps)) if offered else None
        taken = endings(position.plan, students).get(rescue.plan) if position else None
        if not position or position.source == "searched" or not taken:
            continue  # what a searched plan's images do
        shown.append(rescue)
        cells = (
            str(rescue.steps),
            str(taken),
            words(rescue.plan, students).split(", then ", 1)[-1],
            str(rescue.plan.steps),
            number(rescue.frechet, len(rescue.seeds)),
            number(position.frechet, len(position.seeds)),
            number(rescue.agreement, len(rescue.seeds), percent=True),
        )
        rows.append("| " + " | ".join(cells) + " |")
    notes = ["Those of searched plans are in frontier.json."] if len(shown) < len(frontier.rescues) else []
    return "\n".join(rows) + "\n\n" + " ".join([_ruler(frontier), *_quality(shown), *notes]) + "\n"


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
