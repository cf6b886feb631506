"""Replicas whose device draws names: forked off one process that has imported everything, so that many can be killed."""

import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2

from tests.server.redis_server import free_port

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["tests.server.replicas", "tests.server.crowd", "server.app", "server.commands", "diffusion.family", "pydantic.v1"]
    + ["uvicorn", "uvicorn.loops.auto", "uvicorn.lifespan.on", "uvicorn.protocols.http.auto"]
)
POISON = 3
"""Blue things end the replica that draws them."""


def serve(settings: dict[str, Any], wave_seconds: float) -> None:
    """Be a replica until told to stop."""
    from diffusion.family import open_family
    from server.commands import run
    from server.samples import Turn
    from server.settings import Settings
    from tests.server.crowd import FakeDevice

    class MortalDevice(FakeDevice):
        def wave(self, turns: Sequence[Turn]) -> list[Any]:
            if any(turn.sample.condition[0] == POISON for turn in turns):
                os.kill(os.getpid(), signal.SIGKILL)
            return super().wave(turns)

    found = Settings.model_validate(settings)
    families = [open_family(folder) for folder in found.folders]
    raise SystemExit(run(found, families, lambda family: MortalDevice(seconds=wave_seconds)))


class Replica:
    """A server in a forked process; it listens soon after it was made."""

    def __init__(
        self, folder: Path, redis_url: str, *, wave_seconds: float = 0.01, port: int | None = None, **settings: Any
    ):
        """port: where it listens; default a free one."""
        self.port = port = port or free_port()
        self._client = httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)
        chosen = {"family": (folder,), "redis_url": redis_url, "port": port, "cache_bytes": 0, "log_level": "error"}
        self.process = FORKS.Process(target=serve, args=(chosen | settings, wave_seconds), daemon=True)
        self.process.start()

    @property
    def dead(self) -> bool:
        """Whether the process has ended, by whatever hand."""
        return not self.process.is_alive()

    def send(self, number: int) -> None:
        """Send the process a signal."""
        assert self.process.pid
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        """SIGKILL; nothing is said goodbye to."""
        self.process.kill()
        self.process.join()
        self._client.close()

    def ask(self, method: str, path: str, **content: Any) -> httpx2.Response | None:
        """One request; None when nobody answers."""
        try:
            return self._client.request(method, path, **content)
        except httpx2.TransportError:
            return None


class Fleet:
    """Replicas behind one address: a request goes to one after the other until somebody answers."""

    def __init__(self, folder: Path, redis_url: str, *, size: int, **settings: Any):
        self._make = lambda: Replica(folder, redis_url, **settings)
        self.replicas = [self._make() for _ in range(size)]
        for number in range(size):
            self.ready(number)

    def __enter__(self) -> "Fleet":
        return self

    def __exit__(self, *exception: Any) -> None:
        for replica in self.replicas:
            replica.kill()

    def ready(self, number: int) -> None:
        """Wait until this replica draws."""
        while (answer := self.replicas[number].ask("GET", "/readyz")) is None or answer.status_code != 200:
            assert not self.replicas[number].dead, "the replica ended"
            time.sleep(0.02)

    def replace(self, number: int) -> None:
        """Put a new replica where this one was."""
        self.replicas[number].kill()
        self.replicas[number] = self._make()

    def ask(self, method: str, path: str, **content: Any) -> httpx2.Response:
        """One request, repeated elsewhere when a replica does not answer or cannot reach its store."""
        for _ in range(500):
            for replica in self.replicas:
                answer = replica.ask(method, path, **content)
                if answer is not None and answer.status_code != 503:
                    return answer
            time.sleep(0.02)
        raise AssertionError("nobody answers")
