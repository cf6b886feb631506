"""A real Prometheus and Alertmanager for the tests, with the repository's own configuration."""

import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import httpx2
import pytest
import yaml

from tests.deploy.expressions import PROMETHEUS
from tests.server.processes import wait_until
from tests.server.redis_server import free_port


def find(*names: str) -> str:
    """Return the first of these programs that is installed. Skips, but never in CI."""
    for name in names:
        if found := shutil.which(name):
            return found
    assert os.environ.get("CI") != "true", f"no {names[0]}: in CI it must be tested"
    pytest.skip(f"no {names[0]} (Debian: apt-get install prometheus prometheus-alertmanager): it was not tested")


def checked(*command: str | Path, stdin: str = "") -> str:
    """Run a program that must succeed and return what it says."""
    run = [find(str(command[0])), *command[1:]]
    done = subprocess.run(run, input=stdin, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Watcher:
    """A program with a web address of its own; as a context manager it answers on entry and is dead on exit."""

    def __init__(self, command: Sequence[str | Path], url: str):
        self.url = url
        self.client = httpx2.Client(base_url=url, timeout=30)  # one for all requests: making one takes its time
        self._log = TemporaryFile("w+")
        self.process = subprocess.Popen(
            [*map(str, command)], stdout=self._log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )

    def __enter__(self) -> Any:
        wait_until(self._answers)
        return self

    def __exit__(self, *exception: Any) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()
        self._log.close()

    def _answers(self) -> bool:
        if self.process.poll() is not None:
            self._log.seek(0)
            raise AssertionError(self._log.read())
        try:
            return self.client.get("/-/ready").status_code == 200
        except httpx2.TransportError:
            return False


class Prometheus(Watcher):
    """Prometheus with the repository's configuration; only who is scraped, and how often, is the test's."""

    def __init__(self, folder: Path, targets: Mapping[str, Sequence[str]], *, alertmanager: str | None = None):
        """targets: job -> addresses, for every job of the configuration that is to be there."""
        port, config = free_port(), folder / "prometheus.yml"
        config.write_text(yaml.safe_dump(_configuration(targets | {"prometheus": [f"127.0.0.1:{port}"]}, alertmanager)))
        command = [find("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
        super().__init__([*command, f"--web.listen-address=127.0.0.1:{port}"], f"http://127.0.0.1:{port}")

    def ask(self, path: str, **parameters: Any) -> Any:
        """Return what the API says. An expression that cannot be parsed or evaluated fails the test."""
        answer = self.client.get(f"/api/v1/{path}", params=parameters)
        assert answer.status_code == 200, (parameters, answer.text)
        return answer.json()["data"]

    def now(self, expr: str) -> list[tuple[dict[str, str], float]]:
        """Return labels and value of each series of an instant query that is a number."""
        found = self.ask("query", query=expr)
        assert found["resultType"] == "vector", (expr, found["resultType"])
        return [(s["metric"], float(s["value"][1])) for s in found["result"] if s["value"][1] != "NaN"]

    def lately(self, expr: str, seconds: float = 10) -> list[tuple[dict[str, str], list[float]]]:
        """Return labels and values of each series of a range query that has numbers."""
        now = time.time()
        found = self.ask("query_range", query=expr, start=now - seconds, end=now, step=1)
        rows = [(s["metric"], [float(v) for _, v in s["values"] if v != "NaN"]) for s in found["result"]]
        return [(labels, values) for labels, values in rows if values]


class Alertmanager(Watcher):
    """Alertmanager with a configuration."""

    def __init__(self, folder: Path, configuration: Mapping[str, Any]):
        port, config = free_port(), folder / "alertmanager.yml"
        self.address = f"127.0.0.1:{port}"
        config.write_text(yaml.safe_dump(dict(configuration)))
        command = [find("prometheus-alertmanager", "alertmanager"), f"--config.file={config}"]
        flags = [f"--storage.path={folder / 'data'}", f"--web.listen-address={self.address}"]
        super().__init__([*command, *flags, "--cluster.listen-address="], f"http://{self.address}")


def _configuration(targets: Mapping[str, Sequence[str]], alertmanager: str | None) -> dict[str, Any]:
    """The repository's prometheus.yml with other addresses and seconds for quarters of minutes."""
    found: dict[str, Any] = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    found["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    found["rule_files"] = [str(PROMETHEUS / name) for name in found["rule_files"]]
    jobs = {job["job_name"]: job for job in found["scrape_configs"]}
    found["scrape_configs"] = []
    for name, addresses in targets.items():
        kept = {key: value for key, value in jobs[name].items() if not key.endswith("_sd_configs")}
        found["scrape_configs"].append(kept | {"static_configs": [{"targets": list(addresses)}]})
    if alertmanager:
        found["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]}
    else:
        del found["alerting"]
    return found
