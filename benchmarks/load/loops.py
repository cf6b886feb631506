"""Open and closed loops: when requests are sent, and for how long."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter, process_time

from benchmarks.load.client import Answer, Client
from benchmarks.load.wishes import Wishes

REFUSED_SECONDS = 1.0
"""How long a client of a closed loop waits after a failure that says nothing about it."""


@dataclass(frozen=True, slots=True)
class Extent:
    """How long a run lasts, in seconds from its beginning, and what of it counts."""

    warmup_seconds: float
    """Load of the same kind that goes before and is not counted."""
    seconds: float | None = None
    """How long is measured after that; None: until `requests` were sent."""
    requests: int | None = None
    """How many requests are measured; None: as many as there are in `seconds`."""

    def goes_on(self, at: float, counted: int) -> bool:
        """Whether a request is to be sent at this time, `counted` having been sent since the warm-up."""
        if self.requests is not None:
            return counted < self.requests
        assert self.seconds is not None
        return at < self.warmup_seconds + self.seconds


@dataclass(frozen=True, slots=True)
class Run:
    """Every answer of a run."""

    answers: list[Answer]
    """In the order in which they came; those of the warm-up too."""
    begin: float
    """When measuring began, in seconds from the beginning of the run."""
    end: float
    """When the last request was to be sent that counts; in a closed loop, when its answer came."""
    cpu_share: float
    """Share of one processor core that the client used."""

    @property
    def counted(self) -> list[Answer]:
        """The answers to requests after the warm-up."""
        return [answer for answer in self.answers if answer.scheduled >= self.begin]


Tick = Callable[[float, int, int], None]
"""Called about twice a second with: seconds so far, answers so far, requests in flight."""


def unwatched(seconds: float, answers: int, flying: int) -> None:
    """A Tick for runs that nobody watches."""


async def open_loop(client: Client, wishes: Wishes, times: Iterator[float], extent: Extent, tick: Tick) -> Run:
    """Send requests at the given times (rising), whether earlier ones were answered or not, and wait for every answer."""
    load = _Load(client, wishes, tick)
    counted, last = 0, extent.warmup_seconds
    async with load:
        for at in times:
            if not extent.goes_on(at, counted):
                break
            await asyncio.sleep(max(0.0, load.began + at - perf_counter()))
            load.start(at)
            counted, last = counted + (at >= extent.warmup_seconds), at
    return load.run(extent.warmup_seconds, extent.warmup_seconds + extent.seconds if extent.seconds else last)


async def closed_loop(client: Client, wishes: Wishes, clients: int, extent: Extent, tick: Tick) -> Run:
    """Let so many clients each send a request when their last one was answered, and wait for every answer.

    A client that is refused waits as long as Retry-After says, as well-behaved ones do.
    """
    load = _Load(client, wishes, tick)
    counted = 0

    async def one() -> None:
        nonlocal counted
        while extent.goes_on(now := perf_counter() - load.began, counted):
            counted += now >= extent.warmup_seconds
            answer = await load.send(now)
            if not answer.ok:
                await asyncio.sleep(answer.retry_after or REFUSED_SECONDS)

    async with load, asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(one())
    last = max((answer.done for answer in load.answers), default=0.0)
    return load.run(extent.warmup_seconds, extent.warmup_seconds + extent.seconds if extent.seconds else last)


class _Load:
    """Requests in flight and their answers. On the way out, it waits for every answer."""

    def __init__(self, client: Client, wishes: Wishes, tick: Tick):
        self.answers: list[Answer] = []
        self._client, self._wishes, self._tick = client, wishes, tick
        self._flying = 0
        self._tasks = asyncio.TaskGroup()

    async def __aenter__(self) -> None:
        self.began, self._cpu = perf_counter(), process_time()
        await self._tasks.__aenter__()
        self._ticker = asyncio.create_task(self._report())

    async def __aexit__(self, *exception: object) -> None:
        try:
            await self._tasks.__aexit__(*exception)  # type: ignore[arg-type]
        finally:
            self._ticker.cancel()

    def start(self, at: float) -> None:
        """Send a request that is due at this time, without waiting for its answer."""
        self._tasks.create_task(self.send(at))

    async def send(self, at: float) -> Answer:
        """Send a request that is due at this time, and keep its answer."""
        self._flying += 1
        steps, body = self._wishes.next()
        answer = await self._client.send(steps, body, at, self.began)
        self._flying -= 1
        self.answers.append(answer)
        return answer

    def run(self, begin: float, end: float) -> Run:
        """Return what came of it."""
        share = (process_time() - self._cpu) / (perf_counter() - self.began)
        return Run(self.answers, begin, end, share)

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            self._tick(perf_counter() - self.began, len(self.answers), self._flying)
