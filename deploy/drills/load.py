"""The load of a drill: clients who ask for images at random times and wait, and clients who order them."""

import asyncio
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import replace
from math import inf
from random import Random
from time import perf_counter
from types import TracebackType
from typing import Any

from benchmarks.load.arrivals import arrivals
from benchmarks.load.client import Answer, Client
from benchmarks.load.loops import Extent, Run, closed_loop, open_loop, unwatched
from benchmarks.load.wishes import Steps, Wishes, weights
from deploy.drills.orders import Order
from deploy.drills.settings import DrillSettings
from deploy.drills.stack import StackBroken

FLOOD_MIX: dict[Steps, float] = {1: 6.0, 2: 3.0, 4: 1.0}
"""What an overload asks for, as far as it is served."""
CAPACITY_CLIENTS = 12
"""Clients of a closed loop that keep the stack busy."""


def refused(answer: Answer) -> bool:
    """Return whether a request was refused in the way that clients can work with."""
    return answer.outcome in ("429", "503") and answer.retry_after is not None


class Load:
    """Requests and orders at random times, inside the block and until they all are answered.

    Raises StackBroken where a mix has a position that is not served.
    """

    def __init__(self, client: Client, model: dict[str, Any], settings: DrillSettings):
        self._client, self._model, self._settings = client, model, settings
        self._served = {position["steps"] for position in model["positions"]}
        self._wanted = self._wishes(weights(settings.mix), 1)
        self._ordered = self._wishes(weights(settings.job_mix), 6)
        self._stopped = False
        self.began = perf_counter()
        self.answers: list[Answer] = []
        """Of POST /generate; none is asked for twice."""
        self.orders: list[Order] = []

    async def __aenter__(self) -> "Load":
        times = self._until_stopped(arrivals("poisson", self._settings.rate, Random(2)))
        self.began = perf_counter()  # not before: the stack may have been waited for
        self._asking = asyncio.create_task(open_loop(self._client, self._wanted, times, Extent(0.0, inf), unwatched))
        self._ordering = asyncio.create_task(self._order())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._stopped = True
        if kind is not None:
            self._asking.cancel()
            self._ordering.cancel()
        _, asked = await asyncio.gather(self._ordering, self._asking, return_exceptions=kind is not None)
        if isinstance(asked, Run):
            self.answers += asked.answers

    async def capacity(self, seconds: float) -> float:
        """Return how many requests of an overload are answered a second when there always are some.

        Of its answers only failures are counted among those of the load. Raises StackBroken where nothing is answered well.
        """
        later, wishes = perf_counter() - self.began, self._flood_wishes(3)
        run = await closed_loop(self._client, wishes, CAPACITY_CLIENTS, Extent(0.0, seconds), unwatched)
        self.answers += _moved((answer for answer in run.answers if not answer.ok and not refused(answer)), later)
        good = sum(answer.ok for answer in run.answers)
        if not good:
            outcomes = ", ".join(sorted({answer.outcome for answer in run.answers}))
            raise StackBroken(
                f"what the stack can do was not found: none of {len(run.answers)} requests got an image ({outcomes or 'none sent'})"
            )
        return good / max(answer.done for answer in run.answers)

    async def flood(self, rate: float, seconds: float, *, allow_degrade: bool) -> None:
        """Offer so many further requests a second, and wait until each is answered."""
        later = perf_counter() - self.began
        wishes = self._flood_wishes(4, allow_degrade=allow_degrade)
        times = arrivals("poisson", rate, Random(5))
        run = await open_loop(self._client, wishes, times, Extent(0.0, seconds), unwatched)
        self.answers += _moved(run.answers, later)

    def _flood_wishes(self, seed: int, **fields: Any) -> Wishes:
        mix = {steps: weight for steps, weight in FLOOD_MIX.items() if steps in self._served}
        return self._wishes(mix or FLOOD_MIX, seed, **fields)

    def _wishes(self, mix: dict[Steps, float], seed: int, **fields: Any) -> Wishes:
        if missing := [str(steps) for steps in mix if steps not in self._served]:
            served = ", ".join(map(str, sorted(self._served)))
            raise StackBroken(f"{self._model['name']} does not serve {', '.join(missing)} steps; it serves {served}")
        return Wishes(self._model, mix, Random(seed), **fields)

    def _until_stopped(self, times: Iterator[float]) -> Iterator[float]:
        for at in times:
            if self._stopped:
                return
            yield at

    async def _order(self) -> None:
        """Order at random times; once stopped, wait for every result, but not for ever."""
        random = Random(7)
        try:
            async with asyncio.timeout(None) as patience, asyncio.TaskGroup() as group:
                for at in self._until_stopped(arrivals("poisson", self._settings.job_rate, random)):
                    await asyncio.sleep(max(0.0, self.began + at - perf_counter()))
                    body = self._ordered.next()[1] | {"seed": secrets.randbelow(2**53), "determinism": "exact"}
                    self.orders.append(Order(self._client, body, secrets.token_hex(16), self.began))
                    group.create_task(self.orders[-1].run())
                patience.reschedule(asyncio.get_running_loop().time() + self._settings.patience)
        except TimeoutError:
            pass
        except ExceptionGroup as errors:  # one is enough to end a drill, and says what is wrong
            raise errors.exceptions[0] from None


def _moved(answers: Iterable[Answer], later: float) -> Iterator[Answer]:
    """Yield the answers of a run that began so much later than the load, in the time of the load."""
    for answer in answers:
        yield replace(answer, scheduled=answer.scheduled + later, sent=answer.sent + later, done=answer.done + later)
