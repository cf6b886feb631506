"""Peers: the servers that are measured beside each other, how each is started, and how its requests look."""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.load.client import Client
from diffusion.family import Family

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ENVIRONMENT = ROOT / ".venv" / "peers"
"""Where the other servers are installed (make peers-environment)."""
OTHERS = HERE / "other-servers"
MODEL_HEADER = "serve_multiplexed_model_id"
"""By which Ray Serve's clients say which network they need."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One server."""

    name: str
    command: Callable[[Path, Path, int], Sequence[str]]
    """(environment, folder of the family, port) -> program and arguments."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """What its requests carry beside prompt and steps."""
    in_lists: bool = False
    """Whether requests and answers are lists of one."""
    names_network: bool = False
    """Whether a header of the request says which network it needs."""


def _script(name: str, *more: str) -> Callable[[Path, Path, int], Sequence[str]]:
    return lambda environment, folder, port: [
        str(environment / "bin" / "python"), str(OTHERS / name), str(folder), str(port), *more,
    ]  # fmt: skip


def _bentoml(environment: Path, folder: Path, port: int) -> Sequence[str]:
    program = str(environment / "bin" / "bentoml")
    return [program, "serve", "bento_ml:Drawing", "--host", "127.0.0.1", "--port", str(port)]


def _stepdial(environment: Path, folder: Path, port: int) -> Sequence[str]:
    return [sys.executable, "-m", "server", "--family", str(folder), "--port", str(port), "--log-level", "warning"]


PEERS = (
    Peer("stepdial", _stepdial),
    Peer("stepdial, fast mode", _stepdial, fields={"determinism": "fast"}),
    Peer("LitServe", _script("lit_serve.py", "1")),
    Peer("LitServe, a worker a core", _script("lit_serve.py", str(len(os.sched_getaffinity(0))))),
    Peer("Ray Serve", _script("ray_serve.py"), names_network=True),
    Peer("BentoML", _bentoml, in_lists=True),
    Peer("FastAPI, one lock", _script("plain_fastapi.py")),
)


class PeerClient(Client):
    """The load client, speaking as the peer is spoken to."""

    def __init__(self, url: str, peer: Peer, family: Family):
        """Talk to a peer that serves the family at this URL."""
        super().__init__(url)
        self._peer = peer
        self._networks = {steps: family.dedicated(steps).members[0] for steps in family.positions}

    async def post(self, body: Mapping[str, Any]) -> tuple[int, Mapping[str, str], bytes]:
        """Send a request for images, as `Client.post` does."""
        headers = {MODEL_HEADER: self._networks[body["steps"]]} if self._peer.names_network else {}
        wish = {**body, "plan": "dedicated"}  # as the painter draws
        content = {"wishes": [wish]} if self._peer.in_lists else wish
        status, found, data = await self.ask("POST", "/generate", json=content, headers=headers)
        if self._peer.in_lists and status == 200:
            data = json.dumps(json.loads(data)[0]).encode()
        return status, found, data
