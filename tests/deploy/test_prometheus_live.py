"""Every expression of deploy/, evaluated by a real Prometheus that scrapes a real server and a real balancer under traffic."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

from tests.deploy.balancer import Balancer
from tests.deploy.expressions import (
    DASHBOARDS,
    Query,
    alerts,
    dashboard,
    filled_in,
    loosened,
    metrics_of,
    queries,
    rules,
)
from tests.deploy.traffic import Traffic
from tests.deploy.watchers import Prometheus, checked
from tests.server.processes import ROOT, ServerProcess
from tests.server.redis_server import free_port

VARIABLES = {
    "job": "stepdial", "instance": ".*", "model": "tiny", "steps": ".*", "metric": "frechet", "price": "1",
    "__rate_interval": "10m", "__range": "10m",
}  # fmt: skip
"""What stands for Grafana's variables."""
SCRAPES = 2.5
"""Seconds in which Prometheus has scraped twice and evaluated the rules."""

SLOW = {f"Stepdial{name}" for name in ("LatencyOverObjective", "LatencyBudgetBurnsFast", "LatencyBudgetBurnsSlowly",
                                       "Brownout", "Backlog", "JobsBacklogGrows", "CancelWaste")}  # fmt: skip
"""Alerts that are about to fire where a test's machine has little time for it."""
LATE = {
    f"Stepdial{name}" for name in ("ErrorRatio", "ErrorBudgetBurnsFast", "ErrorBudgetBurnsSlowly", "BalancerErrors")
}
"""Alerts that are about to fire, too, where it had so little that a request missed its deadline."""


@pytest.fixture(scope="module")
def served(family_folder: Path) -> Iterator[tuple[ServerProcess, str]]:
    """A server with metrics on a port of their own, and that port's address."""
    port = free_port()
    ports = ["--admin-port", str(port), "--cache-bytes", "1000000"]
    with ServerProcess("server", "--family", str(family_folder), "--max-wave", "8", *ports) as server:
        yield server, f"127.0.0.1:{port}"


@pytest.fixture(scope="module")
def prometheus(served: tuple[ServerProcess, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has watched two rounds of traffic: the first makes the series, the second moves them."""
    server, scraped = served
    folder = tmp_path_factory.mktemp("prometheus")
    with (
        Balancer(folder, [int(server.url.rpartition(":")[2])]) as balancer,
        Prometheus(folder, {"stepdial": [scraped], "haproxy": [balancer.scraped]}) as prometheus,
    ):
        traffic = Traffic(balancer.url)
        for _ in range(2):
            time.sleep(SCRAPES)
            traffic.round()
        time.sleep(SCRAPES)
        yield prometheus


@pytest.mark.parametrize("query", queries(), ids=lambda query: query.name)
def test_a_panel_shows_something(query: Query, prometheus: Prometheus) -> None:
    expr = filled_in(query.expr, VARIABLES)
    assert prometheus.now(expr) if query.instant else prometheus.lately(expr)


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_an_alert_has_something_to_look_at(rule: dict[str, Any], prometheus: Prometheus) -> None:
    prometheus.ask("query", query=rule["expr"])
    assert prometheus.now(loosened(rule["expr"]))


@pytest.mark.parametrize("name", sorted({rule["record"] for rule in rules() if "record" in rule}))
def test_a_recording_records(name: str, prometheus: Prometheus) -> None:
    assert prometheus.now(name)


def test_prometheus_evaluates_every_rule_without_an_error(prometheus: Prometheus) -> None:
    found = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
    assert len(found) == len(rules()) and {rule["health"] for rule in found} == {"ok"}


def test_only_what_is_wrong_is_told(prometheus: Prometheus) -> None:
    """One replica is there where two are wanted; everything else is well."""
    told = {alert["labels"]["alertname"] for alert in prometheus.ask("alerts")["alerts"]}
    missed = prometheus.now('sum(stepdial_requests_total{outcome="timeout"}) > 0')
    assert told - SLOW - (LATE if missed else set()) == {"StepdialTooFewReplicas"}


def test_every_position_is_on_the_dial_of_the_dashboard(prometheus: Prometheus) -> None:
    (p50,) = [q for q in queries() if q.panel == "Latency by steps" and q.ref == "A"]
    found = dict((int(labels["steps"]), value) for labels, value in prometheus.now(filled_in(p50.expr, VARIABLES)))
    assert found.keys() >= {1, 2, 4, 32, 64, 128, 256, 512} and found[512] > found[4] > 0


def test_what_was_asked_for_is_told_beside_what_was_used(prometheus: Prometheus) -> None:
    (matrix,) = [q for q in queries() if q.panel == "Requested against used steps"]
    found = {
        (labels["steps_requested"], labels["steps"]) for labels, _ in prometheus.now(filled_in(matrix.expr, VARIABLES))
    }
    assert {("4", "4"), ("512", "512")} <= found and any(wished == "auto" for wished, _ in found)


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_a_variable_has_values_to_choose_from(file: Path, prometheus: Prometheus) -> None:
    listed = [v["query"]["query"] for v in dashboard(file)["templating"]["list"] if v["type"] == "query"]
    assert listed
    for definition in listed:
        found = re.fullmatch(r"label_values\((.+), (\w+)\)", filled_in(definition, VARIABLES))
        assert found and metrics_of(found[1])
        series = prometheus.ask("series", **{"match[]": found[1]})
        assert {labels.get(found[2]) for labels in series} - {None}, definition


def test_promtool_finds_no_fault_with_the_servers_metrics(served: tuple[ServerProcess, str]) -> None:
    text = httpx2.get(f"http://{served[1]}/metrics").text
    parts = re.split(r"(?=^# HELP )", text, flags=re.MULTILINE)  # the client library's own names are not ours to choose
    ours = [part for part in parts if part.startswith("# HELP stepdial_")]
    checked("promtool", "check", "metrics", stdin="".join(ours))
    assert len(ours) > 30


def test_the_picture_of_the_documents_is_drawn_from_the_same_expressions(
    prometheus: Prometheus, tmp_path: Path
) -> None:
    result, picture = tmp_path / "result.json", tmp_path / "picture.png"
    command = [sys.executable, ROOT / "deploy/grafana/draw.py", "--result", result, "--out", picture]
    asked = ["--prometheus", prometheus.url, "--model", "tiny", "--range", "10m", "--note", "a test"]
    subprocess.run([*command, *asked], check=True, timeout=120)
    found = json.loads(result.read_text())
    assert len(found["panels"]) == 6 and all(series for panel in found["panels"].values() for series in panel.values())
    assert found["servers"][0]["replicas"] == 1 and found["note"] == "a test"
    with Image.open(picture) as image:
        assert image.width > 1000
