"""Real server processes on free ports."""

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx2

ROOT = Path(__file__).parents[2]
PATIENCE = 120
"""Seconds after which a server that does not come up, or down, fails its test."""


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, but not for ever."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


class ServerProcess:
    """A server in a process of its own; as a context manager it is ready on entry and dead on exit."""

    def __init__(self, module: str, *arguments: str):
        command = [sys.executable, "-m", module, "--port", "0", *arguments]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines: list[str] = []
        self._urls: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = ""

    def __enter__(self) -> "ServerProcess":
        self.url = self._urls.get(timeout=PATIENCE) or ""
        assert self.url, self.output
        wait_until(lambda: self.get("/readyz").status_code == 200)
        return self

    def __exit__(self, *exception: Any) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    @property
    def output(self) -> str:
        """What the process has printed so far."""
        return "\n".join(self.lines)

    def get(self, path: str) -> httpx2.Response:
        """GET a path."""
        return httpx2.get(self.url + path, timeout=PATIENCE)

    def ask(self, **wish: Any) -> httpx2.Response:
        """POST /generate."""
        return httpx2.post(self.url + "/generate", json=wish, timeout=PATIENCE)

    def metric(self, name: str) -> float:
        """Read the sum of a metric over its labels."""
        lines = self.get("/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if re.match(rf"{name}[ {{]", line))

    def stop(self) -> int:
        """Send SIGTERM and return the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """Return the exit status of a process that is about to end."""
        status = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return status

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            found = re.search(r"running on (http://\S+)", line)
            if found:
                self._urls.put(found[1])
        self._urls.put(None)


def serve_real(folder: Path, *arguments: str) -> ServerProcess:
    """A server as users start it, but for the result cache: what is asked for is drawn."""
    return ServerProcess("server", "--family", str(folder), "--cache-bytes", "0", *arguments)


def serve_names(folder: Path, arguments: Sequence[str] = ()) -> ServerProcess:
    """A server whose device draws names (tests/server/name_server.py), and no result cache."""
    return ServerProcess("tests.server.name_server", "--family", str(folder), "--cache-bytes", "0", *arguments)
