"""Closed-loop clients of one server, and the curves of steps and of concurrency that they measure."""

from collections.abc import Mapping
from random import Random
from typing import Any

from benchmarks.checks.host import Host
from benchmarks.growth.budget import Budget
from benchmarks.growth.result import Point, Tally
from benchmarks.load.client import Client, NotServed
from benchmarks.load.loops import Extent, closed_loop, unwatched
from benchmarks.load.summary import Summary, summarise
from benchmarks.load.wishes import Wishes

STEPS = 4
"""Of the requests whose number grows."""


async def load(
    client: Client, model: Mapping[str, Any], *, steps: int, clients: int, budget: Budget, seed: int, **fields: Any
) -> Summary:
    """Return what came of so many clients who ask a family for one dial position. Raises NotServed for any failure."""
    wishes = Wishes(model, {steps: 1.0}, Random(seed), **fields)
    run = await closed_loop(client, wishes, clients, budget.extent, unwatched)
    if not any(answer.done <= run.end for answer in run.counted):  # so busy a machine that nothing came in time
        run = await closed_loop(client, wishes, clients, Extent(warmup_seconds=0.0, requests=clients), unwatched)
    found = summarise(run, rate=None, clients=clients, slo=None)
    if set(found.total.outcomes) != {"200"}:
        what = ", ".join(f"{count} x {outcome}" for outcome, count in found.total.outcomes.items())
        raise NotServed(f"{clients} clients at {steps} steps were answered with {what}, not with images alone")
    return found


async def steps_and_clients(host: Host, budget: Budget) -> list[Point]:
    """Return the curves of a lone client by dial position, of one dial position by clients, and of exact beside fast mode."""
    by_steps, by_clients, prices = Tally("steps"), Tally("clients"), Tally("exact")
    model = host.served["data"][0]
    for number in range(budget.rounds):
        for steps in (steps for steps in budget.steps if steps in host.positions):
            found = await load(host.client, model, steps=steps, clients=1, budget=budget, seed=number)
            by_steps.add(steps, _times(found))
        for clients in budget.clients:
            modes = ("exact", "fast") if clients in budget.exact else ("exact",)
            both = {
                mode: await load(
                    host.client, model, steps=STEPS, clients=clients, budget=budget, seed=number, determinism=mode
                )
                for mode in (modes if number % 2 == 0 else modes[::-1])
            }
            by_clients.add(clients, _crowd(both["exact"]))
            if "fast" in both:
                prices.add(clients, _price(both["exact"], both["fast"]))
    return [*by_steps.points(), *by_clients.points(), *prices.points()]


def _times(found: Summary) -> dict[str, float]:
    assert found.total.latency_ms
    return {"answer, ms": found.total.latency_ms.p50, "device, ms": found.total.stages_ms["device"].p50}


def _crowd(found: Summary) -> dict[str, float]:
    assert found.total.latency_ms
    latency = found.total.latency_ms
    return {"p50, ms": latency.p50, "p95, ms": latency.p95, "images/s": found.images_per_second}


def _price(exact: Summary, fast: Summary) -> dict[str, float]:
    assert exact.total.latency_ms and fast.total.latency_ms
    return {
        "p50, exact ÷ fast": exact.total.latency_ms.p50 / fast.total.latency_ms.p50,
        "images/s, exact ÷ fast": exact.images_per_second / fast.images_per_second,
    }
