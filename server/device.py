"""The device as the event loop sees it: what draws, a wave on its way, and the threads between the two."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol

from server.pace import Timing
from server.samples import Turn, Underway
from server.tickets import Need, Ticket

THREADS = "stepdial-device"
"""How the names of the threads begin."""


class Device(Protocol):
    """What draws; both methods run on the one device thread."""

    def prepare(self) -> Iterable[Timing]:
        """Get ready to draw and return what waves took while warming up. Raises when the networks cannot be trusted to."""

    def wave(self, turns: Sequence[Turn]) -> Sequence[Any] | Underway:
        """Take one evaluation of each turn, all of one need; return the next latents, or for last turns the images.

        A turn that asks for a preview gets `Previewed`. An asynchronous device may return the wave as `Underway`. Raises
        DeviceLost when no further wave will work, OutOfMemory when a smaller one would, anything else when only this
        wave failed.
        """


@dataclass(slots=True, eq=False)
class Wave:
    """Samples whose next evaluation has one need, on their way through the device."""

    need: Need
    tickets: list[Ticket]
    expected_seconds: float = 0.0
    """How long it should take."""
    began: float | None = None
    """When the device thread took it up, or later the one before it landed; None while it stands ready."""
    is_retry: bool = False
    """Whether it is part of a wave that was too large."""

    def seconds_left(self, now: float) -> float:
        """Return how long it should still take, less than 0 when it is late."""
        return (self.began or now) + self.expected_seconds - now

    def go_on_alone(self, now: float) -> None:
        """Begin to count: the wave before has landed, and the device has no other."""
        self.began = self.began and max(self.began, now)

    def parts(self) -> list[Wave]:
        """Return its two halves, to be tried once more; a single sample is tried as it is."""
        half = (len(self.tickets) + 1) // 2
        parts = (self.tickets[:half], self.tickets[half:])
        return [Wave(self.need, tickets, is_retry=True) for tickets in parts if tickets]


class DeviceThread:
    """Hands waves to the device on one thread, and waits on another for those that an asynchronous device has taken."""

    def __init__(self, device: Device):
        self._device = device
        self._hand = ThreadPoolExecutor(1, THREADS)
        self._wait = ThreadPoolExecutor(1, THREADS)
        self._last_end = 0.0

    async def prepare(self) -> Iterable[Timing]:
        """Get the device ready; returns and raises what it does."""
        return await asyncio.get_running_loop().run_in_executor(self._hand, self._device.prepare)

    async def run(self, wave: Wave) -> tuple[list[tuple[Ticket, Turn, Any]], float]:
        """Return each sample's turn and its result, and the seconds the wave had the device. Raises what the device does.

        Samples whose callers have gone by the time the device takes the wave up are left out.
        """
        loop = asyncio.get_running_loop()
        boarded, results = await loop.run_in_executor(self._hand, self._take_up, wave)
        if isinstance(results, Underway):
            results = await loop.run_in_executor(self._wait, results.wait)
        ended = perf_counter()
        began = max(wave.began or ended, self._last_end)  # handed over early, it waited for the one before
        self._last_end = ended
        landed = [(ticket, turn, result) for (ticket, turn), result in zip(boarded, results, strict=True)]
        return landed, ended - began

    def close(self) -> None:
        """Take no further wave; does not wait for one that is under way."""
        for thread in (self._hand, self._wait):
            thread.shutdown(wait=False, cancel_futures=True)

    def _take_up(self, wave: Wave) -> tuple[list[tuple[Ticket, Turn]], Sequence[Any] | Underway]:
        """Runs on the device thread."""
        wave.began = perf_counter()
        boarded = [(ticket, ticket.turn) for ticket in wave.tickets if not ticket.image.done()]
        return boarded, self._device.wave([turn for _, turn in boarded]) if boarded else []
