"""The curve of families: one server of several, from its start to a crowd that is spread over them."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from benchmarks.checks.host import Host, host
from benchmarks.growth.budget import Budget
from benchmarks.growth.loads import STEPS, load
from benchmarks.growth.result import Point, Tally
from benchmarks.load.summary import Summary
from benchmarks.peers.whole import only_whole
from benchmarks.scale.processes import resident_bytes
from diffusion.family import open_family
from diffusion.manifest import FRONTIER, MANIFEST

CLIENTS = 16
"""Clients that are spread evenly over the families."""


async def families(folder: Path, budget: Budget) -> list[Point]:
    """Return start-up, memory, a lone client's latency and a crowd's throughput by number of families.

    Raises NotServed, FamilyError.
    """
    tally = Tally("families")
    with TemporaryDirectory() as temporary:
        folders = copies(folder, Path(temporary), max(budget.families))
        for number in range(budget.rounds):
            for count in budget.families:
                tally.add(count, await _turn(folders[:count], budget, number))
    return tally.points()


def copies(folder: Path, target: Path, count: int) -> list[Path]:
    """Write a family under so many names into folders there; its student for the whole dial alone, where it has one.

    Files of weights are links to the same file; every server reads, checks and holds them once for each family all the same.
    Raises FamilyError.
    """
    family = open_family(folder)
    if family.manifest.whole:
        (target / "whole").mkdir()
        family = only_whole(folder, target / "whole")
    found = []
    for number in range(1, count + 1):
        copy = target / f"{family.name}-{number}"
        copy.mkdir()
        for file in family.folder.iterdir():
            if file.name not in (MANIFEST, FRONTIER):
                (copy / file.name).symlink_to(file.resolve())
        manifest = json.loads((family.folder / MANIFEST).read_text()) | {"name": copy.name}
        (copy / MANIFEST).write_text(json.dumps(manifest))
        found.append(copy)
    return found


async def _turn(folders: Sequence[Path], budget: Budget, seed: int) -> dict[str, float]:
    more = [part for folder in folders[1:] for part in ("--family", str(folder))]
    began = perf_counter()
    async with host(folders[0], *more) as served:
        ready, resident = perf_counter() - began, resident_bytes(served.pid)
        last = served.served["data"][-1]
        alone = await load(served.client, last, steps=STEPS, clients=1, budget=budget, seed=seed)
        crowd = await _crowd(served, budget, seed)
    assert alone.total.latency_ms
    return {
        "start, s": ready,
        "resident memory, MiB": resident / 2**20,
        "lone p50, ms": alone.total.latency_ms.p50,
        f"images/s, {CLIENTS} clients": sum(one.images_per_second for one in crowd),
    }


async def _crowd(served: Host, budget: Budget, seed: int) -> list[Summary]:
    """The clients all at once, as many of each family."""
    models = served.served["data"]
    shares = [len(range(number, CLIENTS, len(models))) for number in range(len(models))]
    loads = [
        load(served.client, model, steps=STEPS, clients=share, budget=budget, seed=seed)
        for model, share in zip(models, shares, strict=True)
    ]
    return await asyncio.gather(*loads)
