"""1-step requests beside 512-step ones: they wait for waves, not for whole images."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

from benchmarks.checks.host import Host, host
from benchmarks.checks.settings import CheckSettings
from benchmarks.checks.verdict import Finding, Findings
from benchmarks.load.arrivals import arrivals
from benchmarks.load.loops import Extent, open_loop, unwatched
from benchmarks.load.summary import Summary, summarise

RATE = 4.0
"""1-step requests a second."""
LONG_REQUESTS = 4
WAVES = 3
"""Waves of the long requests that a 1-step request may wait for on top of its usual time: the one that runs, one that was
made up before it came, and as much again for noise."""


async def fairness(settings: CheckSettings) -> Findings:
    """Time 1-step requests alone, then beside requests of the dial's last position, which never stop coming."""
    async with host(settings.family) as server:
        alone = await _one_step(server, settings.seconds / 4, seed=1)
        steps = server.positions[-1]
        async with _busy(server, steps):
            before = await server.scrape()
            beside = await _one_step(server, settings.seconds, seed=2)
            after = await server.scrape()
    network = _network(server, steps)
    waves, seconds = (
        after.value(name, network=network) - before.value(name, network=network)
        for name in ("stepdial_wave_duration_seconds_count", "stepdial_wave_duration_seconds_sum")
    )
    wave_ms = 1000 * seconds / max(1.0, waves)
    return Findings(
        findings=(_answers(beside), _p95(alone, beside, wave_ms, steps), _went_on(waves, steps)),
        numbers={
            "steps_of_long_requests": steps,
            "long_wave_ms": round(wave_ms, 2),
            "long_waves": waves,
            "alone": alone.model_dump(mode="json"),
            "beside": beside.model_dump(mode="json"),
        },
        server=server.served["server"],
    )


async def _one_step(server: Host, seconds: float, seed: int) -> Summary:
    times = arrivals("poisson", RATE, Random(seed))
    extent = Extent(warmup_seconds=min(1.0, seconds / 4), seconds=seconds)
    run = await open_loop(server.client, server.wishes("1", seed), times, extent, unwatched)
    return summarise(run, rate=RATE, clients=None, slo=None)


@asynccontextmanager
async def _busy(server: Host, steps: int) -> AsyncIterator[None]:
    """Keep the server busy with long requests inside the block. Raises RuntimeError if one of them fails."""
    clients = [asyncio.create_task(_long(server, steps, seed)) for seed in range(LONG_REQUESTS)]

    def look() -> None:
        for client in clients:
            if client.done():
                client.result()

    try:
        while (await server.scrape()).value("stepdial_num_samples_running") < LONG_REQUESTS:
            await asyncio.wait(clients, timeout=0.05)
            look()
        yield
        look()
    finally:
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)


async def _long(server: Host, steps: int, seed: int) -> None:
    """Ask for long images, one after another, until cancelled."""
    wishes = server.wishes(str(steps), seed)
    while True:
        status, _, data = await server.client.post(wishes.next()[1])
        if status != 200:
            raise RuntimeError(f"{status}: {data[:300]!r}")


def _network(server: Host, steps: int) -> str:
    positions = {position["steps"]: position["student"] for position in server.served["data"][0]["positions"]}
    return str(positions[steps])


def _answers(beside: Summary) -> Finding:
    return Finding(
        what=f"{beside.total.requests} 1-step requests",
        found=", ".join(f"{count} x {outcome}" for outcome, count in beside.total.outcomes.items()),
        promised="all answered with images",
        kept=beside.total.requests > 0 and set(beside.total.outcomes) == {"200"},
    )


def _p95(alone: Summary, beside: Summary, wave_ms: float, steps: int) -> Finding:
    if alone.total.latency_ms is None or beside.total.latency_ms is None:
        return Finding(what="95 % of the 1-step requests", found="no images", promised="images", kept=False)
    usual, found = alone.total.latency_ms.p95, beside.total.latency_ms.p95
    limit = usual + WAVES * wave_ms
    return Finding(
        what="95 % of the 1-step requests were answered within",
        found=f"{found:.1f} ms; alone {usual:.1f} ms; a whole {steps}-step image takes about {steps * wave_ms:.0f} ms",
        promised=f"{limit:.1f} ms: its time alone and {WAVES} waves of {wave_ms:.1f} ms",
        kept=found <= limit,
    )


def _went_on(waves: float, steps: int) -> Finding:
    return Finding(
        what=f"{LONG_REQUESTS} clients that ask for {steps} steps",
        found=f"{waves:.0f} of their waves meanwhile",
        promised="always at work",
        kept=waves > 0,
    )
