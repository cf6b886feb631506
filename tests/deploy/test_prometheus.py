"""What Prometheus, Alertmanager and Grafana are given: it parses, fits together, and names nothing that does not exist."""

import json
import re
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from server import metrics
from tests.deploy.expressions import (
    DASHBOARDS,
    PROMETHEUS,
    alerts,
    dashboard,
    metrics_of,
    panels,
    queries,
    rules,
)
from tests.deploy.watchers import checked
from tests.server.processes import ROOT

ALERTMANAGER = ROOT / "deploy" / "alertmanager" / "alertmanager.yml"
PROVISIONING = ROOT / "deploy" / "grafana" / "provisioning"
CASES = sorted((PROMETHEUS / "tests").glob("*.yml"))
OTHERS = re.compile(r"up|ALERTS|process_\w+|haproxy_(frontend|backend)_\w+")
"""Series of Prometheus itself, its client library and HAProxy; test_prometheus_live.py has them all evaluated."""
VARIABLES = r"\$\{?([a-z_]\w*)\}?"


def exported() -> set[str]:
    """The names of all series that the server exports."""
    found = set()
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            (family,) = metric.describe()
            suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"]}.get(family.type, [""])
            found |= {family.name + suffix for suffix in suffixes}
    return found


def recorded() -> set[str]:
    """The names of all series that rules record."""
    return {rule["record"] for rule in rules() if "record" in rule}


def cases(alert: str) -> list[dict[str, Any]]:
    """What the cases of promtool say of an alert."""
    files = [yaml.safe_load(file.read_text()) for file in CASES]
    found = [case for file in files for test in file["tests"] for case in test["alert_rule_test"]]
    return [case for case in found if case["alertname"] == alert]


def test_promtool_takes_the_configuration_and_the_rules() -> None:
    checked("promtool", "check", "config", PROMETHEUS / "prometheus.yml")
    names = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["rule_files"]
    checked("promtool", "check", "rules", *(PROMETHEUS / name for name in names))
    assert {PROMETHEUS / name for name in names} == {*PROMETHEUS.glob("*.yml")} - {PROMETHEUS / "prometheus.yml"}


