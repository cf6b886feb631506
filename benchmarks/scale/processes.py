"""Processes that are measured: started on free ports of the loopback address, and the processor time they take."""

import asyncio
import os
import shutil
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter

from benchmarks.load.client import NotServed

START_SECONDS = 30
"""How long a process may take until it listens."""


def free_port() -> int:
    """Return a TCP port that nobody listens on just now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def cpu_seconds(pid: int) -> float:
    """Return the processor time that all threads of a process have taken, in seconds; Linux only."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def resident_bytes(pid: int) -> int:
    """Return the memory that a process occupies, in bytes; Linux only."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@asynccontextmanager
async def started(
    command: Sequence[str], port: int, *, environment: dict[str, str] | None = None
) -> AsyncIterator[int]:
    """Run a program that listens on the port; yield its process id, and end it. Raises NotServed where it does not come up."""
    program = shutil.which(command[0])
    if program is None:
        raise NotServed(f"{command[0]} is not installed")
    process = await asyncio.create_subprocess_exec(
        program,
        *command[1:],
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        env=os.environ | (environment or {}),
    )
    try:
        await _until_it_listens(process, port, command[0])
        yield process.pid
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _until_it_listens(process: asyncio.subprocess.Process, port: int, name: str) -> None:
    patience = perf_counter() + START_SECONDS
    while perf_counter() < patience and process.returncode is None:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return
    raise NotServed(f"{name} does not come up")
