"""One request and how it ended, as a client sees it."""

import asyncio
import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Self

import aiohttp

from benchmarks.load.wishes import PATHS, Endpoint, Steps

SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"RIFF", b"\xff\xd8\xff")
"""How PNG, WebP and JPEG files begin."""


class NotServed(Exception):
    """Nothing that speaks the API answers at the URL, or it does not serve the model."""


READY_SECONDS = 300
"""How long a server that answers but is still warming up is waited for."""


@dataclass(frozen=True, slots=True)
class Answer:
    """How one request ended; times in seconds from the beginning of the run."""

    steps: Steps
    """Dial position that was asked for."""
    scheduled: float
    """When the request should have been sent. Latency counts from here, whether the client was late or not."""
    sent: float
    """When it was sent."""
    done: float
    """When its answer had arrived whole."""
    outcome: str
    """HTTP status, or timeout, connection (it broke), or no-image (a 200 without one)."""
    images: int = 0
    """Images that arrived."""
    steps_used: int | None = None
    """Dial position that the server says it drew with."""
    degraded: bool = False
    """Whether the server says that it used fewer steps than asked for."""
    deadline_met: bool | None = None
    """What the server says about the request's deadline; None where it had none."""
    stages: Mapping[str, float] | None = None
    """Seconds by stage (queue, device, encode, total), as the server measured them."""
    retry_after: float | None = None
    """The Retry-After header, in seconds."""

    @property
    def latency(self) -> float:
        """Seconds from when it should have been sent."""
        return self.done - self.scheduled

    @property
    def ok(self) -> bool:
        """Whether it brought what was asked for."""
        return self.outcome == "200"


class Client:
    """Sends requests to one server over as many connections as it takes; an asynchronous context manager."""

    def __init__(
        self, url: str, *, endpoint: Endpoint = "generate", timeout_seconds: float = 60, key: str | None = None
    ):
        self.url = url.rstrip("/")
        self._path = PATHS[endpoint]
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            headers=self._headers, timeout=self._timeout, connector=aiohttp.TCPConnector(limit=0)
        )
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._session.close()

    async def models(self) -> dict[str, Any]:
        """Return GET /models. Raises NotServed."""
        try:
            async with self._session.get(f"{self.url}/models") as response:
                found = await response.json() if response.status == 200 else {}
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise NotServed(f"{self.url} does not answer: {error or 'timeout'}") from error
        if not found.get("data"):
            raise NotServed(f"{self.url}/models lists no model")
        return found

    async def ready(self) -> None:
        """Wait until the server says that it is ready; one that has no /readyz is taken to be. Raises NotServed."""
        patience = perf_counter() + READY_SECONDS
        while True:
            async with self._session.get(self.url + "/readyz") as response:
                if response.status != 503:
                    return
            if perf_counter() > patience:
                raise NotServed(f"{self.url} was not ready within {READY_SECONDS} seconds")
            await asyncio.sleep(0.2)

    async def text(self, path: str) -> str:
        """Return what GET of the path answers."""
        async with self._session.get(self.url + path) as response:
            return await response.text()

    async def ask(self, method: str, path: str, **content: Any) -> tuple[int, Mapping[str, str], bytes]:
        """Send any request (json=, headers=) and return status, headers and body of its answer.

        Raises TimeoutError or aiohttp.ClientError.
        """
        async with self._session.request(method, self.url + path, **content) as response:
            return response.status, response.headers, await response.read()

    async def post(self, body: Mapping[str, Any]) -> tuple[int, Mapping[str, str], bytes]:
        """Send a request for images, as `ask` does."""
        return await self.ask("POST", self._path, json=body)

    async def send(self, steps: Steps, body: Mapping[str, Any], scheduled: float, began: float) -> Answer:
        """Send a request now and return how it ended; `began` is the run's beginning on the clock of perf_counter."""
        sent = perf_counter() - began
        try:
            status, headers, data = await self.post(body)
        except (TimeoutError, aiohttp.ClientError) as error:
            outcome = "timeout" if isinstance(error, TimeoutError) else "connection"
            return Answer(steps, scheduled, sent, perf_counter() - began, outcome)
        done = perf_counter() - began
        if status == 200:
            return _drawn(steps, (scheduled, sent, done), json.loads(data))
        after = headers.get("Retry-After", "")
        seconds = float(after) if after.isdecimal() else None
        return Answer(steps, scheduled, sent, done, str(status), retry_after=seconds)

    async def leave(self, body: Mapping[str, Any], seconds: float) -> bool:
        """Send a request and hang up after so many seconds; return whether it was still unanswered then."""
        try:
            async with asyncio.timeout(seconds):
                await self.post(body)
        except TimeoutError:
            return True
        return False


def _drawn(steps: Steps, times: tuple[float, float, float], found: Mapping[str, Any]) -> Answer:
    images = [item.get("b64_json") or "" for item in found.get("data", ())]
    whole = bool(images) and all(base64.b64decode(image[:16]).startswith(SIGNATURES) for image in images)
    timings = found.get("timings") or {}
    return Answer(
        steps,
        *times,
        outcome="200" if whole else "no-image",
        images=len(images),
        steps_used=found.get("steps_used"),
        degraded=bool(found.get("degraded")),
        deadline_met=found.get("deadline_met"),
        stages={name.removesuffix("_seconds"): seconds for name, seconds in timings.items() if seconds is not None},
    )
