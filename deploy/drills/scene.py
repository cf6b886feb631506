"""The scene of a drill: a stack under load, who watches it, and what has been done to it so far."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import perf_counter

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.load.client import Client
from deploy.drills.load import Load
from deploy.drills.settings import DrillSettings
from deploy.drills.stack import Stack, StackBroken

WATCH_SECONDS = 0.25
"""How often the balancer is asked."""
BUSY_SECONDS = 0.1
"""How often replicas are asked for jobs in hand: a job may be short."""
NO_JOB = "/jobs/job_" + 32 * "0"
"""A job that does not exist: 404 while Redis can be reached, 503 while it cannot."""


@dataclass(frozen=True, slots=True)
class Moment:
    """Something that was done, or was seen."""

    seconds: float
    """Since the load began."""
    what: str


@dataclass
class Watch:
    """What the balancer said about its replicas all the while."""

    fewest: int | None = None
    """Fewest replicas that took requests at one time."""
    up: int = 0
    """How many do now."""
    retries: float = 0.0
    """Requests that it sent to a replica again, or to another one."""
    last: dict[str, float] = field(default_factory=dict)

    def note(self, text: str) -> None:
        """Take in its metrics of this moment; a counter that has fallen is one that began anew."""
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.labels.get("proxy") != "stepdial":
                    continue
                if sample.name == "haproxy_backend_active_servers":
                    self.up = int(sample.value)
                    self.fewest = min(self.up, self.fewest if self.fewest is not None else self.up)
                elif sample.name in (
                    "haproxy_backend_retry_warnings_total",
                    "haproxy_backend_redispatch_warnings_total",
                ):
                    before = self.last.get(sample.name, sample.value)
                    self.retries += sample.value - (before if before <= sample.value else 0.0)
                    self.last[sample.name] = sample.value


class Scene:
    """What a fault acts on. Times are in seconds since the load began."""

    def __init__(self, stack: Stack, client: Client, load: Load, settings: DrillSettings):
        self.stack, self.load = stack, load
        self.seconds, self.hold = settings.seconds, settings.hold
        self._client, self.patience = client, settings.patience
        self.watch = Watch()
        self.moments: list[Moment] = []
        self.began_at: float | None = None
        """When the first thing was broken."""
        self.mended_at: float | None = None
        """When the last thing was mended."""
        self.whole_at: float | None = None
        """When every replica took requests again, and the store could be reached."""
        self.in_hand = 0
        """Jobs in hand of the replica that was to be broken, just before."""

    @property
    def now(self) -> float:
        """Seconds since the load began."""
        return perf_counter() - self.load.began

    def mark(self, what: str) -> None:
        """Note something that is seen now."""
        self.moments.append(Moment(round(self.now, 2), what))
        print(f"  {self.now:7.1f} s  {what}", flush=True)

    async def act(self, what: str, action: Awaitable[None]) -> None:
        """Break something, or mend it."""
        self.mark(what)
        if self.began_at is None:
            self.began_at = self.now
        await action
        self.mended_at = self.now

    async def busy_replica(self) -> str:
        """Return a replica that has a job in hand, and note how many; waits, but no longer than parts are waited for."""
        until = perf_counter() + self.patience
        async with aiohttp.ClientSession() as session:
            while True:
                for name in self.stack.replicas:
                    self.in_hand = await self._running(session, name)
                    if self.in_hand > 0 or perf_counter() > until:
                        return name
                await asyncio.sleep(BUSY_SECONDS)

    async def _running(self, session: aiohttp.ClientSession, replica: str) -> int:
        async with session.get(await self.stack.metrics_of(replica)) as answer:
            families = text_string_to_metric_families(await answer.text())
        return int(sum(s.value for family in families for s in family.samples if s.name == "stepdial_jobs_running"))

    async def whole(self) -> None:
        """Wait until every replica takes requests and the store can be reached. Raises StackBroken."""
        until = perf_counter() + self.patience
        while not (self.watch.up == len(self.stack.replicas) and await self._store_answers()):
            if perf_counter() > until:
                raise StackBroken(f"{self.watch.up} of {len(self.stack.replicas)} replicas after {self.patience:g} s")
            await asyncio.sleep(WATCH_SECONDS)
        self.whole_at = self.now

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Watch the balancer inside the block."""
        watching = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watching.cancel()

    async def _watch(self) -> None:
        async with aiohttp.ClientSession() as session:
            while True:
                try:
                    async with session.get(self.stack.metrics_url + "?scope=backend") as answer:
                        self.watch.note(await answer.text())
                except (TimeoutError, aiohttp.ClientError):
                    # it is just being reloaded; the load sees whether anybody noticed
                    self.watch.up = 0
                await asyncio.sleep(WATCH_SECONDS)

    async def _store_answers(self) -> bool:
        try:
            status, _, _ = await self._client.ask("GET", NO_JOB)
        except (TimeoutError, aiohttp.ClientError):
            return False
        return status == 404
