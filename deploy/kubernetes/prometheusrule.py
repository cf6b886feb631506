"""Write the rules of deploy/prometheus as the resource that the Prometheus operator wants.

    python deploy/kubernetes/prometheusrule.py

Kustomize cannot put one file into another; so this does, and a test compares. Run it again when the rules have changed.
"""

from pathlib import Path
from typing import Any

import yaml

RULES = Path(__file__).parents[1] / "prometheus"
RESOURCE = Path(__file__).parent / "components" / "monitoring" / "prometheusrule.yaml"
HEAD = "# Written by deploy/kubernetes/prometheusrule.py from deploy/prometheus; change it there.\n"
LEFT_OUT = {"stepdial-balancer"}
"""Groups about things that are not there: the cluster's way in is not our HAProxy."""


def groups() -> list[dict[str, Any]]:
    """Return the groups of rules, in the order in which Prometheus reads their files."""
    files = yaml.safe_load((RULES / "prometheus.yml").read_text())["rule_files"]
    found = [group for file in files for group in yaml.safe_load((RULES / file).read_text())["groups"]]
    return [group for group in found if group["name"] not in LEFT_OUT]


def resource() -> str:
    """Return the resource as YAML."""
    labels = {"app.kubernetes.io/name": "stepdial", "release": "kube-prometheus-stack"}
    document = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "stepdial", "labels": labels},
        "spec": {"groups": groups()},
    }
    return HEAD + yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Dumper(yaml.SafeDumper):
    """Expressions of several lines stay such, and a list stands two spaces in, as in files that people write."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        return super().increase_indent(flow, False)

    def represent_str(self, text: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _Dumper.represent_str)

if __name__ == "__main__":
    RESOURCE.write_text(resource())
    print(f"wrote {RESOURCE.name}: {len(groups())} groups")
