"""The meter of Redis: what happens in it between two moments."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from statistics import fmean, stdev

from redis.asyncio import Redis as Client

from benchmarks.scale.costs import Measured, Redis
from benchmarks.scale.visitor import end, undisturbed

CPU = ("used_cpu_user_main_thread", "used_cpu_sys_main_thread")
ROUNDS = 5
"""How often everything is measured."""
SETTLE_SECONDS = 0.3
"""What is left to happen after the last answer: Redis's own clean-up, answers on their way."""


@dataclass(frozen=True, slots=True)
class Count:
    """Sums of what Redis did."""

    calls: float = 0.0
    bytes_in: float = 0.0
    bytes_out: float = 0.0
    cpu_seconds: float = 0.0
    seconds: float = 0.0
    beats: float = 0.0
    """How often replicas asked how many jobs there are, which each does twice a second."""

    def less(self, other: "Count", times: float = 1.0) -> "Count":
        """Return the difference to so many times the other."""
        return Count(*(getattr(self, name) - times * getattr(other, name) for name in Count.__slots__))

    def over(self, number: float) -> "Count":
        """Return a part of it."""
        return Count(*(getattr(self, name) / number for name in Count.__slots__))


def summed(values: list[float]) -> Measured:
    """Return the mean and spread of a number over its rounds."""
    return Measured(mean=fmean(values), spread=stdev(values) if len(values) > 1 else 0.0, rounds=len(values))


class Meter:
    """Reads a Redis, over a connection of its own, and takes out what reading costs and what happens all the time."""

    def __init__(self, client: Client):
        self.client = client
        self._own = Count()
        self._always, self._always_sent = Count(), 0.0

    async def calibrate(self, seconds: float) -> None:
        """Learn what reading costs, and take what happens from now on for so many seconds as what happens all the time."""
        self._own, self._always, self._always_sent = Count(), Count(), 0.0
        first = await self.look()
        self._own = (await self.look()).less(first)
        always, sent = await self.per_second(seconds), await self._sent(lambda: asyncio.sleep(seconds))
        self._always, self._always_sent = always, sent / (seconds + SETTLE_SECONDS)

    async def look(self) -> Count:
        """Return the sums up to now."""
        found = await self.client.info("everything")
        calls, beats = float(found["total_commands_processed"]), found.get("cmdstat_xlen", {}).get("calls", 0)
        flows = float(found["total_net_input_bytes"]), float(found["total_net_output_bytes"])
        return Count(calls, *flows, sum(float(found[name]) for name in CPU), time.perf_counter(), beats)

    async def during(self, act: Callable[[], Awaitable[None]], *, by_beats: bool = False) -> Count:
        """Return what happened because of the action.

        by_beats: what happens all the time is taken to have happened as often as the replica's beats, which are slower when it is
        busy; otherwise for as long as it took.
        """
        before = await self.look()
        await act()
        await asyncio.sleep(SETTLE_SECONDS)
        all_of_it = (await self.look()).less(before).less(self._own)
        return all_of_it.less(self._always, self._times(all_of_it.seconds, all_of_it.beats if by_beats else None))

    def _times(self, seconds: float, beats: float | None) -> float:
        """How many seconds' worth of what happens all the time has happened."""
        return seconds if beats is None or not self._always.beats else beats / self._always.beats

    async def per_second(self, seconds: float) -> Count:
        """Return what happens in one second of the next."""
        found = await self.during(lambda: asyncio.sleep(seconds))
        return found.over(found.seconds or seconds + SETTLE_SECONDS)

    async def cost(self, act: Callable[[], Awaitable[None]], number: int, *, by_beats: bool = True) -> Redis:
        """Return what one of the `number` things takes that the action does; it is done several times. by_beats: see during."""
        commands = await undisturbed(partial(self._sent, act, by_beats=by_beats)) / number
        rounds = [await undisturbed(partial(self.during, act, by_beats=by_beats)) for _ in range(ROUNDS)]
        counts = [found.over(number) for found in rounds]
        return _as_cost(counts, commands)

    async def cost_per_second(self, seconds: float, number: int = 1) -> Redis:
        """Return what one second takes of each of the `number` things that go on."""
        commands = await self._sent(lambda: asyncio.sleep(seconds)) / (seconds + SETTLE_SECONDS) / number
        counts = [(await self.per_second(seconds)).over(number) for _ in range(ROUNDS)]
        return _as_cost(counts, commands)

    async def _sent(self, act: Callable[[], Awaitable[None]], *, by_beats: bool = False) -> float:
        """Return how many commands clients sent because of it; Redis's monitor tells them from those of scripts."""
        sent, beats, began = 0, 0, time.perf_counter()
        async with self.client.monitor() as monitor:

            async def listen() -> None:
                nonlocal sent, beats
                async for command in monitor.listen():
                    sent += command["client_type"] != "lua"
                    beats += command["command"].startswith("XLEN")

            listening = asyncio.create_task(listen())
            try:
                await act()
                await asyncio.sleep(SETTLE_SECONDS)
            finally:
                await end([listening])
        return sent - self._always_sent * self._times(time.perf_counter() - began, beats if by_beats else None)


def _as_cost(counts: list[Count], commands: float) -> Redis:
    return Redis(
        commands=round(commands, 3),
        calls=round(fmean(count.calls for count in counts), 3),
        bytes_in=round(fmean(count.bytes_in for count in counts), 1),
        bytes_out=round(fmean(count.bytes_out for count in counts), 1),
        cpu_seconds=summed([count.cpu_seconds for count in counts]),
    )
