"""The app: wire the rooms together, start them, stop them."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, nullcontext
from functools import partial

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from redis.asyncio import Redis

from diffusion.family import Family
from server import contract, errors, metrics, tracing
from server.about import about
from server.admin import admin_routes
from server.backstage import Backstage
from server.bodies import BodyLimit
from server.cache import MemoryCache, NoCache, RedisCache, ResultCache
from server.device import Device
from server.dial import Dial
from server.estimate import estimate_routes
from server.feeder import Feeder
from server.gate import Gate, Ledger
from server.head import HeadAsGet
from server.headers import SecurityHeaders
from server.images import EncodePool
from server.job_routes import job_routes
from server.jobs import JobStore
from server.jobs_memory import MemoryJobs
from server.jobs_redis import RedisJobs
from server.journal import Journal
from server.keys import Keyring
from server.limits import Buckets
from server.limits_redis import RedisBuckets
from server.openai import openai_routes
from server.openai_errors import OpenAIErrors
from server.outlook import Outlook
from server.pace import Timing
from server.promises import Brownout
from server.redis_link import connect
from server.roster import Roster, Served
from server.routes import PAGE, drawing_routes, metrics_routes, reading_routes
from server.scheduler import Scheduler
from server.settings import Settings
from server.studio import Studio

log = logging.getLogger(__name__)

DESCRIPTION = "Images in as few or as many network evaluations as you choose; what each choice gives was measured."


def create_app(
    settings: Settings,
    families: Sequence[Family],
    make_device: Callable[[Family], Device],
    *,
    stop: Callable[[], None],
) -> FastAPI:
    """Return the server of these families, the default one first.

    make_device gives what draws a family (an Engine; tests take another). stop ends the process; it is called when the
    device loop dies, because a server whose loop is dead would answer health checks for ever and draw nothing. Before it
    is ended otherwise, await its state.drain(seconds): no longer ready, it finishes what it has accepted and takes no more jobs.
    Raises FamilyConflict or MemoryExceeded where these families cannot be served together, KeysError for a bad file of
    keys, OSError for an admin_port that cannot be had.
    """

    def make_dial(family: Family) -> Dial:
        return Dial(family, outlook, max_images=settings.max_images, max_evaluations=settings.max_evaluations)

    async def measure(served: Served, timings: Iterable[Timing]) -> None:
        for timing in timings:
            scheduler.pace.observe(*timing)
        await encoders.measure(served.dial.image_shape)

    redis = connect(settings.redis_url) if settings.redis_url else None
    keyring = Keyring(settings.keys_file) if settings.keys_file else None
    jobs = _job_store(settings, redis)
    roster = Roster(
        make_dial, make_device, measure, jobs.needs, memory_bytes=settings.memory_bytes, root=settings.families
    )
    scheduler = Scheduler(
        roster, max_wave=settings.max_wave, max_evaluations=settings.max_evaluations, hang_seconds=settings.hang_seconds
    )
    encoders = EncodePool(settings.encode_threads)
    brownout = Brownout(high_seconds=settings.brownout_high_seconds, low_seconds=settings.brownout_low_seconds)
    outlook = Outlook(scheduler, encoders, brownout)
    cache = _cache(settings, redis)
    timeout = settings.request_timeout_seconds
    studio = Studio(scheduler, encoders, cache, roster.family, timeout_seconds=timeout)
    for family in families:
        roster.add(family)
    backstage = Backstage(settings, roster, scheduler, keyring) if settings.admin_port is not None else None
    feeder = Feeder(
        jobs,
        roster,
        studio,
        scheduler,
        max_jobs=settings.max_wave,
        max_attempts=settings.job_attempts,
        lease_seconds=settings.job_lease_seconds,
    )

    async def drain(seconds: float) -> None:
        feeder.leave()
        await scheduler.drain(seconds)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        for served in roster:
            await encoders.measure(served.dial.image_shape)
        drawing = asyncio.create_task(scheduler.run())
        feeding = asyncio.create_task(feeder.run())
        for task, what in ((drawing, "device loop"), (feeding, "feeder of jobs")):
            task.add_done_callback(partial(_ended, what, stop))
        async with backstage.open() if backstage else nullcontext():
            yield  # on the way out every accepted request has its answer already: it was drained before
        await feeder.stop(settings.shutdown_timeout_seconds)
        feeding.cancel()
        drawing.cancel()
        await asyncio.gather(drawing, feeding, return_exceptions=True)
        if redis:
            await redis.aclose()
        encoders.close()

    app = FastAPI(
        title="stepdial",
        description=DESCRIPTION,
        lifespan=lifespan,
        telemetry=tracing.telemetry(),
        docs_url=None,  # the framework's pages load scripts from elsewhere
        redoc_url=None,
    )
    app.state.drain = drain
    errors.install(app)
    contract.describe(app)
    server = about(settings.device)
    app.include_router(drawing_routes(roster, studio))
    app.include_router(job_routes(roster, jobs, feeder, scheduler))
    app.include_router(reading_routes(roster, scheduler, server))
    app.include_router(estimate_routes(roster))
    app.include_router(openai_routes(roster, studio))
    if backstage is None:
        app.include_router(metrics_routes(scheduler))
    if backstage is None and keyring:
        app.include_router(admin_routes(roster))
    app.mount("/page", StaticFiles(directory=PAGE))
    metrics.BUILD_INFO.labels(server.commit, server.device).set(1)
    _guard(app, settings, keyring, RedisBuckets(redis) if redis else Buckets())
    return app


def _guard(app: FastAPI, settings: Settings, keyring: Keyring | None, ledger: Ledger) -> None:
    """Put in front of the routes what every request passes; the last is the outermost."""
    app.add_middleware(Gate, keyring=keyring, limit=settings.limit, ledger=ledger, burst_seconds=settings.burst_seconds)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes, seconds=settings.receive_timeout_seconds)
    app.add_middleware(OpenAIErrors)
    app.add_middleware(SecurityHeaders)
    app.add_middleware(Journal)
    app.add_middleware(HeadAsGet)


def _cache(settings: Settings, redis: Redis | None) -> ResultCache:
    if settings.cache_bytes == 0:
        return NoCache()
    return RedisCache(redis, keep_seconds=settings.cache_seconds) if redis else MemoryCache(settings.cache_bytes)


def _job_store(settings: Settings, redis: Redis | None) -> JobStore:
    max_jobs, keep = settings.max_jobs, settings.job_result_seconds
    if redis:
        lease = settings.job_lease_seconds
        return RedisJobs(redis, max_jobs=max_jobs, result_seconds=keep, lease_seconds=lease)
    return MemoryJobs(max_jobs=max_jobs, result_seconds=keep, max_bytes=settings.job_bytes)


def _ended(what: str, stop: Callable[[], None], task: asyncio.Task[None]) -> None:
    if task.cancelled():
        return
    log.critical("the %s has ended, so must the process: %s", what, task.exception())
    stop()
