"""Connections: who may hold one, and how long the head of a request may take. uvicorn's HTTP/1.1, with two bounds."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.errors import problem_response
from server.schemas import Problem

MAX_HEAD_BYTES = 16384
"""How much of a head may come without its end; then uvicorn answers 400."""


class BoundedConnection(H11Protocol):
    """A connection that is refused above a number, and closed when a request's head does not come.

    uvicorn itself closes connections that are idle between two requests, but waits for ever for the end of a head.
    """

    max_connections = 1000
    """Connections that may be open; one more is answered with 503 and closed."""
    head_seconds = 10.0
    """Longest that the head of a request may take."""
    _hurry: asyncio.TimerHandle | None = None

    @classmethod
    def bounded(cls, *, max_connections: int, head_seconds: float) -> type["BoundedConnection"]:
        """Return the class with these bounds, as uvicorn wants it."""
        return type("BoundedConnection", (cls,), {"max_connections": max_connections, "head_seconds": head_seconds})

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a head, or refuse."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            transport.write(REFUSAL)
            transport.close()
            return
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """Take in what came; of an unfinished head, keep waiting for the rest."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._hurry is None:
            self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        self._hurry = self.loop.call_later(self.head_seconds, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._hurry is not None:
            self._hurry.cancel()
            self._hurry = None


def _refusal() -> bytes:
    problem = Problem(
        type="/problems/too-many-connections",
        title="Too many connections",
        status=503,
        detail="the server holds as many connections as it may",
    )
    response = problem_response(problem, {"Retry-After": "1", "Connection": "close"})
    head = b"".join(b"%b: %b\r\n" % field for field in response.raw_headers)
    return b"HTTP/1.1 503 Service Unavailable\r\n" + head + b"\r\n" + bytes(response.body)


REFUSAL = _refusal()
"""The whole answer to a connection too many; no request has been read, so none can be answered by the app."""
