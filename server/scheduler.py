"""The scheduler: waiting samples become waves, waves become images. It knows neither torch nor HTTP."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import count
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

from server import metrics
from server.device import Device, DeviceThread, Wave
from server.failures import DeviceLost, DrawFailed, NotReady, OutOfMemory, Overloaded
from server.lanes import PATIENCE, Lane, Lanes
from server.load import Load
from server.pace import Pace
from server.samples import Sample, Turn
from server.tickets import Drawn, Hurry, Preview, Progress, Ticket, rest

if TYPE_CHECKING:
    from diffusion.plans import Plan

log = logging.getLogger(__name__)

LEAD_SECONDS = 0.002
"""How long before a wave should end the next one is cut: late, so that it can grow, but before the device would wait."""
LEAD_SHARE = 0.25
"""The same for a wave that is full, as a share of the one before: nobody can join it any more, and a device that works
in parts begins it where the other's last part leaves room."""
HANG_FACTOR = 10
"""A wave that takes so many times what was expected, and longer than hang_seconds, will never end."""

State = Literal["starting", "ready", "draining", "stopped"]


class Scheduler:
    """Draws samples in waves; samples join and leave at every wave.

    All state belongs to the event loop; only the device's methods run elsewhere. There is no batching delay: while the
    device works, the next wave grows. Who is next is decided in `lanes`. While one wave runs a second stands ready, cut
    just before the first should end. Every accepted sample gets exactly one answer: its image, an error, or its
    caller's cancellation.
    """

    def __init__(self, device: Device, *, max_wave: int, max_evaluations: int, hang_seconds: float = 60.0):
        self.state: State = "starting"
        self.max_evaluations = max_evaluations
        self.pace = Pace(max_wave)
        """What waves take, kept up to date."""
        self.leaving = False
        """Whether the server is about to end: balancers should look elsewhere, though it may still take work."""
        self.shorten_all = False
        """Whether samples that have alternatives are to end as soon as these allow, promised or not."""
        self._hang_seconds = hang_seconds
        self._thread = DeviceThread(device)
        self._lanes = Lanes(max_wave)
        self._unanswered: set[Ticket] = set()
        self._waves: dict[Wave, asyncio.Task[None]] = {}
        self._orders = count()
        self._look = asyncio.Event()
        """Set when there may be something to do."""
        self._answered = asyncio.Event()
        """Set when nobody is left unanswered."""
        self._known_load: Load | None = None

    @property
    def evaluations(self) -> int:
        """Evaluations that accepted samples still need."""
        return sum(ticket.pending for ticket in self._unanswered)

    @property
    def backlog_seconds(self) -> float:
        """How long the device will need for them, from the measured pace of each network."""
        return self._load.backlog_seconds

    def predict(self, samples: Sequence[Sample]) -> float:
        """Return in how many seconds these samples would all be drawn if they were accepted now.

        It errs on the long side: everybody who is here goes first. Who comes later is not foreseen.
        """
        return self._load.seconds_until_drawn([rest(sample) for sample in samples])

    async def draw(
        self,
        samples: Sequence[Sample],
        *,
        deadline: float | None = None,
        preview: Preview | None = None,
        progress: Progress | None = None,
        spent: Callable[[int], None] | None = None,
    ) -> list[Drawn]:
        """Return the images of all samples, or raise for all of them; cancel this to drop the work.

        deadline: when they are promised, a time of perf_counter; it orders the waves and lets samples end by one of their
        alternatives, but late images are returned too. preview is called after every hop of a sample but its last,
        progress after every hop, both on the event loop; what they raise fails the sample. spent is called once, however it
        ends, with the evaluations that were begun for the samples.
        Raises NotReady, Overloaded (all or none are accepted), DrawFailed, DeviceLost.
        """
        if self.state != "ready":
            raise self.refusal()
        if self.evaluations + sum(sample.evaluations for sample in samples) > self.max_evaluations:
            raise Overloaded(self.backlog_seconds)
        tickets = [self._ticket(sample, deadline) for sample in samples]
        for place, ticket in enumerate(tickets):
            ticket.place, ticket.preview, ticket.progress = place, preview, progress
        self._unanswered.update(tickets)
        self._enqueue(tickets)
        try:
            return await asyncio.gather(*(ticket.image for ticket in tickets))
        finally:
            self._forget(tickets)
            if spent:
                spent(sum(ticket.boarded for ticket in tickets))

    async def run(self) -> None:
        """Prepare the device, then draw until cancelled or the device is lost. Answers everyone before it ends."""
        try:
            for timing in await self._thread.prepare():
                self.pace.observe(*timing)
            self.state = "ready" if self.state == "starting" else self.state
            while True:
                self._look.clear()
                while wave := self._cut():
                    self._waves[wave] = asyncio.create_task(self._fly(wave))
                    self._waves[wave].add_done_callback(lambda _: self._look.set())
                await self._pause()
        finally:
            self.state = "stopped"
            for ticket in self._unanswered:
                ticket.fail(DeviceLost("the device has stopped"))
            for task in self._waves.values():
                task.cancel()
            await asyncio.gather(*self._waves.values(), return_exceptions=True)
            self._thread.close()

    def leave(self) -> None:
        """Be no longer ready to whoever asks, and take work all the same."""
        self.leaving = True

    async def drain(self, seconds: float) -> None:
        """Refuse new work and return when what was accepted is answered: after so many seconds with NotReady."""
        self.leave()
        if self.state != "stopped":
            self.state = "draining"
        try:
            async with asyncio.timeout(seconds):
                while self._unanswered:
                    self._answered.clear()
                    await self._answered.wait()
        except TimeoutError:
            for ticket in self._unanswered:
                ticket.fail(self.refusal())

    def publish(self) -> None:
        """Set the gauges of what is waiting; called when metrics are read, since nobody looks at them between."""
        waiting = sum(ticket.number == 0 for ticket in self._unanswered)
        metrics.READY.set(self.state == "ready" and not self.leaving)
        metrics.PENDING_LIMIT.set(self.max_evaluations)
        metrics.SAMPLES_WAITING.set(waiting)
        metrics.SAMPLES_RUNNING.set(len(self._unanswered) - waiting)
        metrics.PENDING_EVALUATIONS.set(self.evaluations)
        metrics.BACKLOG_SECONDS.set(self.backlog_seconds)

    def refusal(self) -> Exception:
        """Return why no work is taken: it is not yet, or not any more."""
        if self.state == "stopped":
            return DeviceLost("the device has stopped")
        if self.state == "draining":
            return NotReady("the server is about to end and takes no new work")
        return NotReady("the networks are being loaded, warmed up and checked")

    @property
    def _load(self) -> Load:
        if self._known_load is None:
            self._known_load = Load(self._unanswered, self.pace)
        return self._known_load

    def _ticket(self, sample: Sample, deadline: float | None) -> Ticket:
        image, now = asyncio.get_running_loop().create_future(), perf_counter()
        ticket = Ticket(sample, image, next(self._orders), now, now, deadline)
        if deadline is None:
            full = self.pace.max_wave
            ticket.due += PATIENCE + sum(
                evaluations * self.pace.wave_seconds(need.member, need.guided, full, need.family)
                for need, evaluations in rest(sample).items()
            )
        else:
            ticket.due = max(now, deadline)
        return ticket

    def _enqueue(self, tickets: Sequence[Ticket]) -> None:
        self._known_load, now = None, perf_counter()
        for ticket in tickets:
            if ticket.deadline is not None:
                ticket.start_by = max(
                    now, ticket.deadline - self._load.rest_seconds(rest(ticket.sample, ticket.number))
                )
            self._lanes.put(ticket, now)
        self._look.set()

    def _forget(self, tickets: Sequence[Ticket]) -> None:
        """Drop those that are not answered and count what they cost; who is in a wave is counted again when it lands."""
        for ticket in tickets:
            ticket.image.cancel()
            if ticket.image.cancelled():
                metrics.WASTED_EVALUATIONS.labels("cancelled").inc(ticket.number)
            else:
                ticket.image.exception()  # of several that failed, gather looked at one
            if ticket.pending:
                self._lanes.drop(ticket)
        self._unanswered.difference_update(tickets)
        self._known_load = None
        if not self._unanswered:
            self._answered.set()

    def _cut(self) -> Wave | None:
        """Return the next wave, None where nobody waits or it is better to wait."""
        while (lane := self._lanes.next()) and self._is_time_for(lane):
            tickets = self._board(lane)
            if tickets:
                need = tickets[0].need
                expected = self.pace.wave_seconds(need.member, need.guided, len(tickets), need.family)
                if self.pace.decode_seconds(1, need.family):
                    images = sum(ticket.turn.makes_image for ticket in tickets)
                    expected += self.pace.decode_seconds(images, need.family)
                return Wave(need, tickets, expected)
        return None

    def _is_time_for(self, lane: Lane) -> bool:
        """Whether the lane's wave should be cut now.

        A second wave is cut when it would gain nothing by waiting: the first is about to end, and none of its samples
        could join the second, which is full or not what they need next, or has a promise that is more urgent.
        """
        if not self._waves:
            return True
        if len(self._waves) > 1:
            return False
        (running,) = self._waves
        is_full = len(lane.tickets) >= self._lanes.max_wave
        early, late = self._ahead(running)
        if running.seconds_left(perf_counter()) > (early if is_full else late):
            return False
        pressing = lane.urgency(self._lanes.max_wave) - running.expected_seconds
        going_on = [ticket for ticket in running.tickets if ticket.following is not None]
        return not any(
            (ticket.following == lane.need and not is_full) or ticket.start_by < pressing for ticket in going_on
        )

    @staticmethod
    def _ahead(running: Wave) -> tuple[float, float]:
        """Seconds before the end of a wave at which the next one is cut: one that is full, any other."""
        return max(LEAD_SECONDS, LEAD_SHARE * running.expected_seconds), LEAD_SECONDS

    def _board(self, lane: Lane) -> list[Ticket]:
        """Take a wave's worth of samples from the lane; some are shortened, which can send them to another lane."""
        taken = self._lanes.take(lane, perf_counter())
        for ticket in taken:
            self._shorten(ticket)
        self._enqueue([ticket for ticket in taken if ticket.need != lane.need])
        aboard = [ticket for ticket in taken if ticket.need == lane.need]
        for ticket in aboard:
            ticket.boarded = ticket.number + 1
        return aboard

    def _shorten(self, ticket: Ticket) -> None:
        """Let a sample end by an alternative: in time, if one is, else at the earliest, if its own plan is not."""

        def is_late(plan: Plan) -> bool:
            seconds = self._load.rest_seconds(rest(ticket.sample, ticket.number, plan))
            return ticket.deadline is not None and perf_counter() + seconds > ticket.deadline

        if not ticket.sample.alternatives or not (self.shorten_all or is_late(ticket.sample.plan)):
            return
        endings = ticket.endings()
        if endings:
            in_time = [] if self.shorten_all else [plan for plan in endings if not is_late(plan)]
            why: Hurry = "brownout" if self.shorten_all else "deadline"
            ticket.end_by(in_time[0] if in_time else endings[-1], why)
            metrics.SHORTENED_SAMPLES.labels(why).inc()
            self._known_load = None

    async def _pause(self) -> None:
        """Wait until there may be something to do. Raises DeviceLost when a wave found out, or hangs."""
        now = perf_counter()
        hangs = [(wave.began or now) + self._hang_limit(wave) - now for wave in self._waves]
        leads = [wave.seconds_left(now) - lead for wave in self._waves for lead in self._ahead(wave)]
        looks = [max(0.001, left) for left in hangs] + [max(0.001, left) for left in leads if left > 0]
        try:
            async with asyncio.timeout(min(looks, default=None)):
                await self._look.wait()
        except TimeoutError:
            pass
        for wave, task in list(self._waves.items()):
            if task.done():
                del self._waves[wave]
                task.result()
                for following in self._waves:
                    following.go_on_alone(perf_counter())
            elif wave.began is not None and perf_counter() - wave.began > self._hang_limit(wave):
                raise DeviceLost(f"a wave of {wave.need.member} has not ended: the device hangs")

    def _hang_limit(self, wave: Wave) -> float:
        return max(self._hang_seconds, HANG_FACTOR * wave.expected_seconds)

    async def _fly(self, wave: Wave) -> None:
        """Send a wave through the device, in parts if it is too large, and answer or enqueue its samples."""
        try:
            landed, seconds = await self._thread.run(wave)
        except OutOfMemory as error:
            log.warning("a wave of %d samples of %s is too large: %s", len(wave.tickets), wave.need.member, error)
            if wave.is_retry:
                self._fail(wave, error)
                return
            for part in wave.parts():
                await self._fly(part)
        except DeviceLost as error:
            self._fail(wave, error)
            raise
        except Exception as error:
            self._fail(wave, error)
        else:
            if landed:
                self._measure(wave, [turn for _, turn, _ in landed], seconds)
            self._enqueue([ticket for ticket, turn, result in landed if self._goes_on(ticket, turn, result, seconds)])

    def _goes_on(self, ticket: Ticket, turn: Turn, result: Any, seconds: float) -> bool:
        """Take a turn's result in; answer the sample if it is the image. Returns whether the sample needs another wave."""
        if ticket.number == 0:
            ticket.begun = perf_counter() - seconds
        ticket.number += 1
        ticket.device_seconds += seconds
        if ticket.image.done():  # its caller has gone; what it took before was counted when it went
            metrics.WASTED_EVALUATIONS.labels("cancelled").inc()
            return False
        try:
            if turn.preview and ticket.preview:
                result, pixels = result
                ticket.preview(ticket.place, ticket.number, pixels)
            if turn.ends_hop and ticket.progress:
                ticket.progress(ticket.place, ticket.number)
        except Exception as error:
            ticket.fail(error)
            return False
        if not turn.is_last:
            ticket.latent = result
            return True
        waited = max(0.0, perf_counter() - ticket.arrived - ticket.device_seconds)
        plan, seconds = turn.sample.plan, ticket.device_seconds
        ticket.image.set_result(Drawn(result, waited, seconds, plan, ticket.shortened, ticket.begun))
        return False

    def _fail(self, wave: Wave, error: Exception) -> None:
        """Fail the wave's samples; a lost device is named, anything else is for the log only."""
        failure: Exception = (
            error if isinstance(error, DeviceLost) else DrawFailed("the device could not run this wave")
        )
        if failure is not error:
            failure.__cause__ = error
        for ticket in wave.tickets:
            if not ticket.image.done():  # what those took who have left was counted when they left
                metrics.WASTED_EVALUATIONS.labels("failed").inc(ticket.number + 1)
                ticket.fail(failure)

    def _measure(self, wave: Wave, turns: Sequence[Turn], seconds: float) -> None:
        need = wave.need
        images = sum(turn.makes_image for turn in turns)
        self.pace.observe(need.member, need.guided, len(turns), seconds, need.family, images=images)
        metrics.WAVE_SECONDS.labels(need.family, need.member).observe(seconds)
        for steps, samples in Counter(turn.sample.evaluations for turn in turns).items():
            labels = need.family, need.member, str(steps)
            metrics.WAVE_SAMPLES.labels(*labels).observe(len(turns))
            metrics.DEVICE_SECONDS.labels(*labels).inc(seconds * samples / len(turns))
