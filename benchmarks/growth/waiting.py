"""The curves of waiting jobs: what one more order takes, beside none and thousands."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from statistics import median
from time import perf_counter
from typing import Any

from benchmarks.checks.host import Host, host
from benchmarks.growth.budget import Budget
from benchmarks.growth.result import Point, Tally
from benchmarks.load.client import NotServed
from benchmarks.load.wishes import Wishes
from benchmarks.scale.processes import cpu_seconds, free_port, started

AT_ONCE = 16
"""Orders in flight while the queue is filled."""
LONG_EVALUATIONS = 4096
"""Network evaluations of the job that keeps the device busy, so that all others wait: as many as a server takes at once."""
ROOM = 1000
"""How many more jobs than are to wait the server takes."""
SETTLE_SECONDS = 0.003
"""How long after an answer the loop's time is read: by then it has logged and counted the request."""


async def waiting(folder: Path, budget: Budget, *, redis: bool) -> list[Point]:
    """Return what ordering, looking at and taking back one job takes by jobs that wait, in memory or in Redis.

    Every round has a server of its own, whose queue grows from point to point; it draws one sample a wave, so that its
    event loop has a core to itself where there are two. Raises NotServed.
    """
    tally = Tally("waiting-redis" if redis else "waiting-memory")
    for number in range(budget.rounds):
        async with _queue(folder, max(budget.waiting), redis) as (served, redis_pid):
            orders = Orders(served, number)
            await orders.hold()
            for count in budget.waiting:
                await orders.fill(count)
                tally.add(count, await orders.probe(budget.probes, redis_pid))
    return tally.points()


def redis_is_there() -> bool:
    """Whether a Redis can be started."""
    return shutil.which("redis-server") is not None


@asynccontextmanager
async def _queue(folder: Path, most: int, redis: bool) -> AsyncIterator[tuple[Host, int | None]]:
    """A server with room for the jobs, and the process id of its Redis."""
    room = ["--max-jobs", str(most + ROOM), "--max-wave", "1"]
    if not redis:
        async with host(folder, *room) as served:
            yield served, None
        return
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    async with (
        started(command, port) as pid,
        host(folder, *room, "--redis-url", f"redis://127.0.0.1:{port}/0") as served,
    ):
        yield served, pid


class Orders:
    """Jobs that wait in a server, and those that are ordered beside them."""

    def __init__(self, served: Host, seed: int):
        self._served = served
        self._longest = served.positions[-1]
        self._wishes = Wishes(served.served["data"][0], {self._longest: 1.0}, Random(seed))
        self._waiting = 0

    async def hold(self) -> None:
        """Order the job that is drawn while the others wait, and return when it is begun."""
        job = await self._order(n=max(1, LONG_EVALUATIONS // self._longest))
        while (await self._ask("GET", f"/jobs/{job['id']}", 200))["state"] == "queued":
            await asyncio.sleep(0.05)

    async def fill(self, count: int) -> None:
        """Order until so many jobs wait."""
        missing = iter(range(self._waiting, count))

        async def one() -> None:
            for _ in missing:
                await self._order()

        await asyncio.gather(*(one() for _ in range(AT_ONCE)))
        self._waiting = count

    async def probe(self, times: int, redis_pid: int | None) -> dict[str, float]:
        """Return medians of ordering one more job, looking at it and taking it back: time to the answer, and of the event loop."""
        found: dict[str, list[float]] = {}

        async def timed(name: str, act: Callable[[], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
            loop, redis, began = self._loop_seconds(), cpu_seconds(redis_pid) if redis_pid else 0.0, perf_counter()
            answer = await act()
            found.setdefault(f"{name}: answer, ms", []).append(1e3 * (perf_counter() - began))
            await asyncio.sleep(SETTLE_SECONDS)
            found.setdefault(f"{name}: event loop, ms", []).append(1e3 * (self._loop_seconds() - loop))
            if redis_pid:
                found.setdefault(f"{name}: Redis, ms", []).append(1e3 * (cpu_seconds(redis_pid) - redis))
            return answer

        for _ in range(times):
            job = await timed("order", self._order)
            if job["position"] != self._waiting:
                raise NotServed(
                    f"{job['position']} jobs wait instead of {self._waiting}: those before were drawn too fast"
                )
            path = f"/jobs/{job['id']}"
            await timed("look", lambda path=path: self._ask("GET", path, 200))  # type: ignore[misc]
            await timed("take back", lambda path=path: self._ask("DELETE", path, 200))  # type: ignore[misc]
        return {name: median(values) for name, values in found.items()}

    async def _order(self, **fields: Any) -> dict[str, Any]:
        return await self._ask("POST", "/jobs", 202, json=self._wishes.next()[1] | fields)

    async def _ask(self, method: str, path: str, expected: int, **content: Any) -> dict[str, Any]:
        status, _, body = await self._served.client.ask(method, path, **content)
        answer: Mapping[str, Any] = json.loads(body)
        if status != expected:
            raise NotServed(f"{method} {path.partition('job_')[0]} was answered with {status}: {answer.get('detail')}")
        return dict(answer)

    def _loop_seconds(self) -> float:
        """Processor time of the server's main thread, which is its event loop; Linux only."""
        pid = self._served.pid
        return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]) / 1e9
