"""Work is worth doing only while somebody waits for it."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from fastapi import Request

from server.failures import ClientGone

T = TypeVar("T")


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """Return what the work returns, or cancel it and raise ClientGone when the client hangs up first.

    The body must have been read: the next message is then the disconnect. uvicorn cancels no handler by itself.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
