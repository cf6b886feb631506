"""The second port: health, metrics and administration away from those who draw."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from ipaddress import ip_address

import uvicorn
from fastapi import Depends, FastAPI, Request
from starlette.exceptions import HTTPException

from server import contract, errors
from server.admin import admin_routes
from server.connections import options
from server.guards import guard
from server.keys import Keyring
from server.limits import Buckets
from server.roster import Roster
from server.routes import health_routes, metrics_routes
from server.scheduler import Scheduler
from server.settings import Settings

log = logging.getLogger(__name__)


class Backstage:
    """Health, metrics and administration on a port of their own.

    On a loopback address whoever is on the machine may administrate; on any other one a key with the scope `admin` is
    needed, and where there are no keys there is no administration.
    """

    def __init__(self, settings: Settings, roster: Roster, scheduler: Scheduler, keyring: Keyring | None):
        """Take the port. Raises OSError if it cannot be had."""
        host, port = settings.admin_host, settings.admin_port
        private = _is_loopback(host)
        self._app = FastAPI(
            title="stepdial, backstage",
            docs_url=None,
            redoc_url=None,
            redirect_slashes=False,
            dependencies=[Depends(_asked_by_name)] if private else [],
        )
        errors.install(self._app)
        contract.describe(self._app)
        self._app.include_router(metrics_routes(scheduler))
        self._app.include_router(health_routes(scheduler))
        if private or keyring:
            self._app.include_router(admin_routes(roster))
        guard(self._app, settings, keyring=None if private else keyring, limit=None, ledger=Buckets())
        self._options = options(settings)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, port or 0), family=family)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._socket.getsockname()[1])

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Answer for as long as the block runs."""
        config = uvicorn.Config(
            self._app, **self._options, proxy_headers=False, lifespan="off", timeout_graceful_shutdown=1
        )
        server = _Beside(config)
        serving = asyncio.create_task(server.serve([self._socket]))
        log.info("metrics and administration are on port %d", self.port)
        yield
        server.should_exit = True
        await serving


class _Beside(uvicorn.Server):
    """A server beside another one, which handles the signals."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


def _asked_by_name(request: Request) -> None:
    """Refuse requests that a browser was lured into: those whose host is a name that somebody else's server gave."""
    if not _is_loopback(request.url.hostname or ""):
        raise HTTPException(400, "ask for this port by its loopback address or as localhost")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
