"""Loops against real HTTP servers that behave badly: what is measured is what a user would have waited."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from benchmarks.load.arrivals import arrivals
from benchmarks.load.client import Client
from benchmarks.load.loops import Extent, Run, Tick, closed_loop, open_loop, unwatched
from benchmarks.load.summary import summarise
from benchmarks.load.wishes import Wishes

MODEL = {"name": "bad", "conditioning": {"kind": "none"}}
PNG = "iVBORw0KGgoAAAANSUhEUg=="
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def image(**fields: Any) -> web.Response:
    """An answer with an image."""
    return web.json_response({"steps_used": 4, "data": [{"b64_json": PNG}]} | fields)


def load(
    handler: Handler, extent: Extent, *, rate: float = 0, clients: int = 0, timeout: float = 10, tick: Tick = unwatched
) -> Run:
    """Let a loop run against a server with this handler."""

    async def main() -> Run:
        app = web.Application()
        app.router.add_post("/generate", handler)
        wishes = Wishes(MODEL, {4: 1.0}, Random(1))
        async with TestServer(app) as server, Client(str(server.make_url("/")), timeout_seconds=timeout) as client:
            if clients:
                return await closed_loop(client, wishes, clients, extent, tick)
            return await open_loop(client, wishes, arrivals("constant", rate, Random(1)), extent, tick)

    return asyncio.run(main())


def test_a_server_that_stands_still_makes_everybody_late_who_should_have_been_served_meanwhile() -> None:
    opens: list[float] = []

    async def stalled(_: web.Request) -> web.Response:
        opens.append(opens[0] if opens else time.monotonic() + 0.5)  # nobody is answered before
        await asyncio.sleep(max(0.0, opens[0] - time.monotonic()))
        return image()

    run = load(stalled, Extent(0.0, requests=20), rate=100)
    by_due = sorted(run.answers, key=lambda answer: answer.scheduled)
    assert len(opens) == len(run.answers) == 20  # a closed loop would have sent one
    for answer in by_due:
        assert answer.latency >= 0.5 - (answer.scheduled - by_due[0].scheduled) - 0.02


def test_a_client_that_is_late_counts_its_own_lateness_and_says_so() -> None:
    async def quick(_: web.Request) -> web.Response:
        return image()

    def asleep(*_: Any) -> None:
        time.sleep(0.3)

    run = load(quick, Extent(0.0, seconds=0.8), rate=50, tick=asleep)
    late = [answer for answer in run.answers if answer.sent - answer.scheduled > 0.1]
    assert late and all(answer.latency >= answer.sent - answer.scheduled for answer in late)
    assert summarise(run, rate=50, clients=None, slo=None).client.saturated


def test_a_closed_loop_has_no_more_in_flight_than_clients_and_no_fewer() -> None:
    inside, most = 0, []

    async def counted(_: web.Request) -> web.Response:
        nonlocal inside
        inside += 1
        most.append(inside)
        await asyncio.sleep(0.02)
        inside -= 1
        return image()

    run = load(counted, Extent(0.0, requests=30), clients=3)
    assert max(most) == 3 and len(run.counted) == 30


def test_a_refused_client_of_a_closed_loop_comes_back_when_it_was_told_to() -> None:
    asked: list[float] = []

    async def refusing_once(_: web.Request) -> web.Response:
        asked.append(time.monotonic())
        return image() if len(asked) > 1 else web.Response(status=503, headers={"Retry-After": "1"})

    run = load(refusing_once, Extent(0.0, requests=2), clients=1)
    assert asked[1] - asked[0] >= 1
    assert [(answer.outcome, answer.retry_after) for answer in run.answers] == [("503", 1.0), ("200", None)]


def test_every_way_to_end_has_its_outcome() -> None:
    number = 0

    async def bad(request: web.Request) -> web.StreamResponse:
        nonlocal number
        number += 1
        if number == 1:
            await asyncio.sleep(2.5)
        if number == 2:
            assert request.transport is not None
            request.transport.abort()
        answers = {3: image(data=[]), 4: image(data=[{"b64_json": "bm90IGFuIGltYWdl"}]), 5: web.Response(status=500)}
        return answers.get(number, image())

    run = load(bad, Extent(0.0, requests=6), rate=50, timeout=2)
    assert sorted(answer.outcome for answer in run.answers) == [
        "200", "500", "connection", "no-image", "no-image", "timeout",
    ]  # fmt: skip


def test_the_warm_up_is_load_but_does_not_count() -> None:
    async def quick(_: web.Request) -> web.Response:
        return image()

    run = load(quick, Extent(0.3, seconds=0.5), rate=100)
    assert len(run.answers) == pytest.approx(80, abs=2) and len(run.counted) == pytest.approx(50, abs=2)
    assert summarise(run, rate=100, clients=None, slo=None).total.requests == len(run.counted)
