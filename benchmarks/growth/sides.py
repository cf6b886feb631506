"""The curve of image size: one evaluation of the family's own architecture on larger and larger images, with no server."""

from pathlib import Path

import torch

from benchmarks.clock import alternate
from benchmarks.growth.budget import Budget
from benchmarks.growth.result import Point
from benchmarks.networks.ways import WAYS, evaluation, inputs, network_in, operations, random_network
from diffusion.family import open_family
from diffusion.uvit import UViTConfig


def sides(folder: Path, budget: Budget, device: torch.device) -> list[Point]:
    """Return seconds and operations of one evaluation of one image by its side, weights random.

    Raises FamilyError, ValueError for a family whose teacher is no UViT.
    """
    teacher = open_family(folder).manifest.teacher
    if teacher is None or not isinstance(teacher.network, UViTConfig):
        raise ValueError(f"family {folder.name}: its image size cannot be changed, it has no UViT for a teacher")
    configs = {side: teacher.network.model_copy(update={"resolution": side}) for side in budget.sides}
    way = WAYS["fp32"]  # as a server has it before it is recorded
    runs = [
        evaluation(way, network_in(way, random_network(config, device)), inputs(config, 1, device))
        for config in configs.values()
    ]
    taken = alternate(runs, device, rounds=budget.rounds * budget.evaluations)
    points = []
    for (side, config), (wall, _) in zip(configs.items(), taken, strict=True):
        scaled = wall.model_copy(update={name: 1e3 * getattr(wall, name) for name in ("median", "low", "high")})
        work = wall.model_copy(update=dict.fromkeys(("median", "low", "high"), operations(config) / 1e9) | {"count": 1})
        points.append(Point(curve="sides", x=side, quantity="one evaluation, ms", value=scaled))
        points.append(Point(curve="sides", x=side, quantity="arithmetic, Gflop (counted)", value=work))
        print(f"sides {side}: {scaled.median:.4g} ms, {work.median:.4g} Gflop", flush=True)
    return points
