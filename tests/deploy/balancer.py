"""A real HAProxy with the repository's configuration, in front of processes on this machine."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.server.processes import ROOT, wait_until
from tests.server.redis_server import free_port

FOLDER = ROOT / "deploy" / "haproxy"


def find_haproxy() -> str:
    """Return the HAProxy that is installed. Skips, but never in CI."""
    found = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        assert os.environ.get("CI") != "true", "no HAProxy: the balancer cannot be tested, and in CI it must be"
        pytest.skip("no HAProxy (Debian: apt-get install haproxy): the balancer was not tested")
    return found


class Balancer:
    """The balancer in front of ports of 127.0.0.1; as a context manager it runs within the block."""

    def __init__(self, folder: Path, ports: Sequence[int]):
        """folder: where the file that names the replicas may be written."""
        self._ports = [free_port(), free_port()]
        self.url, self._admin = (f"http://127.0.0.1:{port}" for port in self._ports)
        self.scraped = f"127.0.0.1:{self._ports[1]}"
        """Host and port of its metrics."""
        servers = "".join(f"    server replica{n} 127.0.0.1:{port}\n" for n, port in enumerate(ports, 1))
        self._replicas = folder / "replicas.cfg"
        self._replicas.write_text("backend stepdial from replicas\n" + servers)
        self._count = len(ports)
        self.client = httpx2.Client(base_url=self.url, timeout=60)

    def __enter__(self) -> "Balancer":
        bind, admin = (f"127.0.0.1:{port}" for port in self._ports)
        self._process = subprocess.Popen(
            [find_haproxy(), "-W", "-db", "-f", FOLDER / "haproxy.cfg", "-f", self._replicas],
            env=os.environ | {"BALANCER_BIND": bind, "BALANCER_ADMIN": admin},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(lambda: self._answers() and self.serving == self._count)
        return self

    def __exit__(self, *exception: Any) -> None:
        self.client.close()
        self._process.kill()  # its worker ends with it
        self._process.wait()

    def _answers(self) -> bool:
        assert self._process.poll() is None, "HAProxy ended"
        try:
            return self.admin("/healthz").status_code in (200, 503)
        except httpx2.TransportError:
            return False

    def admin(self, path: str) -> httpx2.Response:
        """GET a path of the port that is not for clients."""
        return httpx2.get(self._admin + path, timeout=10)

    @property
    def serving(self) -> int:
        """Replicas that get requests."""
        return round(self.metric('haproxy_backend_active_servers{proxy="stepdial"}'))

    def metric(self, series: str) -> float:
        """One of HAProxy's own metrics."""
        found = re.search(rf"^{re.escape(series)} (\S+)$", self.admin("/metrics").text, re.MULTILINE)
        assert found, f"there is no {series}"
        return float(found[1])
