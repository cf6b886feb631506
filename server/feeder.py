"""The feeder: takes jobs out of the store, has them drawn beside the requests of clients who wait, and brings the results."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

from server import metrics
from server.errors import answer_for, problem_of
from server.failures import (
    DeviceLost,
    DrawFailed,
    EditionGone,
    JobGivenUp,
    JobsUnavailable,
    NotReady,
    Overloaded,
)
from server.jobs import Job, JobStore, Outcome
from server.roster import Roster
from server.scheduler import Scheduler
from server.schemas import GenerateRequest
from server.studio import Studio

log = logging.getLogger(__name__)

T = TypeVar("T")

LOOK_SECONDS = (0.1, 1.0)
"""How soon the store is asked again when there were no jobs, at first and after many times; a job ordered here is no wait."""
RETRY_SECONDS = 0.5
"""How long to wait before something is tried again: an absent store, a full queue."""


@dataclass(slots=True, eq=False)
class Hand:
    """A job that is being drawn here."""

    job: Job
    hops: dict[int, int] = field(default_factory=dict)
    """Number of the sample -> hops taken."""
    ending: bool = False
    """Whether the store is being told how it ended, and will answer itself whose the job is."""
    lost: bool = False
    """Whether somebody else decides about the job now: it was cancelled, or taken over."""
    task: asyncio.Task[None] | None = None

    @property
    def evaluations(self) -> int:
        """Network evaluations done."""
        return sum(self.hops.values())


class Feeder:
    """Keeps the scheduler supplied with jobs, but never so many that clients who wait find the queue full.

    A job that was begun before without an end is drawn with no other job beside it: if it is what ends servers, it shall
    not take innocent jobs with it a second time.
    """

    def __init__(
        self,
        store: JobStore,
        roster: Roster,
        studio: Studio,
        scheduler: Scheduler,
        *,
        max_jobs: int,
        max_attempts: int,
        lease_seconds: float,
    ):
        self._left_at: float | None = None
        self._store = store
        self._roster = roster
        self._studio = studio
        self._scheduler = scheduler
        self._max_jobs = max_jobs
        self._max_attempts = max_attempts
        self._beat_seconds = min(0.5, lease_seconds / 4)
        self._hands: dict[str, Hand] = {}
        self._news = asyncio.Event()
        self._reachable = True
        self._feeding: asyncio.Task[None] | None = None

    @property
    def closing(self) -> bool:
        """Whether the server is on its way out and takes no more jobs."""
        return self._left_at is not None

    async def run(self) -> None:
        """Take and draw jobs until cancelled. Jobs that are begun then are not handed back: see stop."""
        async with asyncio.TaskGroup() as group:
            self._feeding = group.create_task(self._feed(group))
            group.create_task(self._renew())

    def wake(self) -> None:
        """Look for jobs now: there is a new one."""
        self._news.set()

    def leave(self) -> None:
        """Take no more jobs, and hand back those that no wave has begun. Called as soon as the process is told to end."""
        self._left_at = self._left_at or time.monotonic()
        for hand in self._hands.values():
            if hand.task and not hand.evaluations:
                hand.task.cancel()
        self._news.set()

    async def stop(self, seconds: float) -> None:
        """Finish what is done within this time from `leave` on, and hand back the rest."""
        self.leave()
        assert self._left_at is not None
        seconds = max(0.0, self._left_at + seconds - time.monotonic())
        tasks = [hand.task for hand in self._hands.values() if hand.task]
        if tasks:
            _, unfinished = await asyncio.wait(tasks, timeout=seconds)
            for task in unfinished:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._feeding:
            await asyncio.wait([self._feeding])  # it may just be taking a job, which closing the store hands back
        await self._store.close()

    async def _feed(self, group: asyncio.TaskGroup) -> None:
        shortest, longest = LOOK_SECONDS
        pause = shortest
        while not self.closing:
            job = await self._take() if self._has_room() else None
            pause = shortest if job else min(longest, 1.5 * pause)
            if job is None:
                self._news.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause * random.uniform(0.75, 1.0)):  # replicas do not ask all at once
                        await self._news.wait()
                        pause = shortest
            elif job.id not in self._hands:  # otherwise we were so late in renewing it that we took it from ourselves
                await self._begin(job, group)

    async def _begin(self, job: Job, group: asyncio.TaskGroup) -> None:
        alone = job.attempts > 1
        hand = self._hands[job.id] = Hand(job)  # from now on it is renewed
        if alone:
            await self._until_hands_are_empty()
        if hand.lost or self.closing:  # closing the store hands it back
            del self._hands[job.id]
            return
        metrics.JOBS_BEGUN.labels(str(alone).lower()).inc()
        hand.task = group.create_task(self._handle(hand))
        hand.task.add_done_callback(lambda _: self._put_down(hand))
        if alone:
            await self._until_hands_are_empty()

    def _put_down(self, hand: Hand) -> None:
        del self._hands[hand.job.id]
        self._news.set()

    def _has_room(self) -> bool:
        """Half of the queue is for clients who wait."""
        scheduler = self._scheduler
        half_empty = 2 * scheduler.evaluations <= scheduler.max_evaluations
        return scheduler.state == "ready" and half_empty and len(self._hands) < self._max_jobs

    async def _take(self) -> Job | None:
        try:
            job = await self._store.take([served.edition for served in self._roster.ready])
        except JobsUnavailable as error:
            self._note(error)
            await asyncio.sleep(RETRY_SECONDS)
            return None
        self._note(None)
        return job

    def _note(self, error: JobsUnavailable | None) -> None:
        """Log when the store goes and when it comes back, not every time it is still away."""
        if self._reachable and error:
            log.warning("%s; jobs wait until it can: %r", error, error.__cause__)
        if error is None and not self._reachable:
            log.info("the job store can be reached again")
        self._reachable = error is None
        metrics.JOBS_REACHABLE.set(self._reachable)

    async def _until_hands_are_empty(self) -> None:
        tasks = [hand.task for hand in self._hands.values() if hand.task]
        if tasks:
            await asyncio.wait(tasks)

    async def _renew(self) -> None:
        """Keep telling the store that this replica lives, how far its jobs are, and hear which it should drop."""
        while not _is_cancelled():
            await asyncio.sleep(self._beat_seconds)
            metrics.JOBS_RUNNING.set(len(self._hands))
            try:
                lost = await self._store.renew(
                    {job_id: hand.evaluations for job_id, hand in self._hands.items()},
                    [served.edition for served in self._roster],
                )
                await self._take_stock()
            except JobsUnavailable as error:
                self._note(error)
                continue
            for hand in [self._hands[job_id] for job_id in lost if job_id in self._hands]:
                if not hand.ending:  # else the end may have arrived before this beat, and the job is not lost but done
                    hand.lost = True
                    if hand.task:
                        hand.task.cancel()

    async def _take_stock(self) -> None:
        """Tell how many jobs there are, and end those that nobody will ever draw."""
        backlog = await self._store.backlog()
        metrics.JOBS_BACKLOG.set(backlog.jobs)
        metrics.JOBS_ORPHANS.set(backlog.orphans)
        ended = await self._store.end_orphans() if backlog.orphans else 0
        if ended:
            log.error("%d jobs have failed: no replica serves their family as it was", ended)
            metrics.JOBS.labels("failed").inc(ended)

    async def _handle(self, hand: Hand) -> None:
        """Bring one job to its end, or back."""
        try:
            await self._draw(hand)
        except asyncio.CancelledError:
            if hand.lost:
                metrics.JOBS.labels("lost").inc()
            else:
                with suppress(JobsUnavailable):  # then its lease will run out
                    await self._store.give_back(hand.job.id, attempted=False)
            raise

    async def _draw(self, hand: Hand) -> None:
        job = hand.job
        if job.attempts > self._max_attempts:
            sentence = f"it was begun {self._max_attempts} times, and each time the server that drew it ended"
            return await self._fail(hand, JobGivenUp(sentence))
        try:
            outcome, files = await self._make(hand)
        except (DrawFailed, DeviceLost) as error:
            if job.attempts >= self._max_attempts:
                return await self._fail(hand, error)
            log.warning("%s will be begun again: %s", job.id, error)
            return await self._insist(hand, lambda: self._store.give_back(job.id, attempted=True))
        except EditionGone:  # unloaded a moment ago: whoever serves it takes the job
            return await self._insist(hand, lambda: self._store.give_back(job.id, attempted=False))
        except Exception as error:
            return await self._fail(hand, error)
        if await self._insist(hand, lambda: self._store.finish(job.id, "done", outcome, files)):
            metrics.JOBS.labels("done").inc()
        else:
            metrics.JOBS.labels("lost").inc()

    async def _make(self, hand: Hand) -> tuple[Outcome, list[bytes]]:
        """Draw; a queue that is full just now is waited for."""
        accepted = hand.job.accepted
        request = GenerateRequest.model_validate(accepted.request)
        while True:
            wish = self._roster.keep_to(accepted.edition).repeat(request, accepted.plan)
            try:
                pictures, timings = await self._studio.make(
                    wish, request.output_format, progress=hand.hops.__setitem__, bounded=False
                )
            except (Overloaded, NotReady):
                await asyncio.sleep(RETRY_SECONDS)
            else:
                files = [picture.data for picture in pictures]
                return Outcome(timings=timings, sizes=tuple(map(len, files))), files

    async def _fail(self, hand: Hand, error: Exception) -> None:
        job = hand.job
        known = answer_for(error).type != "internal-error"
        log.error("%s failed: %s", job.id, error, exc_info=None if known else error)
        outcome = Outcome(problem=problem_of(error))
        if await self._insist(hand, lambda: self._store.finish(job.id, "failed", outcome, ())):
            metrics.JOBS.labels("failed").inc()

    async def _insist(self, hand: Hand, act: Callable[[], Awaitable[T]]) -> T:
        """Tell the store how a job ended, however long it is away; whoever ends us meanwhile cancels us."""
        hand.ending = True
        while not _is_cancelled():
            try:
                return await act()
            except JobsUnavailable as error:
                self._note(error)
                await asyncio.sleep(RETRY_SECONDS)
        raise asyncio.CancelledError


def _is_cancelled() -> bool:
    """Whether the task is to end. A cancellation that meets Redis's answer may be swallowed by its client, so loops ask."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
