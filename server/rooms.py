"""The rooms behind the routes: made once, wired together, opened and closed with the app."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

from redis.asyncio import Redis

from diffusion.family import Family
from server.backstage import Backstage
from server.cache import MemoryCache, NoCache, RedisCache, ResultCache
from server.device import Device
from server.dial import Dial
from server.feeder import Feeder
from server.gate import Ledger
from server.images import EncodePool
from server.jobs import JobStore
from server.jobs_memory import MemoryJobs
from server.jobs_redis import RedisJobs
from server.keys import Keyring
from server.limits import Buckets
from server.limits_redis import RedisBuckets
from server.outlook import Outlook
from server.pace import Timing
from server.promises import Brownout
from server.redis_link import connect
from server.roster import Roster, Served
from server.scheduler import Scheduler
from server.settings import Settings
from server.studio import Studio

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rooms:
    """What the routes stand in front of."""

    settings: Settings
    redis: Redis | None
    """None where the server is alone."""
    keyring: Keyring | None
    """None where no keys are wanted."""
    ledger: Ledger
    roster: Roster
    scheduler: Scheduler
    encoders: EncodePool
    studio: Studio
    jobs: JobStore
    feeder: Feeder
    backstage: Backstage | None
    """None where there is one port only."""

    @asynccontextmanager
    async def open(self, stop: Callable[[], None]) -> AsyncIterator[None]:
        """Draw for as long as the block runs; stop is called when the device loop or the feeder ends before."""
        for served in self.roster:
            await self.encoders.measure(served.dial.image_shape)
        drawing = asyncio.create_task(self.scheduler.run())
        feeding = asyncio.create_task(self.feeder.run())
        for task, what in ((drawing, "device loop"), (feeding, "feeder of jobs")):
            task.add_done_callback(partial(_ended, what, stop))
        async with self.backstage.open() if self.backstage else nullcontext():
            yield  # on the way out every accepted request has its answer already: it was drained before
        await self.feeder.stop(self.settings.shutdown_timeout_seconds)
        feeding.cancel()
        drawing.cancel()
        await asyncio.gather(drawing, feeding, return_exceptions=True)
        if self.redis:
            await self.redis.aclose()
        self.encoders.close()

    async def drain(self, seconds: float) -> None:
        """Be no longer ready, take no more jobs, and return when what was accepted is answered, at the latest then."""
        self.feeder.leave()
        await self.scheduler.drain(seconds)


def make_rooms(settings: Settings, families: Sequence[Family], make_device: Callable[[Family], Device]) -> Rooms:
    """Return the rooms of a server of these families. Raises what `create_app` raises."""

    def make_dial(family: Family) -> Dial:
        return Dial(family, outlook, max_images=settings.max_images, max_evaluations=settings.max_evaluations)

    async def measure(served: Served, timings: Iterable[Timing]) -> None:
        for timing in timings:
            scheduler.pace.observe(*timing)
        await encoders.measure(served.dial.image_shape)

    redis = connect(settings.redis_url) if settings.redis_url else None
    keyring = Keyring(settings.keys_file) if settings.keys_file else None
    ledger = RedisBuckets(redis) if redis else Buckets()
    jobs, encoders = _job_store(settings, redis), EncodePool(settings.encode_threads)
    roster = Roster(
        make_dial,
        make_device,
        measure,
        lambda name: scheduler.pace.forget(name),
        jobs.needs,
        memory_bytes=settings.memory_bytes,
        root=settings.families,
        precision=settings.precision,
    )
    scheduler = Scheduler(
        roster, max_wave=settings.max_wave, max_evaluations=settings.max_evaluations, hang_seconds=settings.hang_seconds
    )
    brownout = Brownout(high_seconds=settings.brownout_high_seconds, low_seconds=settings.brownout_low_seconds)
    outlook = Outlook(scheduler, encoders, brownout)
    timeout = settings.request_timeout_seconds
    studio = Studio(scheduler, encoders, _cache(settings, redis), roster.family, timeout_seconds=timeout)
    for family in families:
        roster.add(family)
    feeder = _feeder(settings, jobs, roster, studio, scheduler)
    backstage = Backstage(settings, roster, scheduler, keyring) if settings.admin_port is not None else None
    return Rooms(settings, redis, keyring, ledger, roster, scheduler, encoders, studio, jobs, feeder, backstage)


def _feeder(settings: Settings, jobs: JobStore, roster: Roster, studio: Studio, scheduler: Scheduler) -> Feeder:
    return Feeder(
        jobs,
        roster,
        studio,
        scheduler,
        max_jobs=settings.max_wave,
        max_attempts=settings.job_attempts,
        lease_seconds=settings.job_lease_seconds,
    )


def _cache(settings: Settings, redis: Redis | None) -> ResultCache:
    if settings.cache_bytes == 0:
        return NoCache()
    return RedisCache(redis, keep_seconds=settings.cache_seconds) if redis else MemoryCache(settings.cache_bytes)


def _job_store(settings: Settings, redis: Redis | None) -> JobStore:
    max_jobs, keep = settings.max_jobs, settings.job_result_seconds
    if redis:
        return RedisJobs(
            redis,
            max_jobs=max_jobs,
            result_seconds=keep,
            lease_seconds=settings.job_lease_seconds,
            orphan_seconds=settings.job_orphan_seconds,
        )
    return MemoryJobs(max_jobs=max_jobs, result_seconds=keep, max_bytes=settings.job_bytes)


def _ended(what: str, stop: Callable[[], None], task: asyncio.Task[None]) -> None:
    if task.cancelled():
        return
    log.critical("the %s has ended, so must the process: %s", what, task.exception())
    stop()
