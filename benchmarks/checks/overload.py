"""Four times more than the server can do: nobody gets anything but an image or a refusal, and it passes."""

import asyncio
from contextlib import suppress
from random import Random
from time import perf_counter
from typing import Any

from benchmarks.checks.host import Host, host
from benchmarks.checks.settings import CheckSettings
from benchmarks.checks.verdict import Finding, Findings
from benchmarks.load.arrivals import arrivals
from benchmarks.load.client import Answer, NotServed
from benchmarks.load.loops import Extent, Run, closed_loop, open_loop, unwatched
from benchmarks.load.summary import Spread, summarise

MIX = "1:6,2:3,4:1"
MAX_EVALUATIONS = 32
"""The queue's bound: two full waves, so that what is accepted is answered soon."""
CLIENTS = 12
"""Enough to keep the device busy, few enough to be refused hardly ever: their evaluations fit into the queue."""
FACTOR = 4
EXPECTED = ("200", "429", "503")
RETRY_SECONDS = (1, 10)
"""What is a sensible Retry-After of a server whose queue empties in about a second."""
GROWTH = 0.05
"""Share by which the process may have grown between the first and the last quarter of the overload."""
RECOVERY_SECONDS = 1.0


async def overload(settings: CheckSettings) -> Findings:
    """Measure what the server can do, offer it four times that, and look at every answer, its memory and the time after."""
    async with host(settings.family, "--max-evaluations", str(MAX_EVALUATIONS)) as server:
        capacity = await _capacity(server, settings)
        alone = [await _probe(server, number) for number in range(10)]
        usual = Spread.of([answer.latency for answer in alone if answer.ok])
        if usual is None:
            raise NotServed(f"no 1-step request was drawn before the load: {alone[0].outcome}")
        memory: list[float] = []
        run, recovery = await _overload(server, settings, FACTOR * capacity, memory, 3 * usual.p95 / 1000)
    summary = summarise(run, rate=FACTOR * capacity, clients=None, slo=None)
    refusals = [answer for answer in run.answers if answer.outcome in ("429", "503")]
    return Findings(
        findings=(_outcomes(run.answers), _waits(refusals), _memory(memory), _recovery(recovery)),
        numbers={
            "capacity_per_second": capacity,
            "one_step_alone_ms": usual.model_dump(),
            "memory_mib": [round(size / 2**20, 1) for size in memory],
            "recovery_seconds": recovery,
            "overload": summary.model_dump(mode="json"),
        },
        server=server.served["server"],
    )


async def _capacity(server: Host, settings: CheckSettings) -> float:
    """Requests a second that the server answers when it always has work. Every client asks once at least."""
    extent = Extent(warmup_seconds=0.0, seconds=settings.seconds / 5)
    run = await closed_loop(server.client, server.wishes(MIX, seed=0), CLIENTS, extent, unwatched)
    return sum(answer.ok for answer in run.answers) / max(answer.done for answer in run.answers)


async def _overload(
    server: Host, settings: CheckSettings, rate: float, memory: list[float], usual_seconds: float
) -> tuple[Run, float | None]:
    """Offer the rate, note the process's memory twenty times, then wait for recovery."""

    async def watch() -> None:
        while True:
            memory.append((await server.scrape()).value("process_resident_memory_bytes"))
            await asyncio.sleep(settings.seconds / 20)

    watching = asyncio.create_task(watch())
    began = perf_counter()
    times = arrivals("poisson", rate, Random(1))
    extent = Extent(warmup_seconds=0.0, seconds=settings.seconds)
    loading = asyncio.create_task(open_loop(server.client, server.wishes(MIX, seed=1), times, extent, unwatched))
    await asyncio.sleep(began + settings.seconds - perf_counter())
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching
    recovery = await _until_usual(server, usual_seconds)
    return await loading, recovery


async def _until_usual(server: Host, usual_seconds: float) -> float | None:
    """Seconds until a 1-step request is answered about as fast as before the overload; None if that takes a minute."""
    began = perf_counter()
    for number in range(1000, 3000):
        answer = await _probe(server, number)
        if answer.ok and answer.latency <= usual_seconds:
            return round(perf_counter() - began, 3)
        if perf_counter() - began > 60:
            break
        await asyncio.sleep(0.02)
    return None


async def _probe(server: Host, seed: int) -> Answer:
    _, body = server.wishes("1", seed).next()
    began = perf_counter()
    return await server.client.send(1, body, 0.0, began)


def _outcomes(answers: list[Answer]) -> Finding:
    strange: dict[str, Any] = {}
    for answer in answers:
        if answer.outcome not in EXPECTED:
            strange[answer.outcome] = strange.get(answer.outcome, 0) + 1
    images = sum(answer.ok for answer in answers)
    found = f"{images} images, {len(answers) - images - sum(strange.values())} refusals, others: {strange or 'none'}"
    return Finding(
        what=f"{len(answers)} answers",
        found=found,
        promised="an image, 503 or 429, and some images",
        kept=not strange and images > 0,
    )


def _waits(refusals: list[Answer]) -> Finding:
    waits = sorted({answer.retry_after if answer.retry_after is not None else -1.0 for answer in refusals})
    low, high = RETRY_SECONDS
    return Finding(
        what=f"Retry-After of {len(refusals)} refusals",
        found=f"{waits[0]:g} to {waits[-1]:g} s" if waits else "no refusals",
        promised=f"always there, {low} to {high} s",
        kept=bool(waits) and low <= waits[0] and waits[-1] <= high,
    )


def _memory(memory: list[float]) -> Finding:
    quarter = max(1, len(memory) // 4)
    first, last = max(memory[:quarter]), max(memory[-quarter:])
    return Finding(
        what="memory of the server from the first to the last quarter",
        found=f"{first / 2**20:.0f} to {last / 2**20:.0f} MiB",
        promised=f"no more than {100 * GROWTH:.0f} % larger",
        kept=last <= first * (1 + GROWTH),
    )


def _recovery(seconds: float | None) -> Finding:
    return Finding(
        what="after the load, until a 1-step request takes no more than three times its usual 95 % time",
        found="never" if seconds is None else f"{seconds:.2f} s",
        promised=f"{RECOVERY_SECONDS:g} s",
        kept=seconds is not None and seconds <= RECOVERY_SECONDS,
    )
