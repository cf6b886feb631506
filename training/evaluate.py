"""`stepdial evaluate`: measure what each dial position gives and costs, and write it into the family as its frontier."""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from diffusion.family import FRONTIER, Family, FamilyError, open_family, write_json
from diffusion.frontier import Frontier, Measure, Position, Provenance, Source
from diffusion.plans import Plan
from diffusion.sampler import Network, sample
from training import provenance
from training.datasets import DataSet, FiniteSet, Shapes, pixels_to_latents
from training.features import Judge, describe_judge, family_judge, frechet_distance
from training.members import locked
from training.teacher import in_precision

SOURCES: tuple[Source, ...] = get_args(Source)
"""Every way of drawing a position, in the order of the frontier's rows."""
REFERENCE_IMAGES = 10_000
BATCH = 64
TIMED_BATCH = 16
_REAL_SEED = 101


@dataclass(frozen=True)
class Evaluation:
    """How to measure: shared by every position of one call."""

    samples: int
    """Images per run behind a quality number."""
    seeds: tuple[int, ...]
    """One run each."""
    precision: str
    """Network arithmetic of the quality runs, "bf16" or "fp32"."""
    device: torch.device
    command: str
    """The command line, for the record."""
    commit: str
    """The code that runs, as git named it when the command began."""


