"""Measures every curve, one after the other; the points of each in turns."""

from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.checks.host import host
from benchmarks.growth.budget import Budget
from benchmarks.growth.families import families
from benchmarks.growth.loads import steps_and_clients
from benchmarks.growth.sides import sides
from benchmarks.growth.waiting import redis_is_there, waiting
from benchmarks.record import Record, record
from diffusion import provenance


async def measure(folder: Path, budget: Budget, note: str) -> Record:
    """Return every curve of a family. Raises NotServed, FamilyError, ValueError."""
    provenance.commit()  # of the code that runs, before it changes under a long run
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    points = sides(folder, budget, device)
    async with host(folder) as served:
        points += await steps_and_clients(served, budget)
    points += await families(folder, budget)
    points += await waiting(folder, budget, redis=False)
    if redis_is_there():
        points += await waiting(folder, budget, redis=True)
    else:
        print("no redis-server on the PATH: jobs that wait in Redis are not measured", flush=True)
    results = [point.model_dump() for point in points]
    settings = {"family": folder.name, **asdict(budget)}
    return record("benchmarks.growth", device, results, settings=settings, note=note)
