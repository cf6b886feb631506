"""A real HAProxy for the tests: on a free port, in front of servers that it checks, without retries, so that nothing is hidden."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.server.processes import wait_until
from tests.server.redis_server import free_port

CONFIGURATION = """
defaults
    mode http
    timeout connect 10s
    timeout check 10s
    timeout client 60s
    timeout server 60s
    retries 0
frontend clients
    bind 127.0.0.1:{port}
    option forwardfor
    unique-id-format %{{+X}}o\\ %ci:%cp_%fi:%fp_%Ts_%rt:%pid
    http-request set-header X-Request-ID %[unique-id] unless {{ req.hdr(X-Request-ID) -m found }}
    monitor-uri /balancer
    default_backend servers
backend servers
    balance leastconn
    option httpchk GET /readyz
    default-server check inter 100ms fall 1 rise 1
{servers}
"""


def find_haproxy() -> str:
    """Return the HAProxy on the PATH. Skips where there is none, but never in CI."""
    found = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if not found:
        assert os.environ.get("CI") != "true", (
            "no HAProxy: serving behind a balancer cannot be tested, and in CI it must be"
        )
        pytest.skip("no HAProxy (Debian: apt-get install haproxy): serving behind a balancer was not tested")
    return found


class Balancer:
    """An HAProxy in a process of its own; as a context manager it listens on entry and is dead on exit."""

    def __init__(self, folder: Path, ports: Sequence[int]):
        self.url = f"http://127.0.0.1:{free_port()}"
        servers = "\n".join(f"    server s{port} 127.0.0.1:{port}" for port in ports)
        self._file = folder / "haproxy.cfg"
        self._file.write_text(CONFIGURATION.format(port=self.url.rpartition(":")[2], servers=servers))

    def __enter__(self) -> "Balancer":
        self._process = subprocess.Popen([find_haproxy(), "-f", str(self._file)], stderr=subprocess.DEVNULL)
        wait_until(self._listens)
        return self

    def __exit__(self, *exception: Any) -> None:
        self._process.kill()
        self._process.wait()

    def _listens(self) -> bool:
        assert self._process.poll() is None, "HAProxy ended"
        try:
            return httpx2.get(self.url + "/balancer").status_code == 200
        except httpx2.TransportError:
            return False
