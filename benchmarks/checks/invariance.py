"""Equal samples give equal bytes: alone in one process, and in a crowd in another."""

import asyncio
import json
from collections.abc import Mapping
from time import perf_counter
from typing import Any

from benchmarks.checks.host import Host, host
from benchmarks.checks.settings import CheckSettings
from benchmarks.checks.verdict import Finding, Findings
from benchmarks.load.loops import Extent, closed_loop, unwatched

POSITIONS = (1, 2, 4, 16, 32)
SAMPLES = 4
"""Samples that are compared at each position, at least."""
CROWD = "1:4,2:3,4:3,8:2,16:1,32:1"
CLIENTS = 12


async def invariance(settings: CheckSettings) -> Findings:
    """Draw samples one by one on one server; on a fresh one, draw them again and again among others. No cache helps."""
    async with host(settings.family, "--cache-bytes", "0") as server:
        wishes = _wishes(server)
        alone = [await _draw(server, wish) for wish in wishes]
    async with host(settings.family, "--cache-bytes", "0") as server:
        extent = Extent(warmup_seconds=0.0, seconds=settings.seconds)
        crowd = asyncio.create_task(
            closed_loop(server.client, server.wishes(CROWD, seed=9), CLIENTS, extent, unwatched)
        )
        together, rounds, began = [], 0, perf_counter()
        while not crowd.done():
            together.append(await asyncio.gather(*(_draw(server, wish) for wish in wishes)))
            rounds += 1
        others = (await crowd).answers
        after = await server.scrape()
    different = sum(found != expected for drawn in together for found, expected in zip(drawn, alone, strict=True))
    waves = after.value("stepdial_wave_samples_count")
    return Findings(
        findings=(
            Finding(
                what=f"{rounds * len(wishes)} samples drawn among {len(others)} others, {len(wishes)} of them different",
                found=f"{different} differ from the bytes they have alone",
                promised="none differs",
                kept=different == 0 and rounds > 0,
            ),
            Finding(
                what="the others' answers",
                found=f"{sum(answer.ok for answer in others)} of {len(others)} are images",
                promised="all, and a crowd of them",
                kept=all(answer.ok for answer in others) and len(others) >= CLIENTS,
            ),
        ),
        numbers={
            "seconds": round(perf_counter() - began, 2),
            "samples_per_wave": round(after.value("stepdial_wave_samples_sum") / max(1.0, waves), 2),
        },
        server=server.served["server"],
    )


def _wishes(server: Host) -> list[dict[str, Any]]:
    found = []
    for steps in (steps for steps in POSITIONS if steps in server.positions):
        wishes = server.wishes(str(steps), seed=steps, determinism="exact", output_format="png")
        found += [wishes.next()[1] | {"seed": seed} for seed in range(SAMPLES)]
    return found


async def _draw(server: Host, wish: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The images of an answer, seeds and all. Raises RuntimeError if there are none."""
    status, _, data = await server.client.post(wish)
    if status != 200:
        raise RuntimeError(f"{status}: {data[:300]!r}")
    found: list[dict[str, Any]] = json.loads(data)["data"]
    return found
