"""What deploy/ asks Prometheus for: the expressions of dashboards, alerts and recordings."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import promql_parser
import yaml

from tests.server.processes import ROOT

PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARDS = sorted((ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"))
COMPARISONS = frozenset({"==", "!=", ">", "<", ">=", "<="})


@dataclass(frozen=True)
class Query:
    """One query of a panel."""

    dashboard: str
    panel: str
    ref: str
    expr: str
    """With Grafana's variables in it."""
    instant: bool

    @property
    def name(self) -> str:
        """Where it is."""
        return f"{self.dashboard}: {self.panel} {self.ref}"


def dashboard(file: Path) -> dict[str, Any]:
    """Read a dashboard."""
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def panels(file: Path) -> list[dict[str, Any]]:
    """Return the panels of a dashboard that show something."""
    return [panel for panel in dashboard(file)["panels"] if panel["type"] != "row"]


def queries() -> list[Query]:
    """Return every query of every panel."""
    return [
        Query(file.stem, panel["title"], target["refId"], target["expr"], target.get("instant", False))
        for file in DASHBOARDS
        for panel in panels(file)
        for target in panel["targets"]
    ]


@cache
def rules() -> list[dict[str, Any]]:
    """Return every recording and alerting rule."""
    files = sorted(PROMETHEUS.glob("*s.yml"))
    groups = [yaml.safe_load(file.read_text()).get("groups", []) for file in files]
    return [rule for found in groups for group in found for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    """Return every alerting rule."""
    return [rule for rule in rules() if "alert" in rule]


def filled_in(expr: str, variables: Mapping[str, str]) -> str:
    """Put values where Grafana's variables are. Raises KeyError for one that has no value."""
    return re.sub(r"\$([a-z_]\w*)", lambda found: variables[found[1]], expr)


def metrics_of(expr: str) -> set[str]:
    """Return the names of all series that an expression reads."""
    return {selector.name for selector in _selectors(promql_parser.parse(expr))}


def loosened(expr: str) -> str:
    """Return an alert's expression with its thresholds taken away: what it returns, the alert could fire for.

    Comparisons tell true or false instead of dropping series, and what is said to be missing (`unless`) has to be there.
    Labels are matched as ever, so an alert whose two sides never meet returns nothing. What is asked for some time ago is
    asked for now: a server that was just started has no past.
    """
    return re.sub(r" offset \w+", "", _loosened(promql_parser.parse(expr)))


def _loosened(node: Any) -> str:
    if isinstance(node, promql_parser.ParenExpr):
        return f"({_loosened(node.expr)})"
    if not isinstance(node, promql_parser.BinaryExpr):
        return str(node)
    text, left, right = str(node), str(node.lhs), str(node.rhs)
    assert text.startswith(left) and text.endswith(right), text
    between = text[len(left) : len(text) - len(right)].strip()
    operator, _, matching = between.partition(" ")
    if operator in COMPARISONS:
        operator += " bool"
    return f"{_loosened(node.lhs)} {operator.replace('unless', 'and')} {matching} {_loosened(node.rhs)}"


def _selectors(node: Any) -> Iterator[Any]:
    found: list[Any] = []

    def visit(part: Any) -> None:
        if isinstance(part, promql_parser.VectorSelector):
            found.append(part)

    promql_parser.walk(node, pre_visit=visit)
    return iter(found)
