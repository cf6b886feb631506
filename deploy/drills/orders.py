"""Clients who order: a job under a key, asked for until it is accepted, looked at until it is done, and fetched twice."""

import asyncio
import base64
import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import aiohttp

from benchmarks.load.client import Client

LOOK_SECONDS = (0.3, 3.0)
"""How often a client looks at a job: soon at first, later whenever its age has grown by a tenth."""
AGAIN_SECONDS = 0.5
"""How long a client waits after a failure that says nothing about it."""
LONGEST_WAIT_SECONDS = 5.0
"""How long a client waits at most, whatever Retry-After says."""
TIMEOUT = aiohttp.ClientTimeout(total=30)
"""When a client takes an order or a look to be lost, and repeats it."""


class Unexpected(Exception):
    """An answer that no drill explains, a wrong key for instance; the message has it."""


@dataclass(slots=True)
class Attempts:
    """How requests of one kind were answered, each repeated until it is."""

    answered: int = 0
    refused: int = 0
    """503 or 429 with Retry-After."""
    failures: Counter[str] = field(default_factory=Counter)
    """Everything else, by HTTP status, timeout or connection."""

    def note(self, status: int, headers: Mapping[str, str]) -> float | None:
        """Count an answer; return seconds after which to ask again, None if there is nothing more to ask."""
        if status in (429, 503) and headers.get("Retry-After", "").isdecimal():
            self.refused += 1
            return min(LONGEST_WAIT_SECONDS, float(headers["Retry-After"]))
        if status == 429 or status >= 500:
            self.failures[str(status)] += 1
            return AGAIN_SECONDS
        self.answered += 1
        return None


class Order:
    """One order, from its client's side; times in seconds since `began`, on the clock of perf_counter."""

    def __init__(self, client: Client, body: Mapping[str, Any], key: str, began: float):
        self._client, self._began = client, began
        self.body, self.key = body, key
        self.orders, self.looks = Attempts(), Attempts()
        self.ordered_at = self._now()
        self.accepted_at: float | None = None
        self.done_at: float | None = None
        self.ids: list[str] = []
        """Ids of the jobs that the key stood for; more than one if it was forgotten."""
        self.state = ""
        self.problem: dict[str, Any] | None = None
        self.begun = 0
        """How often the job was begun."""
        self.forgotten = 0
        """How often an accepted job was not known any more before its result had been fetched."""
        self.results: list[str] = []
        """SHA-256 of the images, each time they were fetched."""

    @property
    def lost(self) -> bool:
        """Whether the job was accepted and its result never came, or came only because it was ordered again."""
        return self.accepted_at is not None and (self.forgotten > 0 or not self.results)

    async def run(self) -> None:
        """Order, look until the job has ended, fetch. Goes on until it has or is cancelled. Raises Unexpected."""
        await self.repeat()
        self.done_at = self._now()

    async def place(self) -> None:
        """Order until accepted: the first time, or once more under the same key."""
        status, data = await self._insist(
            self.orders, "POST", "/jobs", json=self.body, headers={"Idempotency-Key": self.key}
        )
        if status not in (200, 202):
            raise Unexpected(f"POST /jobs was answered {status}: {data[:300]!r}")
        self.accepted_at = self.accepted_at or self._now()
        if (job := json.loads(data)["id"]) not in self.ids:
            self.ids.append(job)

    async def repeat(self) -> None:
        """Do the same again, which makes no second job unless the first was forgotten, and fetches the result again."""
        await self.place()
        while not await self._ended():
            soon, late = LOOK_SECONDS
            await asyncio.sleep(min(late, max(soon, (self._now() - self.ordered_at) / 10)))
        if self.state == "done":
            await self.fetch()

    async def fetch(self) -> None:
        """Fetch the images of a job that is done."""
        found = hashlib.sha256()
        for index in range(self.body.get("n", 1)):
            status, data = await self._insist(self.looks, "GET", f"/jobs/{self.ids[-1]}/images/{index}")
            if status != 200:
                self.forgotten += not self.results
                return
            found.update(data)
        self.results.append(found.hexdigest())

    async def drawn(self) -> str:
        """Return the SHA-256 of the images that POST /generate draws for the same body. Raises Unexpected."""
        status, data = await self._insist(Attempts(), "POST", "/generate", json=self.body)
        if status != 200:
            raise Unexpected(f"POST /generate was answered {status}: {data[:300]!r}")
        images = [base64.b64decode(image["b64_json"]) for image in json.loads(data)["data"]]
        return hashlib.sha256(b"".join(images)).hexdigest()

    async def _ended(self) -> bool:
        """Look at the job; order it again if nobody knows it any more."""
        status, data = await self._insist(self.looks, "GET", f"/jobs/{self.ids[-1]}")
        if status == 404:
            self.forgotten += not self.results
            await self.place()
            return False
        if status != 200:
            raise Unexpected(f"GET /jobs/ID was answered {status}: {data[:300]!r}")
        job = json.loads(data)
        self.state, self.problem, self.begun = job["state"], job["problem"], job["attempts"]
        return self.state in ("done", "failed", "cancelled")

    async def _insist(self, attempts: Attempts, method: str, path: str, **content: Any) -> tuple[int, bytes]:
        """Ask until there is an answer that is no refusal, as a careful client does; for how long, the caller says."""
        while True:
            try:
                status, headers, data = await self._client.ask(method, path, timeout=TIMEOUT, **content)
            except (TimeoutError, aiohttp.ClientError) as error:
                attempts.failures["timeout" if isinstance(error, TimeoutError) else "connection"] += 1
                wait: float | None = AGAIN_SECONDS
            else:
                wait = attempts.note(status, headers)
            if wait is None:
                return status, data
            await asyncio.sleep(wait)

    def _now(self) -> float:
        return perf_counter() - self._began
