"""What stands around the replicas, measured: HAProxy with the repository's configuration, and Prometheus."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from statistics import fmean

import aiohttp

from benchmarks.scale.costs import Balancer, Prometheus
from benchmarks.scale.meter import ROUNDS, summed
from benchmarks.scale.processes import cpu_seconds, free_port, resident_bytes, started
from benchmarks.scale.visitor import Disturbed, undisturbed

SERVERS = 100
"""Replicas that the balancer is told of, all of them the one that there is: it checks each every second."""
SCRAPED = (1, 41)
"""Targets of Prometheus, all of them one page of a replica's metrics, which HAProxy holds: a replica would be kept busy."""
CHECK_SECONDS = 5.0
SCRAPE_SECONDS = 2
"""Interval of Prometheus while it is measured."""
SCRAPES = 15
"""Scrapes of each target that are measured."""
PAGE = """global
    tune.bufsize 4194304
defaults
    mode http
    timeout client 10s
frontend page
    bind 127.0.0.1:{port}
    http-request return status 200 content-type "text/plain; version=0.0.4" file {file}
"""
"""A configuration of HAProxy that answers everything with a file."""
SETTLED_SECONDS = 45.0
"""How long Prometheus may take until its memory tells something."""


async def balancer(
    configuration: Path, folder: Path, replica: str, visit: Callable[[str], Awaitable[None]], requests: int
) -> Balancer:
    """Measure HAProxy before the replica at this address. visit sends so many requests to the URL that it is given."""
    ports = {"BALANCER_BIND": free_port(), "BALANCER_ADMIN": free_port()}
    environment = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
    listening, admin = ports["BALANCER_BIND"], f"http://127.0.0.1:{ports['BALANCER_ADMIN']}/metrics"
    url = f"http://127.0.0.1:{listening}"
    takes: dict[int, list[float]] = {}
    series: dict[int, tuple[int, int]] = {}
    for servers in (1, SERVERS):
        command = ["haproxy", "-db", "-q", "-f", str(configuration), "-f", str(_backend(folder, replica, servers))]
        async with started(command, listening, environment=environment) as pid:
            await asyncio.sleep(2 * CHECK_SECONDS)  # all are up, and the first second of a process is over
            takes[servers] = [await _per_second(pid) for _ in range(ROUNDS)]
            series[servers] = _size(await _text(admin))
            if servers == 1:
                await undisturbed(lambda: visit(url))
                taken = [await undisturbed(lambda: _during(pid, visit(url))) / requests for _ in range(ROUNDS)]
    alone = fmean(takes[1])
    checks = [(each - alone) / (SERVERS - 1) for each in takes[SERVERS]]
    return Balancer(
        request_cpu_seconds=summed(taken),
        check_cpu_seconds=summed(checks),
        series_per_replica=(series[SERVERS][0] - series[1][0]) / (SERVERS - 1),
        bytes_per_replica=(series[SERVERS][1] - series[1][1]) / (SERVERS - 1),
    )


async def prometheus(folder: Path, metrics: str) -> Prometheus:
    """Measure Prometheus that scrapes what this URL of a replica answers now, once and as many."""
    memory, taken, samples = [], [], []
    (folder / "metrics.txt").write_text(await _text(metrics))
    page = free_port()
    (folder / "page.cfg").write_text(PAGE.format(port=page, file=folder / "metrics.txt"))
    async with started(["haproxy", "-db", "-q", "-f", str(folder / "page.cfg")], page):
        for targets in SCRAPED:
            port = free_port()
            file = folder / f"prometheus-{targets}.yml"
            file.write_text(_scrapes(f"127.0.0.1:{page}", targets))
            command = [
                "prometheus", f"--config.file={file}", f"--storage.tsdb.path={folder / f'series-{targets}'}",
                f"--web.listen-address=127.0.0.1:{port}", "--log.level=error",
            ]  # fmt: skip
            async with started(command, port) as pid:
                await asyncio.sleep(SETTLED_SECONDS)
                before = cpu_seconds(pid), await _metric(port, "prometheus_tsdb_head_samples_appended_total")
                await asyncio.sleep(SCRAPES * SCRAPE_SECONDS)
                after = cpu_seconds(pid), await _metric(port, "prometheus_tsdb_head_samples_appended_total")
                taken.append(after[0] - before[0])
                samples.append(after[1] - before[1])
                memory.append((resident_bytes(pid), await _metric(port, "prometheus_tsdb_head_series")))
    (small, few), (large, many) = memory
    if not samples[1] > samples[0] > 0:
        raise Disturbed(
            f"Prometheus kept {samples[0]:g} samples of {SCRAPED[0]} target and {samples[1]:g} of {SCRAPED[1]}"
        )
    return Prometheus(
        memory_bytes_per_series=(large - small) / (many - few),
        cpu_seconds_per_sample=(taken[1] - taken[0]) / (samples[1] - samples[0]),
    )


async def exposition(url: str) -> tuple[int, int]:
    """Return how many samples a metrics page has, and its bytes."""
    return _size(await _text(url))


def _backend(folder: Path, replica: str, servers: int) -> Path:
    lines = ["backend stepdial from replicas", *(f"    server replica{n} {replica}" for n in range(servers))]
    file = folder / f"replicas-{servers}.cfg"
    file.write_text("\n".join(lines) + "\n")
    return file


def _scrapes(replica: str, targets: int) -> str:
    groups = "".join(f'\n      - targets: ["{replica}"]\n        labels: {{copy: "{n}"}}' for n in range(targets))
    head = f"global:\n  scrape_interval: {SCRAPE_SECONDS}s\n  scrape_timeout: {SCRAPE_SECONDS}s\nscrape_configs:"
    return f"{head}\n  - job_name: stepdial\n    static_configs:{groups}\n"


async def _during(pid: int, act: Awaitable[None]) -> float:
    before = cpu_seconds(pid)
    await act
    return cpu_seconds(pid) - before


async def _per_second(pid: int) -> float:
    return await _during(pid, asyncio.sleep(CHECK_SECONDS)) / CHECK_SECONDS


async def _text(url: str) -> str:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        response.raise_for_status()
        return await response.text()


async def _metric(port: int, name: str) -> float:
    lines = (await _text(f"http://127.0.0.1:{port}/metrics")).splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


def _size(text: str) -> tuple[int, int]:
    lines: Sequence[str] = [line for line in text.splitlines() if line and not line.startswith("#")]
    return len(lines), len(text.encode())
