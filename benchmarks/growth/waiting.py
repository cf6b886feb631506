"""The curves of waiting jobs: what one more order takes, beside none and thousands."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
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
DRAWN_SHARE = 0.01
"""The largest part of those that wait that may have been drawn meanwhile."""
SETTLE_SECONDS = 0.003
"""How long after an answer the loop's time is read: by then it has logged and counted the request."""


async def waiting(folder: Path, budget: Budget, *, redis: bool) -> list[Point]:
    """Return what ordering, looking at and taking back one job takes by jobs that wait, in memory or in Redis.

    One server's queue grows from point to point, and each point has its probes one after another. The server draws one
    sample a wave, so that its event loop has a core to itself where there are two. Raises NotServed.
    """
    tally = Tally("waiting-redis" if redis else "waiting-memory")
    async with _queue(folder, max(budget.waiting), redis) as (served, redis_pid):
        orders = Orders(served, redis_pid)
        await orders.hold()
        for count in budget.waiting:
            await orders.fill(count)
            tally.add(count, *[await orders.probe() for _ in range(budget.probes)])
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

    def __init__(self, served: Host, redis_pid: int | None):
        self._served, self._redis_pid = served, redis_pid
        self._longest = served.positions[-1]
        self._wishes = Wishes(served.served["data"][0], {self._longest: 1.0}, Random(0))
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

    async def probe(self) -> dict[str, float]:
        """Order one more job, look at it and take it back; return the time to each answer, and what it took of the event loop."""
        found: dict[str, float] = {}
        job = await self._timed("order", found, "POST", "/jobs", 202, json=self._wishes.next()[1])
        if abs(job["position"] - self._waiting) > DRAWN_SHARE * self._waiting:
            raise NotServed(f"{job['position']} jobs wait instead of {self._waiting}: those before were drawn too fast")
        path = f"/jobs/{job['id']}"
        await self._timed("look", found, "GET", path, 200)
        await self._timed("take back", found, "DELETE", path, 200)
        return found

    async def _timed(
        self, name: str, found: dict[str, float], method: str, path: str, expected: int, **content: Any
    ) -> dict[str, Any]:
        """What it is answered with; the milliseconds are put down as found."""
        before, began = self._processor_seconds(), perf_counter()
        answer = await self._ask(method, path, expected, **content)
        found[f"{name}: answer, ms"] = 1e3 * (perf_counter() - began)
        await asyncio.sleep(SETTLE_SECONDS)
        for part, seconds in self._processor_seconds().items():
            found[f"{name}: {part}, ms"] = 1e3 * (seconds - before[part])
        return answer

    def _processor_seconds(self) -> dict[str, float]:
        """Processor time so far of the server's main thread, which is its event loop, and of Redis; Linux only."""
        pid, redis = self._served.pid, self._redis_pid
        loop = int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]) / 1e9
        return {"event loop": loop} | ({"Redis": cpu_seconds(redis)} if redis else {})

    async def _order(self, **fields: Any) -> dict[str, Any]:
        return await self._ask("POST", "/jobs", 202, json=self._wishes.next()[1] | fields)

    async def _ask(self, method: str, path: str, expected: int, **content: Any) -> dict[str, Any]:
        status, _, body = await self._served.client.ask(method, path, **content)
        answer: dict[str, Any] = json.loads(body)
        if status != expected:
            raise NotServed(f"{method} {path.partition('job_')[0]} was answered with {status}: {answer.get('detail')}")
        return answer
