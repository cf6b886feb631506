"""Measures the costs: a real Redis, real replicas, HAProxy and Prometheus, on the loopback address, one after the other."""

import asyncio
import os
import platform
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from redis.asyncio import Redis as Client

from benchmarks.checks.host import ROOT, Host, host
from benchmarks.scale import edges
from benchmarks.scale.costs import Balancer, Connections, Costs, Memory, Pending, Redis, Replica
from benchmarks.scale.meter import Count, Meter
from benchmarks.scale.processes import cpu_seconds, free_port, started
from benchmarks.scale.visitor import AT_ONCE, Body, Disturbed, Visitor, each, end, undisturbed
from diffusion import provenance

STREAMS, GROUP = "{stepdial}:jobs*", "replicas"
"""Where the job store keeps who draws what: a stream of the family that is served (server/jobs_scripts.py)."""
PENDING = (0, 16, 160, 480, 960)
"""Jobs in other replicas' hands beside which looking for a job is measured."""
HANDS = 16
"""Jobs that a replica has in hand at most: a wave's worth."""
REQUESTS = 100
"""Requests of each round."""
JOBS_OF_A_ROUND = 48
DRAWN = {1: 192, 2: 128, 4: 96, 8: 64, 16: 48}
"""Images drawn of each dial position."""
CROWD = 48
"""Requests in flight while drawing is measured: three full waves."""
VISITS = 5
"""How often the balancer is asked for each of them in each round."""
BURST = 300
"""Requests at once, after which connections are counted."""
LONG_STEPS = 512
"""Steps of jobs that are to wait."""
WAITING = 200
WATCHERS = 20
SECONDS = 5.0
"""How long what goes on all the time is measured in each round."""
PROGRAMS = {"redis-server": "--version", "haproxy": "-v", "prometheus": "--version"}
Act = Callable[[], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Bench:
    """What is measured with."""

    folder: Path
    url: str
    """Of Redis."""
    meter: Meter

    def serve(self, family: Path) -> AbstractAsyncContextManager[Host]:
        """A replica. Its leases do not run out, so that it leaves alone what is planted as other replicas' work."""
        return host(
            family, "--redis-url", self.url, "--keys-file", str(self.folder / "keys.json"),
            "--job-lease-seconds", "36000", "--max-jobs", "100000",
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Subject:
    """The replica that is measured, and who asks it."""

    meter: Meter
    server: Host
    free: Visitor
    limited: Visitor
    seeds: Iterator[int] = field(default_factory=lambda: count(1))

    @property
    def address(self) -> str:
        """Host and port of the replica."""
        return self.free.url.removeprefix("http://")

    def bodies(self, number: int, steps: int = 1) -> list[Body]:
        """So many requests for images that nobody has drawn."""
        _, wish = self.server.wishes(str(steps), seed=0).next()
        return [wish | {"seed": next(self.seeds)} for _ in range(number)]

    async def kept(self, number: int) -> list[Body]:
        """So many requests for images that the cache has."""
        bodies = self.bodies(number)

        async def fill() -> None:
            await self.drawn(bodies, cached=None)
            await self.drawn(bodies, cached=True)

        await undisturbed(fill)
        return bodies

    async def drawn(self, bodies: Sequence[Body], visitor: Visitor | None = None, *, cached: bool | None) -> None:
        """Have these drawn, and make sure where the images came from."""
        await each(partial((visitor or self.free).draw, body, cached=cached) for body in bodies)


async def measure(family: Path, small_family: Path, balancer: Path, note: str) -> Costs:
    """Measure everything with this family; replicas that only wait serve the small one. Raises NotServed, Disturbed."""
    began, commit = provenance.now(), provenance.commit()
    found: dict[str, Any] = {}
    with TemporaryDirectory() as name:
        async with _bench(Path(name)) as bench:
            found["three_idle_replicas"] = await _three(bench, small_family)
            await bench.meter.client.flushall()
            await bench.meter.calibrate(SECONDS)
            async with bench.serve(family) as server:
                found |= await _everything(bench, server, balancer)
    return Costs(
        command=provenance.command(),
        commit=commit,
        measured_at=began,
        note=note,
        machine=f"{provenance.device_name(torch.device('cpu'))} of {os.cpu_count()}, Linux {platform.release()}",
        versions=provenance.versions() | {program: _version(program) for program in PROGRAMS},
        family=family.name,
        **found,
    )


@asynccontextmanager
async def _bench(folder: Path) -> AsyncIterator[Bench]:
    port = free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "", "--appendonly", "yes"]
    async with started(["redis-server", *options], port), Client(port=port, protocol=2, socket_timeout=None) as client:
        yield Bench(folder, f"redis://127.0.0.1:{port}/0", Meter(client))


def _key(folder: Path, name: str, *arguments: str) -> str:
    """Make a key, as an operator would."""
    command = [sys.executable, str(ROOT / "stepdial.py"), "keys", "--keys-file", str(folder / "keys.json")]
    made = subprocess.run([*command, "add", name, *arguments], capture_output=True, text=True, check=True)
    return made.stdout.strip()


async def _three(bench: Bench, family: Path) -> Redis:
    """What three replicas take that have nothing to do."""
    _key(bench.folder, "nobody")
    await bench.meter.calibrate(SECONDS)
    async with AsyncExitStack() as replicas:
        for _ in range(3):
            await replicas.enter_async_context(bench.serve(family))
        return await bench.meter.cost_per_second(SECONDS)


async def _everything(bench: Bench, server: Host, balancer: Path) -> dict[str, Any]:
    """What one replica takes, and its requests."""
    free = _key(bench.folder, "free")
    limited = _key(bench.folder, "limited", "--evaluations-per-minute", "1000000000")
    url, meter = server.client.url, bench.meter
    async with Visitor(url, free) as first, Visitor(url, limited) as second:
        subject = Subject(meter, server, first, second)
        idle_connections = len(await meter.client.client_list()) - 1
        found: dict[str, Any] = {"idle_replica": await meter.cost_per_second(SECONDS)}
        await meter.calibrate(SECONDS)  # from here on a replica that has nothing to do costs nothing
        start = await edges.exposition(f"{url}/metrics")
        found |= await _requests(subject)
        found |= await _jobs(subject)
        found["pending"] = await _pending(subject)
        await each((partial(first.draw, body) for body in subject.bodies(1) * BURST), at_once=BURST)
        connections = len(await meter.client.client_list()) - 1
        found["connections"] = Connections(idle=idle_connections, after_burst=connections, burst=BURST)
        found["replica"] = await _replica(subject, start)
        found["balancer"] = await _balancer(bench, subject, balancer)
        found["prometheus"] = await edges.prometheus(bench.folder, f"{url}/metrics")
        found["memory"] = await _memory(subject, found.pop("done_job_bytes"), found.pop("cached_image_bytes"))
        found["watch"] = await _watch(subject)
    return found


async def _requests(subject: Subject) -> dict[str, Any]:
    """Requests that are answered at once."""
    meter, before = subject.meter, await _memory_used(subject)
    kept = len(await meter.client.keys("*result*"))

    async def miss() -> None:
        await subject.drawn(subject.bodies(REQUESTS), cached=False)

    found: dict[str, Any] = {"miss": await meter.cost(miss, REQUESTS)}
    images = len(await meter.client.keys("*result*")) - kept
    found["cached_image_bytes"] = (await _memory_used(subject) - before) / images
    known = await subject.kept(REQUESTS)
    found["hit"] = await meter.cost(lambda: subject.drawn(known, cached=True), REQUESTS)
    found["limited_hit"] = await meter.cost(lambda: subject.drawn(known, subject.limited, cached=True), REQUESTS)
    return found


async def _jobs(subject: Subject) -> dict[str, Any]:
    """Jobs of one step, from their order to their end, and how one is fetched."""
    before = await _memory_used(subject)
    ids: list[str] = []

    async def order() -> None:
        ended = await _ended(subject) + JOBS_OF_A_ROUND
        for body in subject.bodies(JOBS_OF_A_ROUND):
            ids.append(await subject.free.order(body))
        while await _ended(subject) < ended:
            await asyncio.sleep(0.05)

    found: dict[str, Any] = {"job": await subject.meter.cost(order, JOBS_OF_A_ROUND, by_beats=False)}
    found["done_job_bytes"] = (await _memory_used(subject) - before) / len(ids)
    known = ids[:JOBS_OF_A_ROUND]

    async def fetch() -> None:
        await each(partial(subject.free.get, f"/jobs/{job_id}") for job_id in known)

    return found | {"fetch": await subject.meter.cost(fetch, len(known))}


async def _ended(subject: Subject) -> float:
    """Jobs that the replica has brought to an end; asking it does not reach Redis.

    Those count that it takes for lost, since it does so, too, when it finishes a job while it asks whether it still has it.
    """
    found = await subject.server.scrape()
    return sum(found.value("stepdial_jobs_total", outcome=outcome) for outcome in ("done", "failed", "lost"))


async def _pending(subject: Subject) -> tuple[Pending, ...]:
    """What a replica that looks for jobs takes beside jobs that others draw.

    Those are planted: entries of the stream, read by consumers of other names, as other replicas' entries are.
    """
    client = subject.meter.client
    (stream,) = [key async for key in client.scan_iter(match=STREAMS, _type="stream")]
    planted: list[bytes] = []
    found: list[Pending] = []
    for jobs in PENDING:
        for first in range(len(planted), jobs, HANDS):
            async with client.pipeline(transaction=True) as pipe:
                for number in range(first, first + HANDS):
                    pipe.xadd(stream, {"id": f"job_{number}"})
                pipe.xreadgroup(GROUP, f"planted-{first}", {stream: ">"}, count=HANDS)
                planted += (await pipe.execute())[:HANDS]
        found.append(await _beside(subject, stream, jobs))
    async with client.pipeline() as pipe:
        pipe.xack(stream, GROUP, *planted)
        pipe.xdel(stream, *planted)
        await pipe.execute()
    return tuple(found)


async def _beside(subject: Subject, stream: bytes, jobs: int) -> Pending:
    """What a second of a replica with nothing to do takes beside so many jobs, over and above what was last calibrated."""
    took = await subject.meter.cost_per_second(SECONDS)
    left = (await subject.meter.client.xpending(stream, GROUP))["pending"]
    if left != jobs:
        raise Disturbed(f"{jobs} jobs were planted and {left} are left")
    return Pending(jobs=jobs, cpu_seconds=took.cpu_seconds.mean, calls=took.calls)


async def _memory_used(subject: Subject) -> float:
    """Return the bytes that Redis holds, but for the buffers of its connections and its log."""
    await asyncio.sleep(2)  # Redis takes stock of the buffers about once a second
    found = await subject.meter.client.info("memory")
    return float(found["used_memory"]) - found["mem_clients_normal"] - found["mem_aof_buffer"]


async def _memory(subject: Subject, done_job: float, cached_image: float) -> Memory:
    """What jobs that wait occupy; they go on waiting afterwards."""
    before = await _memory_used(subject)
    bodies = subject.bodies(WAITING, LONG_STEPS)
    await each(partial(subject.free.order, body) for body in bodies)
    waiting = (await _memory_used(subject) - before) / WAITING
    return Memory(waiting_job=waiting, done_job=done_job, cached_image=cached_image)


async def _replica(subject: Subject, start: tuple[int, int]) -> Replica:
    """What the replica itself takes."""
    free, (at_start, _) = subject.free, start
    known = await subject.kept(REQUESTS)
    idle = await _taken(subject, partial(asyncio.sleep, SECONDS))
    rest = idle.cpu_seconds / idle.seconds

    async def each_of(acts: Sequence[Act], at_once: int = AT_ONCE) -> float:
        took = await undisturbed(lambda: _taken(subject, lambda: each(acts, at_once)))
        return (took.cpu_seconds - rest * took.seconds) / len(acts)

    hit = await each_of([partial(free.draw, body, cached=True) for body in known * 3])
    check = await each_of([partial(free.get, "/readyz")] * 5 * REQUESTS)
    drawing = {
        steps: await each_of([partial(free.draw, body) for body in subject.bodies(images, steps)], CROWD)
        for steps, images in DRAWN.items()
    }
    scrape = await each_of([partial(free.get, "/metrics")] * REQUESTS, 1)
    series, size = await edges.exposition(f"{free.url}/metrics")
    return Replica(
        drawing_cpu_seconds=drawing,
        hit_cpu_seconds=hit,
        check_cpu_seconds=check,
        scrape_cpu_seconds=scrape,
        series_at_start=at_start,
        series_per_position=(series - at_start) / len(DRAWN),
        bytes_per_series=size / series,
    )


async def _taken(subject: Subject, act: Act) -> Count:
    before, began = cpu_seconds(subject.server.pid), perf_counter()
    await act()
    return Count(cpu_seconds=cpu_seconds(subject.server.pid) - before, seconds=perf_counter() - began)


async def _balancer(bench: Bench, subject: Subject, configuration: Path) -> Balancer:
    """What the balancer takes for requests that are answered at once."""
    known = await subject.kept(REQUESTS)

    async def visit(url: str) -> None:
        async with Visitor(url, subject.free.key) as visitor:
            await subject.drawn(known * VISITS, visitor, cached=True)

    return await edges.balancer(configuration, bench.folder, subject.address, visit, VISITS * REQUESTS)


async def _watch(subject: Subject) -> Redis:
    """What following a job that waits takes, over and above the jobs that are being drawn."""
    ids = [await subject.free.order(body) for body in subject.bodies(WATCHERS, LONG_STEPS)]
    await subject.meter.calibrate(SECONDS)
    watching = [asyncio.create_task(subject.free.watch(job_id)) for job_id in ids]
    await asyncio.sleep(SECONDS)
    found = await subject.meter.cost_per_second(SECONDS, WATCHERS)
    await end(watching)
    return found


def _version(program: str) -> str:
    """Return the version that a program tells of itself."""
    found = subprocess.run([program, PROGRAMS[program]], capture_output=True, text=True, check=True)
    match = re.search(r"\d+\.\d+\.\d+", found.stdout + found.stderr)
    return match[0] if match else "unknown"