@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_alerts_fire_when_they_should_and_not_when_they_should_not(file: Path) -> None:
    checked("promtool", "test", "rules", file)


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_an_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not(rule: dict[str, Any]) -> None:
    fires = [bool(case.get("exp_alerts")) for case in cases(rule["alert"])]
    assert True in fires and False in fires


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_an_alert_says_how_bad_it_is_what_is_wrong_and_where_to_read_on(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning") and re.fullmatch(r"\d+[mh]", rule["for"])
    assert rule["annotations"].keys() == {"summary", "description", "runbook"}
    assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"


def test_every_alert_has_its_place_in_the_operations_guide() -> None:
    headings = re.findall(r"^### (\w+)$", (ROOT / "docs" / "operations.md").read_text(), re.M)
    assert {rule["alert"] for rule in alerts()} <= set(headings)


def test_the_documents_list_every_alert_as_it_is() -> None:
    rows = re.findall(r"^\| (Stepdial\w+) \| (\w+) \| ([\w ]+) \|", (ROOT / "docs/dashboards.md").read_text(), re.M)
    spelt = {"0m": "at once", "1h": "1 h"}
    known = [
        (r["alert"], r["labels"]["severity"], spelt.get(r["for"], r["for"].replace("m", " min"))) for r in alerts()
    ]
    assert rows == known


def test_the_documents_list_every_panel_and_what_it_answers() -> None:
    text = (ROOT / "docs/dashboards.md").read_text()
    for file in DASHBOARDS:
        section = text.split(f"\n## {dashboard(file)['title']}\n")[1].split("\n## ")[0]
        rows = re.findall(r"^\| ([^|*]+) \| ([^|]+\?) \|$", section, re.M)
        assert rows == [(panel["title"], panel["description"].partition("?")[0] + "?") for panel in panels(file)]


def test_the_picture_of_the_documents_says_how_it_came_about() -> None:
    found = json.loads((ROOT / "benchmarks/results/panels-shapes.json").read_text())
    assert len(found["panels"]) == 6 and all(series for panel in found["panels"].values() for series in panel.values())
    assert "draw.py" in found["command"] and found["note"] and found["measured_at"] and found["prometheus"]
    assert all(server["commit"] != "unknown" and server["device"] for server in found["servers"])
    assert found["note"] in " ".join((ROOT / "docs/dashboards.md").read_text().split())


def test_the_time_of_an_objective_is_the_bound_of_a_bucket() -> None:
    objectives = [rule for rule in rules() if rule.get("record") == "stepdial:objective_latency_seconds"]
    assert Counter(rule["labels"]["steps"] for rule in objectives).most_common(1)[0][1] == 1
    for rule in objectives:
        assert rule["expr"] == f"vector({rule['labels']['le']})"
        assert rule["labels"]["le"] in map(str, metrics.LATENCY_BUCKETS), rule


def test_nothing_is_asked_for_that_nobody_exports() -> None:
    asked = [rule["expr"] for rule in rules()] + [re.sub(VARIABLES, "1m", query.expr) for query in queries()]
    named = set().union(*map(metrics_of, asked))
    unknown = {name for name in named - exported() - recorded() if not OTHERS.fullmatch(name)}
    assert unknown == set() and len(named) > 50


def test_every_metric_of_the_server_is_on_a_dashboard_or_behind_an_alert() -> None:
    asked = [rule["expr"] for rule in rules()] + [re.sub(VARIABLES, "1m", query.expr) for query in queries()]
    named = set().union(*map(metrics_of, asked))
    histograms = {name.removesuffix("_bucket") for name in exported() if name.endswith("_bucket")}
    unseen = {name for name in exported() - named if re.sub(r"_(bucket|count|sum)$", "", name) not in histograms}
    assert unseen == set() and all(any(name.startswith(of) for name in named) for of in histograms)


def test_alertmanager_takes_its_configuration() -> None:
    assert "1 receivers" in checked("amtool", "check-config", ALERTMANAGER)


def test_every_way_to_be_told_works_once_its_comment_signs_are_gone(tmp_path: Path) -> None:
    head, receivers = ALERTMANAGER.read_text().split("\nreceivers:\n")
    file = tmp_path / "alertmanager.yml"
    file.write_text(f"{head}\nreceivers:\n" + re.sub(r"^#", "", receivers, flags=re.M))
    checked("amtool", "check-config", file)
    (receiver,) = yaml.safe_load(file.read_text())["receivers"]
    assert receiver.keys() == {"name", "webhook_configs", "email_configs", "slack_configs"}


@pytest.mark.parametrize("severity", ["critical", "warning"])
def test_alerts_of_either_severity_reach_the_operators(severity: str) -> None:
    told = checked("amtool", "config", "routes", "test", f"--config.file={ALERTMANAGER}", f"severity={severity}")
    assert told.strip() == "operators"


def test_alerts_that_inhibit_or_are_inhibited_exist() -> None:
    inhibits = yaml.safe_load(ALERTMANAGER.read_text())["inhibit_rules"]
    matchers = [m for rule in inhibits for m in rule["source_matchers"] + rule["target_matchers"]]
    named = {name for matcher in matchers for name in matcher.split('"')[1].split("|")}
    assert named <= {rule["alert"] for rule in alerts()} and named


def test_grafana_finds_its_data_source_and_its_dashboards() -> None:
    (source,) = yaml.safe_load((PROVISIONING / "datasources/prometheus.yml").read_text())["datasources"]
    interval = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["uid"] == "prometheus" and source["jsonData"]["timeInterval"] == interval
    (provider,) = yaml.safe_load((PROVISIONING / "dashboards/stepdial.yml").read_text())["providers"]
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"


def test_dashboards_are_ours_and_none_is_like_another() -> None:
    found = [dashboard(file) for file in DASHBOARDS]
    assert [board["id"] for board in found] == [None] * len(DASHBOARDS) and len(DASHBOARDS) == 2
    assert {board["uid"] for board in found} == {f"stepdial-{file.stem}" for file in DASHBOARDS}
    assert all(board["tags"] == ["stepdial"] and board["graphTooltip"] == 1 for board in found)


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_a_panel_says_what_it_answers_and_asks_the_chosen_data_source(file: Path) -> None:
    board = dashboard(file)
    assert Counter(panel["id"] for panel in board["panels"]).most_common(1)[0][1] == 1
    assert Counter(panel["title"] for panel in panels(file)).most_common(1)[0][1] == 1
    for panel in panels(file):
        asked = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert asked == [{"type": "prometheus", "uid": "${datasource}"}] * len(asked)
        assert "?" in panel["description"] and panel["fieldConfig"]["defaults"]["noValue"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_panels_lie_in_the_grid_and_not_on_each_other(file: Path) -> None:
    cells = [panel["gridPos"] for panel in dashboard(file)["panels"]]
    assert all(0 <= c["x"] and c["x"] + c["w"] <= 24 and c["h"] > 0 for c in cells)
    for one, other in combinations(cells, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below, (one, other)


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_every_variable_of_a_dashboard_is_used_and_every_one_that_is_used_is_there(file: Path) -> None:
    board = dashboard(file)
    declared = {variable["name"] for variable in board["templating"]["list"]}
    used = set(re.findall(VARIABLES, file.read_text()))
    assert used - {"__rate_interval", "__range", "__all"} == declared


def test_ranges_are_grafanas_to_choose() -> None:
    windows = {window for query in queries() for window in re.findall(r"\[([^\]]+)\]", query.expr)}
    assert windows == {"$__rate_interval", "$__range"}