class Yardstick:
    """The judge, the real images' features, and how far as many real images are from them."""

    def __init__(self, family: Family, data: DataSet):
        self.data = data
        self.judge: Judge = family_judge(family.folder, data)
        self.description = describe_judge(family.folder, self.judge, data)
        count = len(data) if isinstance(data, FiniteSet) else REFERENCE_IMAGES
        self.features = self._features_of_real(0, count)
        self.reference = f"{count} real images of {data.name}"

    def distance(self, images: Tensor) -> float:
        """Return the Frechet distance of images uint8 (N, H, W, C) to the real ones."""
        return frechet_distance(self._features(pixels_to_latents(images.numpy())), self.features)

    def agreement(self, images: Tensor, condition: Tensor) -> float:
        """Return the fraction of images uint8 (N, H, W, C) in which everything asked for, condition (N, slots), is seen."""
        x = pixels_to_latents(images.numpy())
        return float(
            torch.cat([self.judge.agrees(a, b) for a, b in zip(x.split(256), condition.split(256), strict=True)])
            .float()
            .mean()
        )

    def floor(self, samples: int, runs: int) -> Measure:
        """Return the distance of `samples` real images to real images.

        Of an endless set, fresh images to the reference.  A finite set is its own reference, so there are no others:
        there `samples` random images to as many others of the set, half of it each at most.
        """
        distances = []
        for run in range(runs):
            if isinstance(self.data, FiniteSet):
                order = np.random.default_rng(run).permutation(len(self.features))
                half = min(samples, len(order) // 2)
                distances.append(frechet_distance(self.features[order[:half]], self.features[order[half : 2 * half]]))
            else:
                start = REFERENCE_IMAGES + run * samples
                distances.append(frechet_distance(self._features_of_real(start, samples), self.features))
        return measure(distances)

    def _features_of_real(self, start: int, count: int) -> np.ndarray:
        parts = [
            self.data.batch(at, min(256, start + count - at), seed=_REAL_SEED)[0]
            for at in range(start, start + count, 256)
        ]
        return self._features(torch.cat(parts))

    def _features(self, x: Tensor) -> np.ndarray:
        return torch.cat([self.judge.features(part) for part in x.split(256)]).numpy()


def measure(values: list[float]) -> Measure:
    """Return mean and standard deviation (of the runs, N - 1; 0 for one run)."""
    return Measure(mean=float(np.mean(values)), spread=float(np.std(values, ddof=1)) if len(values) > 1 else 0.0)


def ways(family: Family, positions: list[int], sources: Collection[Source] = SOURCES) -> list[Plan]:
    """Return every plan of these sources with which the family draws the positions."""
    return [plan for steps in positions for plan in family.plans(steps) if family.source(plan) in sources]


def evaluate(
    family: Family,
    data: DataSet,
    positions: list[int],
    evaluation: Evaluation,
    *,
    sources: Collection[Source] = SOURCES,
) -> Frontier:
    """Measure every way of drawing the positions and write each into the frontier file as soon as it is measured.

    sources: which ways.  Positions and ways not asked for are kept, unless they were measured with another judge or
    reference: then they do not compare, and are dropped.  Several calls for different positions may run side by side.
    Raises FamilyError when there is nothing to measure.
    """
    plans = ways(family, positions, sources)
    if not plans:
        raise FamilyError(f"positions {positions} are drawn in none of these ways: {', '.join(sources)}")
    yardstick = Yardstick(family, data)
    floor = yardstick.floor(evaluation.samples, len(evaluation.seeds))
    for plan in plans:
        position = measure_position(family, yardstick, plan, floor, evaluation)
        print(summary(position))
        frontier = keep(family, position, reference=yardstick.reference, judge=yardstick.description)
    return frontier


def time_again(
    family: Family, positions: list[int], evaluation: Evaluation, *, sources: Collection[Source] = SOURCES
) -> Frontier:
    """Measure the speed of positions that the frontier holds anew, on a machine with nothing else to do, say."""
    assert family.frontier is not None
    frontier = family.frontier
    for measured in filter(None, map(family.measured, ways(family, positions, sources))):
        position = measured.model_copy(update=_speed(family, measured.plan, evaluation))
        print(summary(position))
        frontier = keep(family, position, reference=frontier.reference, judge=frontier.judge)
    return frontier


def keep(family: Family, position: Position, *, reference: str, judge: str) -> Frontier:
    """Write a position into the family's frontier file, beside those taken with the same judge and reference."""
    with locked(family.folder):
        old = open_family(family.folder).frontier
        compares = old and (old.judge, old.reference) == (judge, reference)
        kept = {other.plan: other for other in old.positions} if old and compares else {}
        rows = (kept | {position.plan: position}).values()
        positions = tuple(sorted(rows, key=lambda row: (row.steps, SOURCES.index(row.source))))
        frontier = Frontier(
            family=family.name,
            reference=reference,
            judge=judge,
            positions=positions,
            rescues=old.rescues if old and compares else (),
        )
        write_json(family.folder, FRONTIER, frontier)
        return frontier


def measure_position(
    family: Family, yardstick: Yardstick, plan: Plan, floor: Measure, evaluation: Evaluation
) -> Position:
    """Measure quality of a plan over the evaluation's seeds, then latency and throughput."""
    draw = sampler(family, plan, evaluation)
    data = yardstick.data
    distances, right, right_held_out = [], [], []
    for seed in evaluation.seeds:
        _, condition = data.batch(0, evaluation.samples, seed=seed)
        images = draw_many(draw, condition, seed, label=f"{plan.steps} steps, {family.source(plan)}, seed {seed}")
        distances.append(yardstick.distance(images))
        if data.conditioning.sizes:
            right.append(yardstick.agreement(images, condition))
        if isinstance(data, Shapes):
            _, unseen = Shapes(data.resolution, held_out=True).batch(0, max(1, evaluation.samples // 4), seed=seed)
            right_held_out.append(yardstick.agreement(draw_many(draw, unseen, seed + 1000, label="held out"), unseen))
    first = family.manifest.member(plan.members[0])
    return Position(
        steps=plan.steps,
        plan=plan,
        source=family.source(plan),
        guidance=family.guidance(plan) if first.role == "teacher" else first.guidance,
        samples=evaluation.samples,
        seeds=evaluation.seeds,
        frechet=measure(distances),
        floor=floor,
        agreement=measure(right) if right else None,
        agreement_held_out=measure(right_held_out) if right_held_out else None,
        measured=_provenance(evaluation),
        **_speed(family, plan, evaluation),
    )


def _speed(family: Family, plan: Plan, evaluation: Evaluation) -> dict[str, Any]:
    """Return the fields of a position that say how fast it is, in the server's arithmetic and largest wave."""
    served = replace(evaluation, precision="fp32")
    condition = torch.ones(TIMED_BATCH, len(family.manifest.conditioning.sizes), dtype=torch.int64)
    latency, rate = time_it(sampler(family, plan, served), condition)
    return {"latency_ms": latency, "images_per_second": rate, "batch": TIMED_BATCH, "timed": _provenance(served)}


def _provenance(evaluation: Evaluation) -> Provenance:
    return Provenance(
        command=evaluation.command,
        commit=evaluation.commit,
        device=provenance.device_name(evaluation.device),
        precision=evaluation.precision,
        versions=provenance.versions(),
        measured_at=provenance.now(),
    )


Draw = Callable[[Tensor, list[int], list[int]], Tensor]
"""(condition (B, slots), seeds, indices) -> images uint8 (B, H, W, C) in host memory."""


def sampler(family: Family, plan: Plan, evaluation: Evaluation) -> Draw:
    """Return a function that draws one batch of a family by a plan."""
    networks: dict[str, Network] = {
        name: in_precision(family.network(name, evaluation.device), evaluation.precision) for name in plan.members
    }

    def draw(condition: Tensor, seeds: list[int], indices: list[int]) -> Tensor:
        return sample(
            networks,
            plan,
            family.manifest.schedule,
            condition,
            seeds=seeds,
            indices=indices,
            shape=family.manifest.shape,
            guidance=family.guidance(plan),
            variance=family.variance,
            device=evaluation.device,
        ).cpu()

    return draw


def draw_many(draw: Draw, condition: Tensor, seed: int, *, label: str) -> Tensor:
    """Draw one image per row of `condition`, image i being index i of `seed`; uint8 (N, H, W, C)."""
    parts = []
    with tqdm(total=len(condition), desc=label, unit="img", mininterval=1, leave=False) as bar:
        for start in range(0, len(condition), BATCH):
            part = condition[start : start + BATCH]
            parts.append(draw(part, [seed] * len(part), list(range(start, start + len(part)))))
            bar.update(len(part))
    return torch.cat(parts)


def time_it(draw: Draw, condition: Tensor, *, repeats: int = 15) -> tuple[Measure, float]:
    """Return one image's latency in milliseconds (median, half the interquartile range) and images/s at a full batch."""
    draw(condition[:1], [0], [0])
    singles = []
    for repeat in range(repeats):
        began = time.perf_counter()
        draw(condition[:1], [repeat], [0])
        singles.append(1000 * (time.perf_counter() - began))
        if sum(singles) > 20_000:
            break
    low, middle, high = np.percentile(singles, (25, 50, 75))
    batches = []
    for _ in range(3 if middle < 1000 else 1):
        began = time.perf_counter()
        draw(condition, [0] * len(condition), list(range(len(condition))))
        batches.append(len(condition) / (time.perf_counter() - began))
    return Measure(mean=float(middle), spread=float(high - low) / 2), float(np.median(batches))


def summary(position: Position) -> str:
    """Return one line for people."""
    near = f"distance {position.frechet.mean:8.2f} ± {position.frechet.spread:.2f} (floor {position.floor.mean:.2f})"
    line = f"{position.steps:4d} steps  {position.source:8}  {near}"
    if position.agreement:
        line += f"  right {position.agreement.mean:.1%}"
    if position.agreement_held_out:
        line += f"  held out {position.agreement_held_out.mean:.1%}"
    return line + f"  {position.latency_ms.mean:.1f} ms  {position.images_per_second:.0f} img/s"
