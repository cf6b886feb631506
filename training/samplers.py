"""`stepdial evaluate --samplers`: the teacher under every rule on every grid of times, what the students are compared with."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict

from diffusion.family import FamilyError
from diffusion.frontier import Measure, Provenance
from diffusion.manifest import Member
from diffusion.plans import ALL_TIMES, Plan, Rule, teacher_plan
from diffusion.schedule import CosineSchedule, karras_times
from training.evaluate import provenance_of
from training.results import Extent, add_row, beside, read_result
from training.scores import Scorer

Grid = Literal["cosine", "karras"]
"""Which times a sampler visits: equal steps of t, or those of Karras et al. 2022 (equation 5)."""
GRIDS: tuple[Grid, ...] = get_args(Grid)
"""Every grid."""
EVALUATIONS = (4, 8, 16, 32, 64)
"""Network evaluations of an image, about: heun takes an odd number."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Sampled(_Record):
    """The teacher under one rule, on one grid, at one number of evaluations and one guidance."""

    rule: Rule
    """How a hop is taken."""
    grid: Grid
    """Which times are visited."""
    evaluations: int
    """Network evaluations of one image, a guided one counting once though it runs the network twice."""
    guidance: float
    """Guidance w; 0 for none."""
    runs: int
    """How often the network runs for one image: twice in an evaluation where guidance acts."""
    frechet: Measure
    agreement: Measure | None
    agreement_held_out: Measure | None
    measured: Provenance
    """How."""


class SamplersRecord(_Record):
    """The teacher's samplers: benchmarks/dial/samplers-NAME.json."""

    format: Literal[2] = 2
    family: str
    teacher: str
    """SHA-256 of the teacher's weights."""
    reference: str
    """What distances are taken to."""
    judge: str
    """What takes them."""
    guidance_interval: tuple[float, float] = ALL_TIMES
    """Times at which guidance acts."""
    samples: int
    """Images of each run."""
    seeds: tuple[int, ...]
    floor: Measure
    """The distance of as many real images."""
    rows: tuple[Sampled, ...]

    @property
    def extent(self) -> Extent:
        """What must not be lost."""
        return Extent(self.samples, len(self.seeds), {self.teacher, self.reference, self.judge})


def read_samplers(file: Path) -> SamplersRecord:
    """Read a result file.  Raises DataError if it is not one."""
    return read_result(SamplersRecord, file, "stepdial evaluate --samplers")


def sampler_plans(
    teacher: Member, schedule: CosineSchedule, evaluations: tuple[int, ...], grids: tuple[Grid, ...] = GRIDS
) -> Iterator[tuple[Grid, Plan]]:
    """Return the plans to measure: on each grid every rule at every number of evaluations."""
    for grid in grids:
        for rule in get_args(Rule):
            for steps in evaluations:
                hops = (steps + 1) // 2 if rule == "heun" else steps
                times = karras_times(schedule, hops).tolist() if grid == "karras" else None
                within = teacher.guidance_interval
                yield grid, teacher_plan(teacher.name, steps, rule=rule, times=times, clip=teacher.clips, guided=within)


def measure_samplers(
    scorer: Scorer,
    floor: Measure,
    out: Path,
    *,
    evaluations: tuple[int, ...] = EVALUATIONS,
    grids: tuple[Grid, ...] = GRIDS,
    guided: bool = True,
) -> SamplersRecord:
    """Measure the teacher unguided, then guided as its positions are; the file grows row by row, beside what was measured alike.

    guided: whether to do the second half too.
    Raises FamilyError for a family without a teacher, DataError for a file that is no result or would lose.
    """
    manifest, evaluation, yardstick = scorer.family.manifest, scorer.evaluation, scorer.yardstick
    if manifest.teacher is None:
        raise FamilyError(f"family {manifest.name!r} has no teacher")
    plans = list(sampler_plans(manifest.teacher, manifest.schedule, evaluations, grids))
    record = SamplersRecord(
        family=manifest.name,
        teacher=manifest.teacher.weights.sha256,
        reference=yardstick.reference,
        judge=yardstick.description,
        guidance_interval=manifest.teacher.guidance_interval,
        samples=evaluation.samples,
        seeds=evaluation.seeds,
        floor=floor,
        rows=(),
    )
    record = beside(record, read_samplers(out) if out.exists() else record, out)
    guidances = tuple(dict.fromkeys((0.0, manifest.guidance if guided else 0.0)))
    count = sum(plan.runs(w) for _, plan in plans for w in guidances) * scorer.images
    scorer.announce("the teacher's samplers", count, [manifest.teacher.name])
    for guidance in guidances:
        for grid, plan in plans:
            rule = plan.hops[0].rule
            label = f"{rule}, {grid} grid, {plan.steps} evaluations, guidance {guidance:g}"
            quality = scorer.quality([plan], guidance=guidance, label=label)[0]
            row = Sampled(
                rule=rule,
                grid=grid,
                evaluations=plan.steps,
                guidance=guidance,
                runs=plan.runs(guidance),
                **quality._asdict(),
                measured=provenance_of(evaluation),
            )
            print(f"{label}: distance {row.frechet.mean:.2f} ± {row.frechet.spread:.2f}")
            record = add_row(record, row, out, read_samplers, replaces=_replaces, order=_place)
    return record


def _place(row: Sampled) -> tuple[float, int, int, int]:
    """Where a row stands: unguided ones first, then by grid, rule and evaluations."""
    return row.guidance, GRIDS.index(row.grid), get_args(Rule).index(row.rule), row.evaluations


def _replaces(row: Sampled, known: Sampled) -> bool:
    return _place(row) == _place(known)
