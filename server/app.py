"""The app: the routes, what stands before them, and the rooms behind."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles

from diffusion.family import Family
from server import contract, errors, metrics, tracing
from server.about import about
from server.admin import admin_routes
from server.device import Device
from server.ending import Farewell
from server.estimate import estimate_routes
from server.guards import guard
from server.job_orders import Orders
from server.job_routes import job_routes
from server.openai import openai_routes
from server.rooms import Rooms, make_rooms
from server.routes import PAGE, drawing_routes, health_routes, metrics_routes, page_routes, reading_routes
from server.settings import Settings

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
    is ended otherwise, call its state.leave(), by which it is no longer ready, and later await its state.drain(seconds): it
    finishes what it has accepted and takes no more work.
    Raises FamilyConflict or MemoryExceeded where these families cannot be served together, KeysError for a bad file of
    keys, OSError for an admin_port that cannot be had.
    """
    rooms = make_rooms(settings, families, make_device)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with rooms.open(stop):
            yield

    app = FastAPI(
        title="stepdial",
        description=DESCRIPTION,
        lifespan=lifespan,
        telemetry=tracing.telemetry(),
        redirect_slashes=False,  # a redirect would name whatever host the request did
        docs_url=None,  # the framework's pages load scripts from elsewhere
        redoc_url=None,
    )
    app.state.leave, app.state.drain = rooms.scheduler.leave, rooms.drain
    errors.install(app)
    contract.describe(app)
    _route(app, rooms)
    guard(app, settings, keyring=rooms.keyring, limit=settings.limit, ledger=rooms.ledger)
    app.add_middleware(Farewell, leaving=lambda: rooms.scheduler.leaving)
    return app


def _route(app: FastAPI, rooms: Rooms) -> None:
    """Give the app its routes."""
    roster, scheduler, server = rooms.roster, rooms.scheduler, about(rooms.settings.device)
    app.include_router(drawing_routes(roster, rooms.studio))
    orders = Orders(roster, rooms.jobs, rooms.feeder, scheduler, rooms.ledger)
    app.include_router(job_routes(orders, rooms.jobs, rooms.feeder))
    app.include_router(reading_routes(roster, server))
    app.include_router(health_routes(scheduler))
    app.include_router(estimate_routes(roster))
    app.include_router(openai_routes(roster, rooms.studio))
    if rooms.backstage is None:
        app.include_router(metrics_routes(scheduler))
    if rooms.backstage is None and rooms.keyring:
        app.include_router(admin_routes(roster))
    app.include_router(page_routes(with_metrics=rooms.backstage is None))
    app.mount("/page", StaticFiles(directory=PAGE))
    metrics.BUILD_INFO.labels(server.commit, server.device).set(1)
