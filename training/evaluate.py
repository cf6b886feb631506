"""`stepdial evaluate`: measure what each dial position gives and costs, and write it into the family as its frontier."""

import time
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from diffusion import provenance
from diffusion.family import Family, FamilyError, open_family
from diffusion.files import write_json
from diffusion.frontier import Frontier, Measure, Position, Provenance, Source
from diffusion.manifest import FRONTIER
from diffusion.plans import Plan
from diffusion.sampler import Network, sample
from training.datasets import DataSet
from training.members import locked
from training.scores import Quality, Scorer
from training.teacher import in_precision
from training.yardstick import Evaluation, Yardstick

SOURCES: tuple[Source, ...] = get_args(Source)
"""Every way of drawing a position, in the order of the frontier's rows."""
TIMED_BATCH = 16


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
    yardstick = Yardstick(family, data, evaluation.device)
    scorer = Scorer(family, yardstick, evaluation)
    floor = yardstick.floor(evaluation.samples, len(evaluation.seeds))
    for plan in plans:
        quality = scorer.quality([plan], label=f"{plan.steps} steps, {family.source(plan)}")[0]
        position = position_of(family, plan, quality, floor, evaluation)
        print(summary(position))
        frontier = keep(family, position, reference=yardstick.reference, judge=yardstick.description)
    scorer.forget()
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


def keep(
    family: Family,
    *positions: Position,
    reference: str,
    judge: str,
    without: Callable[[Position], bool] = lambda row: False,
) -> Frontier:
    """Write positions into the family's frontier file, beside those taken with the same judge and reference.

    without: of those, which to remove.
    """
    fresh = {position.plan: position for position in positions}
    with locked(family.folder):
        old = comparable(family, reference=reference, judge=judge)
        kept = {row.plan: row for row in old.positions if not without(row)} if old else {}
        rows = sorted((kept | fresh).values(), key=lambda row: (row.steps, SOURCES.index(row.source)))
        frontier = Frontier(
            family=family.name,
            reference=reference,
            judge=judge,
            positions=tuple(rows),
            rescues=old.rescues if old else (),
        )
        write_json(family.folder, FRONTIER, frontier)
        return frontier


def comparable(family: Family, *, reference: str, judge: str) -> Frontier | None:
    """Return the frontier as its file is now, if it was measured with this reference and judge."""
    frontier = open_family(family.folder).frontier
    return frontier if frontier and (frontier.reference, frontier.judge) == (reference, judge) else None


def position_of(family: Family, plan: Plan, quality: Quality, floor: Measure, evaluation: Evaluation) -> Position:
    """Return a plan's position of this quality, its speed measured now."""
    first = family.manifest.member(plan.members[0])
    return Position(
        steps=plan.steps,
        plan=plan,
        source=family.source(plan),
        guidance=family.guidance(plan) if first.role == "teacher" else first.guidance,
        samples=evaluation.samples,
        seeds=evaluation.seeds,
        floor=floor,
        measured=provenance_of(evaluation),
        **quality._asdict(),
        **_speed(family, plan, evaluation),
    )


def _speed(family: Family, plan: Plan, evaluation: Evaluation) -> dict[str, Any]:
    """Return the fields of a position that say how fast it is, in the server's arithmetic and largest wave."""
    served = replace(evaluation, precision="fp32")
    condition = torch.ones(TIMED_BATCH, len(family.manifest.conditioning.sizes), dtype=torch.int64)
    latency, rate = time_it(sampler(family, plan, served), condition)
    return {"latency_ms": latency, "images_per_second": rate, "batch": TIMED_BATCH, "timed": provenance_of(served)}


def provenance_of(evaluation: Evaluation) -> Provenance:
    """Return how an evaluation measures, as of now."""
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
    decode = family.decoder(evaluation.device)

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
            told=family.told(plan.members[0]),
            variance=family.variance,
            decode=decode,
            device=evaluation.device,
        ).cpu()

    return draw


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
