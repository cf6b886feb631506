"""How the process ends: it stops being ready at once, finishes what it accepted, and is gone within a bounded time."""

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Awaitable, Callable
from math import ceil
from time import monotonic
from types import FrameType
from typing import Any

import uvicorn
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.device import THREADS

log = logging.getLogger(__name__)

JOIN_SECONDS = 2.0
"""How long a wave that is under way may keep the process from ending."""


class DrainingServer(uvicorn.Server):
    """uvicorn that, told to end, says goodbye first.

    After SIGTERM it is no longer ready but still takes work, for as long as balancers may need to notice; then it
    listens on, refuses new work and finishes what it has; then it ends. Ctrl-C does without the first part.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        leave: Callable[[], None],
        drain: Callable[[float], Awaitable[None]],
        delay: float,
        seconds: float,
    ):
        """leave says that the server is not ready any more; delay and seconds bound the first and the second part."""
        super().__init__(config)
        self._say_goodbye, self._drain, self._delay, self._seconds = leave, drain, delay, seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._leaving: asyncio.Task[None] | None = None

    async def serve(self, sockets: Any = None) -> None:
        """Serve until told to end."""
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal: the first one drains, a second one does not wait for that."""
        at_once = self.should_exit or not self.started or self._leaving is not None or self._loop is None
        super().handle_exit(sig, frame)
        if not at_once and self._loop:
            self.should_exit = False
            self._loop.call_soon_threadsafe(self._begin_to_leave, self._delay if sig == signal.SIGTERM else 0.0)

    def _begin_to_leave(self, delay: float) -> None:
        self._leaving = self._leaving or asyncio.create_task(self._leave(delay))

    async def _leave(self, delay: float) -> None:
        try:
            self._say_goodbye()
            await asyncio.sleep(delay)
            end = monotonic() + self._seconds
            await self._drain(self._seconds)
            # what is still open now waits for its encoder or its client's network
            self.config.timeout_graceful_shutdown = max(1, ceil(end - monotonic()))
        finally:
            self.should_exit = True


class Farewell:
    """ASGI middleware: while the server leaves, every answer ends its connection, so that no balancer keeps it for later.

    A kept connection that closes just as a request comes along it is a request lost.
    """

    def __init__(self, app: ASGIApp, *, leaving: Callable[[], bool]):
        self._app, self._leaving = app, leaving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and the answer back."""

        async def send_farewell(message: Message) -> None:
            if message["type"] == "http.response.start" and self._leaving():
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        await self._app(scope, receive, send_farewell if scope["type"] == "http" else send)


def leave_hung_threads(status: int) -> None:
    """End the process here and now if the device keeps its threads: Python would wait for them, maybe for ever."""
    until = monotonic() + JOIN_SECONDS
    threads = [thread for thread in threading.enumerate() if thread.name.startswith(THREADS)]
    for thread in threads:
        thread.join(max(0.0, until - monotonic()))
    if any(thread.is_alive() for thread in threads):
        # in an orderly end it is only the warm-up that nobody waits for any more
        log.log(logging.CRITICAL if status else logging.WARNING, "the device is still at work; ending without it")
        logging.shutdown()
        os._exit(status)
