"""The scheduler: waiting samples become waves, waves become images. It knows neither torch nor HTTP."""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from time import perf_counter
from typing import Any, Literal, Protocol

from server import metrics
from server.failures import DeviceLost, DrawFailed, NotReady, Overloaded
from server.samples import Sample, Turn

PACE_MEMORY = 0.9
"""Share of the old estimate that a wave leaves in the measured seconds per evaluation."""


class Device(Protocol):
    """What draws; both methods run on the one device thread."""

    def prepare(self) -> None:
        """Get ready to draw. Raises when the networks cannot be trusted to."""

    def wave(self, turns: Sequence[Turn]) -> Sequence[Any]:
        """Take one hop of each turn, all of one network; return the next latents, or for last turns the images.

        Raises DeviceLost when no further wave will work, anything else when only this wave failed.
        """


@dataclass(frozen=True, slots=True)
class Drawn:
    """A finished image."""

    pixels: Any
    """What the device returned for the last hop: uint8 (H, W, C)."""
    queue_seconds: float
    """Time spent waiting for a wave, before the first and between two."""
    device_seconds: float
    """Time spent in waves."""


@dataclass(slots=True, eq=False)
class Ticket:
    """A sample on its way."""

    sample: Sample
    image: asyncio.Future[Drawn]
    order: int
    arrived: float
    number: int = 0
    latent: Any = None
    device_seconds: float = 0.0
    preview: Callable[[int, Any], None] | None = None

    @property
    def pending(self) -> int:
        """Evaluations still to come."""
        return self.sample.evaluations - self.number


@dataclass(slots=True)
class Lane:
    """The samples whose next hop needs the same network, oldest first."""

    since: int
    """When the lane was last served or, if later, last became non-empty; counted in events, not seconds."""
    heap: list[tuple[int, Ticket]] = field(default_factory=list)


