"""Limits on the size of request bodies and on the time they take, before anything reads them."""

import asyncio

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import http_problem

TWO_LENGTHS = HTTPException(
    400, "the body has a Content-Length and a Transfer-Encoding; send one of them", {"Connection": "close"}
)


class BodyLimit:
    """ASGI middleware that answers 413 to bodies of more than `max_bytes`, announced or not, and 408 to slow ones.

    A body of two lengths is a 400: whoever stands in front may have taken the other one (RFC 9112, section 6.1).
    The framework's own limit answers in plain text and goes round all other middleware.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, seconds: float):
        """seconds is the longest that a whole body may take to arrive."""
        self._app, self._seconds = app, seconds
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its body counted, or refuse it."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        if "content-length" in headers and "transfer-encoding" in headers:
            return await http_problem(TWO_LENGTHS)(scope, receive, send)
        announced = headers.get("content-length", "0")
        if not announced.isdecimal() or int(announced[:19]) > self._max_bytes:
            return await http_problem(self._too_large())(scope, receive, send)
        seen, arriving = 0, True
        deadline = asyncio.get_running_loop().time() + self._seconds

        async def receive_counted() -> Message:
            nonlocal seen, arriving
            try:
                async with asyncio.timeout_at(deadline if arriving else None):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"the body did not arrive within {self._seconds:g} seconds") from None
            arriving = arriving and message.get("more_body", False)
            seen += len(message.get("body", b""))
            if seen > self._max_bytes:
                raise self._too_large()
            return message

        await self._app(scope, receive_counted, send)

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"the body is larger than {self._max_bytes} bytes")
