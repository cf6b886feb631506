"""The visitor: sends the requests whose costs are measured, and makes sure that they were what they should be."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from itertools import count
from typing import Any, TypeVar

import aiohttp

PATIENCE_SECONDS = 600
"""How long one request may take: the machine may be busy with something else."""
AT_ONCE = 2
"""Requests in flight, few enough that the replica always gets round to Redis's answer in the quarter second that it waits."""
TRIES, REST_SECONDS = 8, 6.0
"""How often something that was disturbed is tried again, and after how long: a replica leaves a late cache alone for 5 s."""


T = TypeVar("T")
Body = Mapping[str, Any]
"""What a request asks for."""


class Disturbed(Exception):
    """Something was answered otherwise than it should be, so that its cost means nothing."""


class Visitor:
    """A client with a key; an asynchronous context manager."""

    def __init__(self, url: str, key: str):
        self.url, self.key = url, key
        self._headers = {"Authorization": f"Bearer {key}"}
        self._orders = count()

    async def __aenter__(self) -> "Visitor":
        self._session = aiohttp.ClientSession(
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=PATIENCE_SECONDS),
            connector=aiohttp.TCPConnector(
                limit=0, keepalive_timeout=2
            ),  # less than the server's, which hangs up after 5
        )
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._session.close()

    async def draw(self, body: Body, *, cached: bool | None = None) -> None:
        """Draw one image; cached: whether it has to come from the cache, None where that is all the same."""
        async with self._session.post(f"{self.url}/generate", json=body) as response:
            await response.read()
            _expect(response.status == 200, f"POST /generate was answered {response.status}")
            hit = response.headers.get("X-Cache") == "hit"
            _expect(cached in (None, hit), "the cache was left alone" if cached else "the cache knew what is new")

    async def order(self, body: Body) -> str:
        """Order a job of one image, with an idempotency key, as the balancer sees to, and return its id."""
        headers = {"Idempotency-Key": f"order-{next(self._orders)}"}
        async with self._session.post(f"{self.url}/jobs", json=body, headers=headers) as response:
            found: dict[str, Any] = await response.json()
            _expect(response.status == 202, f"POST /jobs was answered {response.status}")
            return str(found["id"])

    async def get(self, path: str) -> str:
        """Return what a path answers."""
        async with self._session.get(self.url + path) as response:
            text = await response.text()
            _expect(response.status == 200, f"GET {path} was answered {response.status}")
            return text

    async def watch(self, job_id: str) -> None:
        """Follow a job's events until cancelled."""
        async with self._session.get(f"{self.url}/jobs/{job_id}/events") as response:
            async for _ in response.content:
                pass


async def each(acts: Iterable[Callable[[], Awaitable[Any]]], at_once: int = AT_ONCE) -> None:
    """Do all of this, so many at once."""
    waiting = list(acts)

    async def one() -> None:
        while waiting:
            await waiting.pop()()

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(one())


async def undisturbed(act: Callable[[], Awaitable[T]]) -> T:
    """Do this until it is not disturbed, and return what it returns. Raises Disturbed where it always is."""
    for _ in range(TRIES):
        try:
            return await act()
        except* Disturbed:
            await asyncio.sleep(REST_SECONDS)
    raise Disturbed("the machine is too busy: it was disturbed each time")


async def end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until they are gone."""
    for task in tasks:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def _expect(found: bool, otherwise: str) -> None:
    if not found:
        raise Disturbed(otherwise)
