"""Server-sent events: an answer that grows while its client reads."""

import asyncio
from collections.abc import AsyncGenerator, Callable

from fastapi import Request
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from starlette.types import Receive, Scope, Send

from server.patience import while_connected

PING_SECONDS = 15.0
"""After so long without an event a comment is sent, so that nobody between takes the connection for dead."""
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
"""Events are neither stored nor held back by a proxy."""

Events = AsyncGenerator[bytes, None]


def event(name: str, json: str) -> bytes:
    """Return one event whose data is this JSON."""
    return format_sse_event(event=name, data_str=json)


async def event_stream(request: Request, events: Events, *, failed: Callable[[Exception], bytes]) -> "EventStream":
    """Return an answer of the events once there is a first one.

    What fails before it is raised, and so answered as ever; later, `failed` gives the last event. Raises ClientGone when
    the client leaves before the first event; when it leaves later, the events are closed.
    """
    first = await while_connected(request, anext(events))
    return EventStream(first, events, failed)


class EventStream(EventSourceResponse):
    """Sends events as they come; closes them when the last is sent or the client has left."""

    def __init__(self, first: bytes, events: Events, failed: Callable[[Exception], bytes]):
        self._events = events
        self._sending = _sending(first, events, failed)
        super().__init__(self._sending, headers=HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        try:
            await super().__call__(scope, receive, send)
        finally:  # a client who leaves while a chunk is being sent interrupts the sending, not the generators
            await self._sending.aclose()
            await self._events.aclose()


async def _sending(first: bytes, events: Events, failed: Callable[[Exception], bytes]) -> Events:
    chunk: bytes | None = first
    following: asyncio.Future[bytes | None] | None = None
    try:
        while chunk is not None:
            yield chunk
            following = asyncio.ensure_future(anext(events, None))
            while not (await asyncio.wait((following,), timeout=PING_SECONDS))[0]:
                yield KEEPALIVE_COMMENT
            error = following.exception()
            if isinstance(error, Exception):
                yield failed(error)
                return
            chunk = following.result()
    finally:
        if following:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
