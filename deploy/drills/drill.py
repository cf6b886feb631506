"""From a drill's name to its result file."""

import asyncio
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import astuple

import aiohttp

from benchmarks.load.client import Client
from deploy.drills.faults import DRILLS
from deploy.drills.load import Load
from deploy.drills.orders import Order
from deploy.drills.promises import findings
from deploy.drills.result import Attempted, DrillResult, jobs_of, recovery_of, requests_of
from deploy.drills.scene import Scene
from deploy.drills.settings import DrillName, DrillSettings
from deploy.drills.stack import Stack, within
from diffusion import provenance

TIMEOUT_SECONDS = 150.0
"""When a client gives up: later than the balancer does."""
COMPARED = 8
"""How many results are drawn once more by POST /generate, those first that were begun more than once."""


async def drill(name: DrillName, stack: Stack, settings: DrillSettings) -> DrillResult:
    """Run a drill on a stack that is up, and leave it whole. Raises StackBroken, Unexpected."""
    chosen, began_at = DRILLS[name], provenance.now()
    commit = provenance.commit()
    async with Client(stack.url, timeout_seconds=TIMEOUT_SECONDS) as client:
        served = await client.models()
        load = Load(client, served["data"][0], settings)
        scene = Scene(stack, client, load, settings)
        async with scene.watched():
            await scene.whole()
            print(f"{name}: {chosen.does}", flush=True)
            async with load:
                await asyncio.sleep(settings.seconds)
                await chosen.fault(scene)
                await scene.whole()
                scene.mark("all is whole")
                lines = await stack.log_lines(stack.replicas[0])
                await asyncio.sleep(settings.seconds)
            compared, wrong = await fetch_again(load.orders, settings.patience)
    requests, recovery = requests_of(load.answers, scene), recovery_of(load.answers, scene)
    jobs, orders = jobs_of(load.orders, compared, wrong), Attempted.of(order.orders for order in load.orders)
    lines = await stack.log_lines(stack.replicas[0]) - lines
    found = findings(
        chosen, requests=requests, orders=orders, jobs=jobs, recovery=recovery, lines=lines, in_hand=scene.in_hand
    )
    return DrillResult(
        findings=found,
        numbers={},
        server=served["server"],
        check=name,
        kept=all(finding.kept for finding in found),
        command=shlex.join(["python", "-m", "deploy.drills", *sys.argv[1:]]),
        note=settings.note,
        measured_at=began_at,
        family=served["data"][0]["name"],
        stack=stack.kind,
        does=chosen.does,
        commit=commit,
        machine=f"{provenance.processor()}, {len(os.sched_getaffinity(0))} core(s)",
        versions=await stack.versions() | {"python": platform.python_version(), "aiohttp": aiohttp.__version__},
        settings=settings.model_dump(mode="json", exclude={"family", "results", "file", "note", "names"}),
        replicas=len(stack.replicas),
        fewest_replicas=scene.watch.fewest or 0,
        balancer_retries=int(scene.watch.retries),
        requests=requests,
        orders=orders,
        looks=Attempted.of(order.looks for order in load.orders),
        jobs=jobs,
        recovery=recovery,
        moments=tuple(astuple(moment) for moment in scene.moments),
    )


async def fetch_again(orders: Sequence[Order], patience: float) -> tuple[int, int]:
    """Order and fetch everything that is done once more, then draw some of it; return how many, and how many differ.

    Each may take as long as `patience`. Raises StackBroken, Unexpected.
    """
    done, wrong = [order for order in orders if order.state == "done"], 0
    for order in done:
        async with within(patience, f"the result of {order.ids[-1]}, ordered and fetched once more"):
            await order.repeat()
    picked = sorted(done, key=lambda order: -order.begun)[:COMPARED]
    for order in picked:
        async with within(patience, f"POST /generate of what {order.ids[-1]} had drawn"):
            wrong += await order.drawn() not in order.results
    return len(picked), wrong
