"""An alert on its whole way: a replica hangs, Prometheus sees it, Alertmanager tells a webhook, and again when it is over."""

import json
import queue
import re
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.watchers import Alertmanager, Prometheus
from tests.server.processes import ROOT, serve_names, wait_until

MINUTES = 240
"""Seconds that a notice may take: the alert waits for one minute, Alertmanager gathers for up to another."""


@pytest.fixture
def notices() -> Iterator[tuple[str, queue.Queue[dict[str, Any]]]]:
    """A webhook's URL, and what it is told."""
    told: queue.Queue[dict[str, Any]] = queue.Queue()

    class Webhook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.put(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Webhook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", told
    server.shutdown()


def configured(webhook: str) -> dict[str, Any]:
    """The repository's configuration of Alertmanager with its webhook's comment signs gone."""
    text = (ROOT / "deploy" / "alertmanager" / "alertmanager.yml").read_text()
    lines = re.sub(r"^#(    webhook_configs:\n)#(      - url: )\S+", rf"\1\2{webhook}", text, flags=re.M)
    found: dict[str, Any] = yaml.safe_load(lines)
    assert found["receivers"] == [{"name": "operators", "webhook_configs": [{"url": webhook}]}]
    found["route"]["group_interval"] = (
        "5s"  # how long the end of an alert is kept back: five minutes are long in a test
    )
    return found


def state(manager: Alertmanager, alert: str) -> str | None:
    """What Alertmanager does with an alert; None where it has not heard of it."""
    states = {
        found["labels"]["alertname"]: found["status"]["state"] for found in manager.client.get("/api/v2/alerts").json()
    }
    return states.get(alert)


@pytest.mark.slow
def test_the_only_replica_hangs_and_the_operators_are_told_once_and_again_when_it_is_back(
    family_folder: Path, tmp_path: Path, notices: tuple[str, queue.Queue[dict[str, Any]]]
) -> None:
    webhook, told = notices
    heard: list[str] = []

    def notice(status: str) -> dict[str, Any]:
        while True:
            found = told.get(timeout=MINUTES)
            heard.append(found["groupLabels"]["alertname"])
            if (found["status"], heard[-1]) == (status, "StepdialDown"):
                return found

    (tmp_path / "alertmanager").mkdir()
    with serve_names(family_folder) as server, Alertmanager(tmp_path / "alertmanager", configured(webhook)) as manager:
        address = server.url.removeprefix("http://")
        with Prometheus(tmp_path, {"stepdial": [address]}, alertmanager=manager.address) as prometheus:
            wait_until(lambda: bool(prometheus.now("stepdial_ready == 1")))
            server.process.send_signal(signal.SIGSTOP)
            (alert,) = notice("firing")["alerts"]
            assert alert["labels"] == {"alertname": "StepdialDown", "severity": "critical"}
            assert alert["annotations"]["summary"] == "No replica takes requests"
            assert alert["annotations"]["runbook"] == "docs/operations.md#stepdialdown"
            wait_until(lambda: state(manager, "StepdialReplicaDown") == "suppressed")  # it follows from the other
            server.process.send_signal(signal.SIGCONT)
            assert notice("resolved")["alerts"][0]["labels"]["alertname"] == "StepdialDown"
    assert set(heard) <= {"StepdialDown", "StepdialTooFewReplicas"}
