"""Bugs: whatever is raised that nobody foresaw is answered inside the other guards, so that its answer is like any other."""

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import failure_response


class Bugs:
    """ASGI middleware that answers errors without a handler, if no answer has begun.

    The framework's own place for that is outside all other middleware: its answers lack the request's mark, the security
    headers and, under /v1, OpenAI's words, and what it logs cannot be told from other requests' lines.
    """

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 500."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        begun = False

        async def send_noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, send_noted)
        except Exception as error:
            if begun:  # all that is left is to cut the connection, which the framework does
                raise
            response = await failure_response(Request(scope), error)
            await response(scope, receive, send)
