"""Clients that leave: their work is dropped at the next wave, and counted."""

import asyncio
from random import Random
from time import perf_counter

from benchmarks.checks.host import Host, Scrape, host
from benchmarks.checks.settings import CheckSettings
from benchmarks.checks.verdict import Finding, Findings
from benchmarks.load.arrivals import arrivals
from benchmarks.load.loops import Extent, open_loop, unwatched
from benchmarks.load.summary import Summary, summarise

STEPS = 64
"""Long enough for clients to leave in the middle, or the nearest position."""
RATE = 4.0
"""Clients a second that will leave."""
PATIENCE_SECONDS = (0.05, 0.5)
"""Between these they leave."""
STAYING_RATE = 1.0
"""1-step requests a second whose clients stay."""
FREED_SECONDS = 2.0
"""Within this time of the last departure nothing may be pending any more."""


async def disconnects(settings: CheckSettings) -> Findings:
    """Let clients leave while others stay, then read the metrics until nothing is pending."""
    async with host(settings.family) as server:
        steps = min(server.positions, key=lambda position: abs(position - STEPS))
        staying = asyncio.create_task(_stay(server, settings.seconds))
        left, stayed = await _leave(server, steps, settings.seconds)
        summary = await staying
        freed = await _freed(server)
        after = await server.scrape()
    return Findings(
        findings=(*_dropped(after, left, stayed, steps), _freed_in_time(freed), _undisturbed(summary)),
        numbers={"left": left, "answered_before_leaving": stayed, "stayed": summary.model_dump(mode="json")},
        server=server.served["server"],
    )


def _dropped(after: Scrape, left: int, stayed: int, steps: int) -> tuple[Finding, Finding]:
    cancelled = after.value("stepdial_requests_total", outcome="cancelled")
    # an image may be ready in the very moment its client leaves: that request was answered, to nobody
    answered = after.value("stepdial_requests_total", outcome="ok", steps=str(steps))
    wasted = after.value("stepdial_wasted_evaluations_total", reason="cancelled")
    return (
        Finding(
            what=f"{left + stayed} requests of {steps} steps, {left} of whose clients left",
            found=f"{cancelled:.0f} counted as cancelled, {answered:.0f} as answered",
            promised=f"{left} and {stayed}, but for images ready as their clients left; one cancelled at least",
            kept=0 < cancelled <= left and cancelled + answered == left + stayed,
        ),
        Finding(
            what="evaluations done for clients that left",
            found=f"{wasted:.0f} of {left * steps} that they asked for",
            promised="counted, and fewer than asked for",
            kept=0 < wasted < left * steps,
        ),
    )


def _freed_in_time(seconds: float | None) -> Finding:
    return Finding(
        what="after the last one left, until nothing was pending",
        found="never" if seconds is None else f"{seconds:.2f} s",
        promised=f"{FREED_SECONDS:g} s",
        kept=seconds is not None and seconds <= FREED_SECONDS,
    )


def _undisturbed(stayed: Summary) -> Finding:
    return Finding(
        what=f"{stayed.total.requests} requests whose clients stayed",
        found=", ".join(f"{count} x {outcome}" for outcome, count in stayed.total.outcomes.items()),
        promised="all answered with images",
        kept=set(stayed.total.outcomes) == {"200"},
    )


async def _leave(server: Host, steps: int, seconds: float) -> tuple[int, int]:
    """Send requests and leave them; return how many were left, and how many were answered first."""
    random, wishes, began = Random(1), server.wishes(str(steps), seed=1), perf_counter()
    leaving = []
    for at in arrivals("poisson", RATE, random):
        if at >= seconds:
            break
        await asyncio.sleep(max(0.0, began + at - perf_counter()))
        patience = random.uniform(*PATIENCE_SECONDS)
        leaving.append(asyncio.create_task(server.client.leave(wishes.next()[1], patience)))
    left = await asyncio.gather(*leaving)
    return sum(left), len(left) - sum(left)


async def _stay(server: Host, seconds: float) -> Summary:
    times, extent = arrivals("constant", STAYING_RATE, Random(2)), Extent(warmup_seconds=0.0, seconds=seconds)
    run = await open_loop(server.client, server.wishes("1", seed=2), times, extent, unwatched)
    return summarise(run, rate=STAYING_RATE, clients=None, slo=None)


async def _freed(server: Host) -> float | None:
    """Seconds until nothing is pending; None if that takes a minute."""
    began = perf_counter()
    while (await server.scrape()).value("stepdial_pending_evaluations") > 0:
        if perf_counter() - began > 60:
            return None
        await asyncio.sleep(0.02)
    return perf_counter() - began
