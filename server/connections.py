"""Connections: who may hold one, and how long either side may be waited for. uvicorn's HTTP/1.1, with bounds."""

import asyncio
import fcntl
import socket
import struct
import sys
import termios
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.errors import problem_response
from server.schemas import Problem
from server.settings import Settings

MAX_HEAD_BYTES = 16384
"""How much of a head may come without its end; then the answer is 400."""
PROGRESS_BYTES = 65536
"""What a client has to take of its answer in the time that sending may take, or else all that is left of it."""


class BoundedConnection(H11Protocol):
    """A connection that is refused above a number, and closed when its client neither finishes a head nor takes its answer.

    uvicorn itself closes connections that are idle between two requests, but waits for ever for the end of a head and for
    a client that reads nothing.
    """

    max_connections = 1000
    """Connections that may be open; one more is answered with 503 and closed."""
    head_seconds = 10.0
    """Longest that the head of a request may take."""
    send_seconds = 30.0
    """Longest that a client may take for the next PROGRESS_BYTES of its answer."""
    _hurry: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None
    _unsent = 0
    """Bytes that waited for the client when it was last looked at, the system's included."""

    @classmethod
    def bounded(cls, *, max_connections: int, head_seconds: float, send_seconds: float) -> type["BoundedConnection"]:
        """Return the class with these bounds, as uvicorn wants it."""
        bounds = {"max_connections": max_connections, "head_seconds": head_seconds, "send_seconds": send_seconds}
        return type("BoundedConnection", (cls,), bounds)

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a head, or refuse."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # so that pause_writing tells of every byte that waits
        if len(self.connections) > self.max_connections:
            transport.write(TOO_MANY)
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

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, if no answer has begun, and hang up."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and (
            self.cycle is None or self.cycle.response_complete
        ):
            self.transport.write(NO_HTTP)
        self.transport.close()

    def pause_writing(self) -> None:
        """Wait no longer than allowed for the client to take what is there."""
        super().pause_writing()
        self._unsent = self._untaken()
        self._stuck = self.loop.call_later(self.send_seconds, self._look_after_client)

    def resume_writing(self) -> None:
        """Wait no more: all is sent."""
        self._stop_sending()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._stop_waiting()
        self._stop_sending()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        self._hurry = self.loop.call_later(self.head_seconds, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._hurry is not None:
            self._hurry.cancel()
            self._hurry = None

    def _untaken(self) -> int:
        """Bytes that the client has not taken: ours, and on Linux the system's, which asks for more in strides of up to a MiB."""
        untaken = self.transport.get_write_buffer_size()
        if (own := self.transport.get_extra_info("socket")) and sys.platform == "linux":
            untaken += int.from_bytes(fcntl.ioctl(own.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        return untaken

    def _look_after_client(self) -> None:
        """Cut off a client that has taken too little; look again after another that has taken enough."""
        before, self._unsent = self._unsent, self._untaken()
        if before - self._unsent < PROGRESS_BYTES:
            if own := self.transport.get_extra_info("socket"):  # else the system goes on offering what is left
                own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()
        else:
            self._stuck = self.loop.call_later(self.send_seconds, self._look_after_client)

    def _stop_sending(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None


def options(settings: Settings) -> dict[str, Any]:
    """Return what uvicorn is told for either port."""
    return {
        "http": BoundedConnection.bounded(
            max_connections=settings.max_connections,
            head_seconds=settings.receive_timeout_seconds,
            send_seconds=settings.send_timeout_seconds,
        ),
        "h11_max_incomplete_event_size": MAX_HEAD_BYTES,
        "log_level": settings.log_level,
        "log_config": None,  # one format for all, set by the journal
        "access_log": False,  # the journal writes one line a request, with more in it
        "server_header": False,
        "reset_contextvars": True,  # else a request may begin with the marks of the one before on its connection
    }


def _whole(problem: Problem, headers: dict[str, str]) -> bytes:
    """The whole answer to a request that the app will never see."""
    response = problem_response(problem, headers | {"Connection": "close"})
    head = b"".join(b"%b: %b\r\n" % field for field in response.raw_headers)
    status = HTTPStatus(problem.status)
    return f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() + head + b"\r\n" + bytes(response.body)


TOO_MANY = _whole(
    Problem(
        type="/problems/too-many-connections",
        title="Too many connections",
        status=503,
        detail="the server holds as many connections as it may",
    ),
    {"Retry-After": "1"},
)
NO_HTTP = _whole(
    Problem(
        type="/problems/bad-request",
        title="Bad request",
        status=400,
        detail=f"this is no HTTP/1.1 request whose head is within {MAX_HEAD_BYTES} bytes",
    ),
    {},
)
