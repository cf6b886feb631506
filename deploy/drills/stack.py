"""A running stack as a drill sees it: parts that can be broken and mended, wherever they run."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

REDIS, BALANCER = "redis", "balancer"
"""Names of parts; replicas have names of their own."""


class StackBroken(Exception):
    """The stack cannot be brought up, found, or made to do what a drill needs; the message says why."""


class Stack(Protocol):
    """Replicas behind a balancer, with a Redis. Every method raises StackBroken when it cannot do what it is for."""

    kind: str
    """loopback or compose."""
    url: str
    """Where clients ask: the balancer."""
    metrics_url: str
    """The balancer's own metrics."""
    replicas: Sequence[str]
    """Names of the replicas."""

    async def metrics_of(self, replica: str) -> str:
        """Return the URL of a replica's own metrics, where it is now."""

    async def kill(self, part: str) -> None:
        """End a part by SIGKILL."""

    async def stop(self, part: str) -> None:
        """Ask a part to end by SIGTERM, and wait until it has."""

    async def start(self, part: str) -> None:
        """Start a part that has ended, with the data that it had; it may take its time to be ready."""

    async def freeze(self, part: str) -> None:
        """Stop a part in its tracks: it keeps its connections and answers nobody."""

    async def thaw(self, part: str) -> None:
        """Let a frozen part go on."""

    async def reload(self) -> None:
        """Have the balancer read its configuration again."""

    async def empty_redis(self) -> None:
        """Delete everything in Redis."""

    async def fill(self, part: str) -> None:
        """Fill the disk that a part writes to, to the last byte."""

    async def clear(self, part: str) -> None:
        """Give the disk its room back."""

    async def log_lines(self, part: str) -> int:
        """Return how many lines of log there are of a part."""

    async def versions(self) -> dict[str, str]:
        """Return the versions of what the stack is made of, beside the server's own."""


@asynccontextmanager
async def within(seconds: float, what: str) -> AsyncIterator[None]:
    """Give the block so long. Raises StackBroken, which says what was waited for, when that was not enough."""
    try:
        async with asyncio.timeout(seconds) as limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise StackBroken(f"{what}: waited for {seconds:g} s, in vain") from None


async def run(*command: str) -> str:
    """Run a command and return what it printed. Raises StackBroken with it when it fails."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
    except FileNotFoundError:
        raise StackBroken(f"{command[0]} is not installed") from None
    printed = (await process.communicate())[0].decode(errors="replace").strip()
    if process.returncode:
        raise StackBroken(f"{' '.join(command[:3])} failed: {printed}")
    return printed
