"""The contest: every server in turn under every load, several rounds, the order rotated, with one client."""

import asyncio
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from benchmarks.load.client import NotServed
from benchmarks.load.loops import Extent, closed_loop, unwatched
from benchmarks.load.summary import summarise
from benchmarks.load.wishes import Wishes, weights
from benchmarks.peers.painter import POSITIONS, model_of
from benchmarks.peers.peer import ROOT, Peer, PeerClient
from benchmarks.peers.process import memory_bytes, served
from benchmarks.peers.result import Bare, Bout, Contest, Round, Turnout
from diffusion import provenance
from diffusion.family import Family

SLO = 20.0
"""The objective: so many times what one image takes alone with no server."""
WARMUP_SHARE = 0.25
PACKAGES = ("litserve", "ray", "bentoml", "fastapi", "uvicorn", "uvloop", "httptools", "torch", "numpy", "pillow")


@dataclass(frozen=True, slots=True)
class Load:
    """Clients that each ask again when they were answered."""

    name: str
    clients: int
    mix: str
    """Dial positions and their weights."""


LOADS = (
    Load("32 clients, 4 steps", 32, "4"),
    Load("32 clients, 1 to 16 steps", 32, ",".join(map(str, POSITIONS))),
    Load("4 clients, 4 steps", 4, "4"),
    Load("1 client, 1 step", 1, "1"),
)
"""mixed: drawn evenly from 1, 2, 4, 8, 16."""


async def contest(
    family: Family, peers: Sequence[Peer], environment: Path, *, rounds: int, seconds: float, note: str
) -> Contest:
    """Return what came of so many rounds, each load measured for so many seconds. Raises NotServed."""
    began, found = provenance.now(), []
    for number in range(rounds):
        shift = number % len(peers)
        bare = await _bare(family)
        print(f"round {number + 1} of {rounds}: no server: {bare.model_dump()}", flush=True)
        turns = [
            await _turn(peer, family, environment, bare, seconds, number) for peer in [*peers[shift:], *peers[:shift]]
        ]
        bouts = tuple(bout for _, several in turns for bout in several)
        found.append(Round(bare=bare, turnouts=tuple(turnout for turnout, _ in turns), bouts=bouts))
    return Contest(
        command=" ".join(["python -m benchmarks.peers", *sys.argv[1:]]),
        note=note,
        measured_at=began,
        commit=provenance.commit(),
        device=f"{provenance.processor()}, {len(os.sched_getaffinity(0))} cores",
        versions=_versions(environment),
        family=family.name,
        networks={str(steps): "+".join(family.dedicated(steps).members) for steps in POSITIONS},
        seconds=seconds,
        slo=SLO,
        rounds=tuple(found),
    )


async def _turn(
    peer: Peer, family: Family, environment: Path, bare: Bare, seconds: float, seed: int
) -> tuple[Turnout, list[Bout]]:
    async with served(peer, family, environment) as (client, pid, start_seconds):
        idle, bouts = memory_bytes(pid), []
        for load in LOADS:
            bouts.append(await _bout(peer, load, client, family, bare, seconds, seed))
            print(_line(bouts[-1]), flush=True)
        busy = memory_bytes(pid)
    turnout = Turnout(
        server=peer.name,
        start_seconds=round(start_seconds, 2),
        idle_mib=round(idle / 2**20, 1),
        busy_mib=round(busy / 2**20, 1),
    )
    return turnout, bouts


async def _bout(
    peer: Peer, load: Load, client: PeerClient, family: Family, bare: Bare, seconds: float, seed: int
) -> Bout:
    wishes = Wishes(model_of(family), weights(load.mix), Random(f"{seed} {load.name}"), **peer.fields)
    extent = Extent(warmup_seconds=WARMUP_SHARE * seconds, seconds=seconds)
    run = await closed_loop(client, wishes, load.clients, extent, unwatched)
    slo = {steps: SLO * milliseconds / 1000 for steps, milliseconds in bare.alone_ms.items()}
    return Bout.of(peer.name, load.name, summarise(run, rate=None, clients=load.clients, slo=slo))


async def _bare(family: Family) -> Bare:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.peers.bare", str(family.folder.resolve()),
        cwd=ROOT, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    printed, _ = await process.communicate()
    if process.returncode:
        raise NotServed("the family could not be drawn with no server")
    return Bare.model_validate_json(printed)


def _line(bout: Bout) -> str:
    p50 = ", ".join(f"{steps}: {found.p50:.0f}" for steps, found in bout.latency_ms.items())
    return f"  {bout.server}, {bout.load}: {bout.images_per_second:.1f} images/s; p50 in ms by steps {p50}"


def _versions(environment: Path) -> dict[str, str]:
    """The versions that the other servers run with, and Python's."""
    code = f"from importlib.metadata import version\nfor name in {PACKAGES!r}: print(name, version(name))"
    printed = subprocess.run(
        [environment / "bin" / "python", "-c", code], capture_output=True, text=True, check=True
    ).stdout
    client = {"aiohttp (client)": importlib.metadata.version("aiohttp")}
    found = dict(line.split() for line in printed.splitlines())
    return {"python": platform.python_version(), **found, **client}
