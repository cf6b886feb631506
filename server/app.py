"""The app: wire the rooms together, start them, stop them."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles

from diffusion.family import Family
from server import contract, errors, metrics
from server.bodies import BodyLimit
from server.dial import Dial
from server.estimate import estimate_routes
from server.headers import SecurityHeaders
from server.images import EncodePool
from server.outlook import Outlook
from server.promises import Brownout
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
    its state.drain(seconds): no longer ready, it finishes what it has accepted.
    """
    scheduler = Scheduler(
        device, max_wave=settings.max_wave, max_evaluations=settings.max_evaluations, hang_seconds=settings.hang_seconds
    )
    encoders = EncodePool(settings.encode_threads)
    brownout = Brownout(high_seconds=settings.brownout_high_seconds, low_seconds=settings.brownout_low_seconds)
    outlook = Outlook(scheduler, encoders, brownout)
    dial = Dial(family, outlook, max_images=settings.max_images, max_evaluations=settings.max_evaluations)
    studio = Studio(scheduler, encoders, timeout_seconds=settings.request_timeout_seconds)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await encoders.measure(dial.image_shape)
        drawing = asyncio.create_task(scheduler.run())
        drawing.add_done_callback(lambda task: _ended(task, stop))
        yield  # on the way out every accepted request has its answer already: it was drained before
        drawing.cancel()
        await asyncio.gather(drawing, return_exceptions=True)
        encoders.close()

    app = FastAPI(
        title="stepdial",
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # the framework's pages load scripts from elsewhere
        redoc_url=None,
    )
    app.state.drain = scheduler.drain
    errors.install(app)
    contract.describe(app)
    app.include_router(drawing_routes(dial, studio))
    app.include_router(reading_routes(dial, family, scheduler))
    app.include_router(estimate_routes(dial))
    app.mount("/page", StaticFiles(directory=PAGE))
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.add_middleware(SecurityHeaders)
    _tell_metrics(family)
    return app


def _ended(task: asyncio.Task[None], stop: Callable[[], None]) -> None:
    if task.cancelled():
        return
    log.critical("the device loop has ended, so must the process: %s", task.exception())
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
