"""A peer's process with all that it starts: it is waited for, weighed and ended as one. Linux only."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryFile
from time import perf_counter

import aiohttp

from benchmarks.load.client import NotServed
from benchmarks.peers.painter import POSITIONS, example_wish
from benchmarks.peers.peer import OTHERS, ROOT, Peer, PeerClient
from benchmarks.scale.processes import free_port
from diffusion.family import Family

START_SECONDS = 180
"""How long a peer may take until it answers."""
END_SECONDS = 15
"""How long it may take to end by itself."""
SAID_BYTES = 2000
"""How much of what a peer printed is shown when it does not come up."""


@asynccontextmanager
async def served(peer: Peer, family: Family, environment: Path) -> AsyncIterator[tuple[PeerClient, int, float]]:
    """Serve the family until the block ends; yield a client, the process id, and the seconds until an image of each position.

    Raises NotServed, with what the peer printed, where it does not come up.
    """
    port, began = free_port(), perf_counter()
    with TemporaryFile() as printed:
        process = await asyncio.create_subprocess_exec(
            *peer.command(environment, family.folder.resolve(), port),
            stdin=asyncio.subprocess.DEVNULL, stdout=printed, stderr=printed, cwd=ROOT, start_new_session=True,
            env=os.environ | {
                "PYTHONPATH": f"{ROOT}{os.pathsep}{OTHERS}", "STEPDIAL_FAMILY": str(family.folder.resolve()),
                "BENTOML_DO_NOT_TRACK": "true", "RAY_USAGE_STATS_ENABLED": "0", "DO_NOT_TRACK": "1",
                "RAY_worker_niceness": "0",  # else its workers give way to everything, the client too
            },
        )  # fmt: skip
        try:
            async with PeerClient(f"http://127.0.0.1:{port}", peer, family) as client:
                if not await _answers(client, process, family):
                    printed.seek(max(0, printed.tell() - SAID_BYTES))
                    raise NotServed(f"{peer.name} does not come up; it printed:\n{printed.read().decode()}")
                yield client, process.pid, perf_counter() - began
        finally:
            await _end(process)


def memory_bytes(pid: int) -> int:
    """Return the memory of a process and of all that it started, in bytes; what several share counts once."""
    return sum(_proportional_bytes(one) for one in [pid, *_descendants(pid)])


async def _answers(client: PeerClient, process: asyncio.subprocess.Process, family: Family) -> bool:
    """Whether an image of each position comes in time; some servers load a network only when it is asked for."""
    asked, patience = [steps for steps in POSITIONS if steps in family.positions], perf_counter() + START_SECONDS
    while asked and perf_counter() < patience and process.returncode is None:
        try:
            status, _, _ = await client.post(example_wish(family, asked[0]))
        except (aiohttp.ClientError, TimeoutError):
            status = 0
        if status == 200:
            asked.pop(0)
        else:
            await asyncio.sleep(0.1)
    return not asked


async def _end(process: asyncio.subprocess.Process) -> None:
    """End the process, and then whatever of all that it started is still there."""
    started = _descendants(process.pid)
    if process.returncode is None:
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), END_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()
    for pid in started:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _descendants(pid: int) -> list[int]:
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def _proportional_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
