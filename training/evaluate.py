"""`stepdial evaluate`: measure what each dial position gives and costs, and write it into the family as its frontier."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from diffusion.family import FRONTIER, Family, open_family, write_json
from diffusion.frontier import Frontier, Measure, Position, Provenance
from diffusion.plans import Plan
from diffusion.sampler import Network, sample
from training import provenance
from training.datasets import DataSet, FiniteSet, Shapes, pixels_to_latents
from training.features import Judge, describe_judge, family_judge, frechet_distance
from training.members import locked
from training.teacher import in_precision

BATCH = 64
TIMED_BATCH = 16


def evaluate(family: Family, data: DataSet, positions: list[int], evaluation: Evaluation) -> Frontier:
    """Measure the positions one after another and write each into the frontier file as soon as it is measured.

    Positions not asked for are kept, unless they were measured with another judge or reference: then they do not
    compare, and are dropped.  Several calls for different positions may run side by side.
    """
    yardstick = Yardstick(family, data)
    floor = yardstick.floor(evaluation.samples, len(evaluation.seeds))
    for steps in positions:
        position = measure_position(family, yardstick, steps, floor, evaluation)
        print(summary(position))
        frontier = keep(family, position, reference=yardstick.reference, judge=yardstick.description)
    return frontier


def time_again(family: Family, positions: list[int], evaluation: Evaluation) -> Frontier:
    """Measure the speed of positions that the frontier holds anew, on a machine with nothing else to do, say."""
    assert family.frontier is not None
    frontier = family.frontier
    measured = {position.steps: position for position in frontier.positions}
    for steps in positions:
        update = _speed(family, measured[steps].plan, evaluation)
        position = measured[steps].model_copy(update=update)
        print(summary(position))
        frontier = keep(family, position, reference=frontier.reference, judge=frontier.judge)
    return frontier


def keep(family: Family, position: Position, *, reference: str, judge: str) -> Frontier:
    """Write a position into the family's frontier file, beside those taken with the same judge and reference."""
    with locked(family.folder):
        old = open_family(family.folder).frontier
        compares = old and (old.judge, old.reference) == (judge, reference)
        kept = {other.steps: other for other in old.positions} if old and compares else {}
        positions = tuple(other for _, other in sorted((kept | {position.steps: position}).items()))
        frontier = Frontier(family=family.name, reference=reference, judge=judge, positions=positions)
        write_json(family.folder, FRONTIER, frontier)
        return frontier


def measure_position(
    family: Family, yardstick: Yardstick, steps: int, floor: Measure, evaluation: Evaluation
) -> Position:
    """Measure quality over the evaluation's seeds, then latency and throughput."""
    plan = family.positions[steps]
    draw = sampler(family, plan, evaluation)
    data = yardstick.data
    distances, right, right_held_out = [], [], []
    for seed in evaluation.seeds:
        _, condition = data.batch(0, evaluation.samples, seed=seed)
        images = draw_many(draw, condition, seed, label=f"{steps} steps, seed {seed}")
        distances.append(yardstick.distance(images))
        if data.conditioning.sizes:
            right.append(yardstick.agreement(images, condition))
        if isinstance(data, Shapes):
            _, unseen = Shapes(data.resolution, held_out=True).batch(0, max(1, evaluation.samples // 4), seed=seed)
            right_held_out.append(yardstick.agreement(draw_many(draw, unseen, seed + 1000, label="held out"), unseen))
    student = family.manifest.member(plan.members[0])
    return Position(
        steps=steps,
        plan=plan,
        source=student.role,
        guidance=student.guidance if student.role == "student" else family.guidance(plan),
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
    line = f"{position.steps:4d} steps  {near}"
    if position.agreement:
        line += f"  right {position.agreement.mean:.1%}"
    if position.agreement_held_out:
        line += f"  held out {position.agreement_held_out.mean:.1%}"
    return line + f"  {position.latency_ms.mean:.1f} ms  {position.images_per_second:.0f} img/s"
