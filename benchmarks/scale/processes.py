"""Processes that are measured: started on free ports of the loopback address, and the processor time they take."""

import asyncio
import os
import shutil
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from benchmarks.load.client import NotServed

START_SECONDS = 30
"""How long a process may take until it listens."""


def free_port() -> int:
    """Return a TCP port that nobody listens on just now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has taken, threads that have ended too, in seconds; Linux only."""
    # its own clock, as clock_getcpuclockid(3) numbers it: /proc/PID/stat counts only in hundredths of a second
    return time.clock_gettime((~pid << 3) | 2)


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
    patience = time.perf_counter() + START_SECONDS
    while time.perf_counter() < patience and process.returncode is None:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return
    raise NotServed(f"{name} does not come up")
