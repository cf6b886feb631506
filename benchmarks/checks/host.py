"""A server in a process of its own, on a free port, with a client at its door."""

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.load.client import Client, NotServed
from benchmarks.load.wishes import Steps, Wishes, weights

ROOT = Path(__file__).parents[2]
START_SECONDS = 180
"""How long a process may take until it listens."""


@dataclass(frozen=True, slots=True)
class Scrape:
    """The metrics of one moment."""

    samples: dict[str, list[tuple[dict[str, str], float]]]
    """Name -> (labels, value) of each of its series."""

    def value(self, name: str, **labels: str) -> float:
        """Return the sum of the series that carry these labels, 0 where there are none."""
        return sum(value for found, value in self.samples.get(name, ()) if labels.items() <= found.items())


@dataclass(frozen=True, slots=True)
class Host:
    """A running server."""

    client: Client
    pid: int
    """Its process."""
    served: dict[str, Any]
    """What GET /models tells."""

    @property
    def positions(self) -> list[int]:
        """The dial, rising."""
        return sorted(position["steps"] for position in self.served["data"][0]["positions"])

    def wishes(self, mix: str, seed: int, **fields: Any) -> Wishes:
        """Return wishes for the model in this mix of positions; those that are not served are left out."""
        served: dict[Steps, float] = {s: weight for s, weight in weights(mix).items() if s in self.positions}
        return Wishes(self.served["data"][0], served, Random(seed), **fields)

    async def scrape(self) -> Scrape:
        """Read the metrics."""
        samples: dict[str, list[tuple[dict[str, str], float]]] = {}
        for family in text_string_to_metric_families(await self.client.text("/metrics")):
            for sample in family.samples:
                samples.setdefault(sample.name, []).append((sample.labels, sample.value))
        return Scrape(samples)


@asynccontextmanager
async def host(family: Path, *arguments: str) -> AsyncIterator[Host]:
    """Serve a family until the block ends. Raises NotServed, with what the server printed, when it does not come up."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "server", "--family", str(family.resolve()), "--port", "0", *arguments,
        cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    printed: list[str] = []
    try:
        url = await asyncio.wait_for(_url(process, printed), START_SECONDS)
        reading = asyncio.create_task(_read(process, printed))  # a full pipe would stop the server
        async with Client(url) as client:
            await client.ready()
            yield Host(client, process.pid, await client.models())
        reading.cancel()
    except TimeoutError:
        raise NotServed("\n".join(["the server does not listen; it printed:", *printed])) from None
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _url(process: asyncio.subprocess.Process, printed: list[str]) -> str:
    assert process.stdout is not None
    while line := await process.stdout.readline():
        printed.append(line.decode().rstrip())
        if found := re.search(r"running on (http://\S+)", printed[-1]):
            return found[1]
    raise NotServed("\n".join(["the server ended; it printed:", *printed]))


async def _read(process: asyncio.subprocess.Process, printed: list[str]) -> None:
    assert process.stdout is not None
    while line := await process.stdout.readline():
        printed.append(line.decode().rstrip())
