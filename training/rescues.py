"""`stepdial evaluate --rescues`: what an image gives that leaves its plan at a segment boundary and ends in fewer hops."""

from collections import defaultdict
from collections.abc import Sequence

from diffusion.family import Family, FamilyError
from diffusion.files import write_json
from diffusion.frontier import Frontier, Measure, Position, Rescue
from diffusion.manifest import FRONTIER
from diffusion.plans import Plan
from training.composition import Student, combinable, compose, composition_of, shortest, time_after
from training.evaluate import comparable, provenance_of
from training.members import locked
from training.scores import Quality, Scorer, evaluations


def endings(plan: Plan, students: tuple[Student, ...]) -> dict[Plan, int]:
    """Return the ways to end a plan early, with the hops taken before: from each boundary, on one student or the shortest way."""
    composition = composition_of(plan, students) or ()
    found: dict[Plan, int] = {}
    for taken in range(1, len(composition)):
        t = time_after(composition[:taken])
        known = any(student.knows(t) for student in students)
        for finish in (*(student.finish(t) for student in students), *([shortest(students, t)] if known else [])):
            if len(finish) < len(composition) - taken and finish[0] != composition[taken]:
                found.setdefault(compose((*composition[:taken], *finish)), taken)
    return found


def leavable(family: Family, students: tuple[Student, ...], limit: int) -> list[Position]:
    """Return the measured positions of 2 to `limit` evaluations that images may leave: one network's, and the searched."""
    return [
        position
        for steps in family.positions
        for position in family.choices(steps)
        if 1 < steps <= limit and composition_of(position.plan, students)
        if position.plan == family.dedicated(steps) or position.source == "searched"
    ]


def useful(measured: dict[Plan, Quality], taken: dict[Plan, int]) -> list[Plan]:
    """Return the endings worth offering: of each boundary those nearer to real images than all that are as short or shorter."""
    boundaries: dict[int, list[Plan]] = defaultdict(list)
    for plan in measured:
        boundaries[taken[plan]].append(plan)
    chosen = []
    for boundary in sorted(boundaries):
        best = float("inf")
        for plan in sorted(boundaries[boundary], key=lambda p: (p.steps, measured[p].frechet.mean)):
            if measured[plan].frechet.mean < best:
                best = measured[plan].frechet.mean
                chosen.append(plan)
    return chosen


def measure_rescues(scorer: Scorer, limit: int) -> Frontier | None:
    """Measure what leaving each position of up to `limit` evaluations early gives, and write it into the frontier.

    Raises FamilyError if the students cannot be combined or no position of theirs was measured.
    """
    family, evaluation = scorer.family, scorer.evaluation
    students = combinable(family.manifest)
    positions = leavable(family, students, limit)
    if not positions:
        raise FamilyError(f"no position of {family.name!r} that could be left early was measured; evaluate some first")
    cost = sum(evaluations(list(endings(position.plan, students))) for position in positions)
    scorer.announce("rescues", cost * scorer.images, sorted({student.member for student in students}))
    floor = scorer.yardstick.floor(evaluation.samples, len(evaluation.seeds))
    frontier = None
    for steps in sorted({position.steps for position in positions}):
        rows = [row for p in positions if p.steps == steps for row in rescue(scorer, p, students, floor)]
        rows = list({row.plan: row for row in rows}.values())  # one network's plan and the searched may begin alike
        print(f"{steps:4d} steps  {len(rows)} ways to leave early")
        frontier = keep_rescues(scorer, steps, rows)
    return frontier


def rescue(scorer: Scorer, position: Position, students: tuple[Student, ...], floor: Measure) -> list[Rescue]:
    """Measure every ending of a position, their common beginnings drawn once; return the useful ones."""
    evaluation = scorer.evaluation
    taken = endings(position.plan, students)
    if not taken:
        return []
    qualities = scorer.quality(list(taken), label=f"leaving {position.steps} steps, {position.source}")
    measured = dict(zip(taken, qualities, strict=True))
    return [
        Rescue(
            steps=position.steps,
            plan=plan,
            samples=evaluation.samples,
            seeds=evaluation.seeds,
            floor=floor,
            measured=provenance_of(evaluation),
            **measured[plan]._asdict(),
        )
        for plan in useful(measured, taken)
    ]


def keep_rescues(scorer: Scorer, steps: int, rescues: Sequence[Rescue]) -> Frontier:
    """Write the rescues of a dial position into the frontier file in place of those it had.

    Raises FamilyError if the frontier was measured with another judge or reference meanwhile.
    """
    family, yardstick = scorer.family, scorer.yardstick
    with locked(family.folder):
        frontier = comparable(family, reference=yardstick.reference, judge=yardstick.description)
        if frontier is None:
            raise FamilyError(
                f"{FRONTIER} of family {family.name!r} was measured with another judge or other real images"
            )
        others = [other for other in frontier.rescues if other.steps != steps]
        rows = sorted([*others, *rescues], key=lambda row: row.steps)
        frontier = frontier.model_copy(update={"rescues": tuple(rows)})
        write_json(family.folder, FRONTIER, frontier)
        return frontier
