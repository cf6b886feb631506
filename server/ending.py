"""How the process ends: it stops being ready at once, finishes what it accepted, and is gone within a bounded time."""

import asyncio
import logging
import os
import threading
from collections.abc import Awaitable, Callable
from math import ceil
from time import monotonic
from types import FrameType
from typing import Any

import uvicorn

from server.device import THREADS

log = logging.getLogger(__name__)

JOIN_SECONDS = 2.0
"""How long a wave that is under way may keep the process from ending."""


class DrainingServer(uvicorn.Server):
    """uvicorn that, told to end, lets the app drain first: meanwhile it listens on, not ready, and refuses new work."""

    def __init__(self, config: uvicorn.Config, *, drain: Callable[[float], Awaitable[None]], seconds: float):
        super().__init__(config)
        self._drain, self._seconds = drain, seconds
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
            self._loop.call_soon_threadsafe(self._begin_to_leave)

    def _begin_to_leave(self) -> None:
        self._leaving = self._leaving or asyncio.create_task(self._leave())

    async def _leave(self) -> None:
        end = monotonic() + self._seconds
        try:
            await self._drain(self._seconds)
        finally:  # what is still open now waits for its encoder or its client's network
            self.config.timeout_graceful_shutdown = max(1, ceil(end - monotonic()))
            self.should_exit = True


def leave_hung_threads(status: int) -> None:
    """End the process here and now if the device keeps its threads: Python would wait for them, maybe for ever."""
    until = monotonic() + JOIN_SECONDS
    threads = [thread for thread in threading.enumerate() if thread.name.startswith(THREADS)]
    for thread in threads:
        thread.join(max(0.0, until - monotonic()))
    if any(thread.is_alive() for thread in threads):
        log.critical("the device does not come back from a wave; ending without it")
        logging.shutdown()
        os._exit(status)