class Scheduler:
    """Draws samples in waves; samples join and leave at every wave.

    All state belongs to the event loop; only the device's methods run elsewhere, on one thread. There is no batching
    delay: while the device works, the next wave grows. The lane that has waited longest is next, so no lane is served
    twice while another waits, and a 1-step sample never waits for all of a 512-step one; inside a lane the oldest
    samples go first. Every accepted sample gets exactly one answer: its image, an error, or its caller's cancellation.
    """

    def __init__(self, device: Device, *, max_wave: int, max_evaluations: int):
        self.state: Literal["starting", "ready", "stopped"] = "starting"
        self.max_evaluations = max_evaluations
        self._device = device
        self._max_wave = max_wave
        self._lanes: dict[str, Lane] = {}
        self._unanswered: set[Ticket] = set()
        self._pace: dict[str, float] = {}
        self._orders, self._events = count(), count()
        self._arrival = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "device")

    @property
    def evaluations(self) -> int:
        """Evaluations that accepted samples still need."""
        return sum(ticket.pending for ticket in self._unanswered)

    @property
    def backlog_seconds(self) -> float:
        """How long the device will need for them, from the measured pace of each network."""
        pending = Counter(hop.member for ticket in self._unanswered for hop in ticket.sample.plan.hops[ticket.number :])
        return sum(evaluations * self._pace.get(member, 0.0) for member, evaluations in pending.items())

    async def draw(
        self, samples: Sequence[Sample], *, preview: Callable[[int, int, Any], None] | None = None
    ) -> list[Drawn]:
        """Return the images of all samples, or raise for all of them; cancel this to drop the work.

        preview(index in samples, hops taken, pixels uint8 (H, W, C)) is called after every hop but a sample's last.
        Raises NotReady, Overloaded (all or none are accepted), DrawFailed, DeviceLost.
        """
        if self.state != "ready":
            raise NotReady if self.state == "starting" else DeviceLost("the device has stopped")
        if self.evaluations + sum(sample.evaluations for sample in samples) > self.max_evaluations:
            raise Overloaded(self.backlog_seconds)
        loop, now = asyncio.get_running_loop(), perf_counter()
        tickets = [Ticket(sample, loop.create_future(), next(self._orders), now) for sample in samples]
        if preview:
            for index, ticket in enumerate(tickets):
                ticket.preview = partial(preview, index)
        self._unanswered.update(tickets)
        for ticket in tickets:
            self._enqueue(ticket)
        try:
            return await asyncio.gather(*(ticket.image for ticket in tickets))
        finally:
            for ticket in tickets:
                ticket.image.cancel()
            self._unanswered.difference_update(tickets)

    async def run(self) -> None:
        """Prepare the device, then draw until cancelled or the device is lost. Answers everyone before it ends."""
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._thread, self._device.prepare)
            self.state = "ready"
            while True:
                await self._run_wave(await self._next_wave())
        finally:
            self.state = "stopped"
            for ticket in self._unanswered:
                _fail(ticket, DeviceLost("the device has stopped"))
            self._thread.shutdown(wait=False, cancel_futures=True)

    def _enqueue(self, ticket: Ticket) -> None:
        member = ticket.sample.plan.hops[ticket.number].member
        lane = self._lanes.setdefault(member, Lane(0))
        if not lane.heap:
            lane.since = next(self._events)
        heapq.heappush(lane.heap, (ticket.order, ticket))
        self._arrival.set()

    async def _next_wave(self) -> list[Ticket]:
        while True:
            for lane in sorted((lane for lane in self._lanes.values() if lane.heap), key=lambda lane: lane.since):
                wave: list[Ticket] = []
                while lane.heap and len(wave) < self._max_wave:
                    ticket = heapq.heappop(lane.heap)[1]
                    if ticket.image.done():  # its caller has gone
                        metrics.WASTED_EVALUATIONS.labels("cancelled").inc(ticket.number)
                    else:
                        wave.append(ticket)
                lane.since = next(self._events)
                if wave:
                    return wave
            self._arrival.clear()
            await self._arrival.wait()

    async def _run_wave(self, wave: list[Ticket]) -> None:
        member = wave[0].sample.plan.hops[wave[0].number].member
        turns = [Turn(ticket.sample, ticket.number, ticket.latent, bool(ticket.preview)) for ticket in wave]
        began = perf_counter()
        try:
            results = await asyncio.get_running_loop().run_in_executor(self._thread, self._device.wave, turns)
            self._measure(member, len(wave), perf_counter() - began)
            for ticket, turn, result in zip(wave, turns, results, strict=True):
                self._advance(ticket, turn, result, perf_counter() - began)
        except DeviceLost as error:
            self._fail_wave(wave, error)
            raise
        except Exception as error:
            failure = DrawFailed("the device could not run this wave")
            failure.__cause__ = error
            self._fail_wave(wave, failure)

    def _advance(self, ticket: Ticket, turn: Turn, result: Any, seconds: float) -> None:
        ticket.number += 1
        ticket.device_seconds += seconds
        if ticket.image.done():
            metrics.WASTED_EVALUATIONS.labels("cancelled").inc(ticket.number)
        elif turn.is_last:
            waited = perf_counter() - ticket.arrived - ticket.device_seconds
            ticket.image.set_result(Drawn(result, max(0.0, waited), ticket.device_seconds))
        else:
            if ticket.preview:
                result, pixels = result
                ticket.preview(ticket.number, pixels)
            ticket.latent = result
            self._enqueue(ticket)

    def _fail_wave(self, wave: Sequence[Ticket], error: Exception) -> None:
        for ticket in wave:
            metrics.WASTED_EVALUATIONS.labels("failed").inc(ticket.number + 1)
            _fail(ticket, error)

    def _measure(self, member: str, samples: int, seconds: float) -> None:
        pace = seconds / samples
        self._pace[member] = PACE_MEMORY * self._pace.get(member, pace) + (1 - PACE_MEMORY) * pace
        metrics.WAVE_SECONDS.labels(member).observe(seconds)
        metrics.WAVE_SAMPLES.labels(member).observe(samples)
        metrics.DEVICE_SECONDS.labels(member).inc(seconds)

    def publish(self) -> None:
        """Set the gauges of what is waiting; called when metrics are read, since nobody looks at them between."""
        waiting = sum(ticket.number == 0 for ticket in self._unanswered)
        metrics.READY.set(self.state == "ready")
        metrics.PENDING_LIMIT.set(self.max_evaluations)
        metrics.SAMPLES_WAITING.set(waiting)
        metrics.SAMPLES_RUNNING.set(len(self._unanswered) - waiting)
        metrics.PENDING_EVALUATIONS.set(self.evaluations)
        metrics.BACKLOG_SECONDS.set(self.backlog_seconds)


def _fail(ticket: Ticket, error: Exception) -> None:
    if not ticket.image.done():
        ticket.image.set_exception(error)
