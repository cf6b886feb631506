"""The app: wire the rooms together, start them, stop them."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from redis.asyncio import Redis

from diffusion.family import Family
from server import contract, errors, metrics
from server.about import about
from server.bodies import BodyLimit
from server.cache import MemoryCache, NoCache, RedisCache, ResultCache
from server.dial import Dial
from server.estimate import estimate_routes
from server.feeder import Feeder
from server.headers import SecurityHeaders
from server.images import EncodePool
from server.job_routes import job_routes
from server.jobs import JobStore
from server.jobs_memory import MemoryJobs
from server.jobs_redis import RedisJobs
from server.openai import openai_routes
from server.openai_errors import OpenAIErrors
from server.outlook import Outlook
from server.promises import Brownout
from server.redis_link import connect
from server.routes import PAGE, drawing_routes, reading_routes
from server.scheduler import Device, Scheduler
from server.settings import Settings
from server.studio import Studio

log = logging.getLogger(__name__)

DESCRIPTION = "Images in as few or as many network evaluations as you choose; what each choice gives was measured."


def create_app(settings: Settings, family: Family, device: Device, *, stop: Callable[[], None]) -> FastAPI:
    """Return the server of one family.

    device draws (an Engine; tests take another). stop ends the process; it is called when the device loop dies, because
    a server whose loop is dead would answer health checks for ever and draw nothing. Before it is ended otherwise, await
    its state.drain(seconds): no longer ready, it finishes what it has accepted and takes no more jobs.
    """
    scheduler = Scheduler(
        device, max_wave=settings.max_wave, max_evaluations=settings.max_evaluations, hang_seconds=settings.hang_seconds
    )
    encoders = EncodePool(settings.encode_threads)
    brownout = Brownout(high_seconds=settings.brownout_high_seconds, low_seconds=settings.brownout_low_seconds)
    outlook = Outlook(scheduler, encoders, brownout)
    dial = Dial(family, outlook, max_images=settings.max_images, max_evaluations=settings.max_evaluations)
    redis = connect(settings.redis_url) if settings.redis_url else None
    cache = _cache(settings, redis)
    studio = Studio(scheduler, encoders, cache, family, timeout_seconds=settings.request_timeout_seconds)
    jobs = _job_store(settings, redis)
    feeder = Feeder(
        jobs,
        dial,
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
        await encoders.measure(dial.image_shape)
        drawing = asyncio.create_task(scheduler.run())
        feeding = asyncio.create_task(feeder.run())
        for task, what in ((drawing, "device loop"), (feeding, "feeder of jobs")):
            task.add_done_callback(partial(_ended, what, stop))
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
        docs_url=None,  # the framework's pages load scripts from elsewhere
        redoc_url=None,
    )
    app.state.drain = drain
    errors.install(app)
    contract.describe(app)
    server = about(settings.device)
    app.include_router(drawing_routes(dial, studio, family))
    app.include_router(job_routes(dial, jobs, feeder, scheduler))
    app.include_router(reading_routes(dial, family, scheduler, server))
    app.include_router(estimate_routes(dial))
    app.include_router(openai_routes(dial, studio, family))
    app.mount("/page", StaticFiles(directory=PAGE))
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.add_middleware(OpenAIErrors)
    app.add_middleware(SecurityHeaders)
    metrics.BUILD_INFO.labels(server.commit, server.device).set(1)
    _tell_metrics(family)
    return app


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


def _tell_metrics(family: Family) -> None:
    for member in family.manifest.members:
        metrics.STUDENT_INFO.labels(member.name, member.weights.sha256).set(1)
    if family.frontier is None:
        return
    for position in filter(None, map(family.measured, family.positions.values())):
        for metric in ("frechet", "agreement", "agreement_held_out"):
            measure = getattr(position, metric)
            if measure is not None:
                metrics.STUDENT_QUALITY.labels(str(position.steps), metric, family.frontier.reference).set(measure.mean)
