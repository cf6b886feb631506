"""What Kubernetes itself does not know: resources of the Gateway API, the Prometheus operator and KEDA, against the types and
validators that npm's @kubernetes-models are generated from their sources. The types find unknown fields, the validators
wrong values. KEDA's are of its version 2.10, the others' of 2025 or later."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.manifests import COMPONENTS, ROOT, Resource, with_component

pytestmark = pytest.mark.slow

PACKAGES = ["gateway-api@2.0.0", "keda@2.0.0", "prometheus-operator@6.0.0"]
MODULES = {
    "gateway.networking.k8s.io/v1": "@kubernetes-models/gateway-api",
    "keda.sh/v1alpha1": "@kubernetes-models/keda",
    "monitoring.coreos.com/v1": "@kubernetes-models/prometheus-operator",
}
COMPILER = "--strict --skipLibCheck --module esnext --moduleResolution bundler --target es2022 --outDir out check.ts"
INSTALLED = ROOT / ".venv" / "kubernetes-models"


@pytest.fixture(scope="module")
def packages() -> Path:
    """The folder where the packages are installed; they are fetched once."""
    marker = INSTALLED / "installed"
    if marker.exists():
        return INSTALLED
    if shutil.which("npm") is None:
        assert os.environ.get("CI") != "true", "no npm: custom resources cannot be checked, and in CI they must be"
        pytest.skip("no npm on the PATH: custom resources were not checked")
    INSTALLED.mkdir(parents=True, exist_ok=True)
    (INSTALLED / "package.json").write_text('{"private": true, "type": "module"}')
    wanted = [f"@kubernetes-models/{package}" for package in PACKAGES] + ["typescript@7.0.2"]
    subprocess.run(["npm", "install", "--no-audit", "--no-fund", *wanted], cwd=INSTALLED, check=True, timeout=300)
    marker.touch()
    return INSTALLED


def custom() -> Iterator[Resource]:
    """Every custom resource of every component."""
    for name in COMPONENTS:
        yield from (resource for resource in with_component(name) if resource["apiVersion"] in MODULES)


def check(resources: list[Resource], packages: Path) -> str:
    """Return what the types, or else the validators, have to say against resources; nothing if they are content."""
    lines = []
    for number, resource in enumerate(resources):
        module = MODULES[resource["apiVersion"]] + "/" + resource["apiVersion"]
        fields = {key: value for key, value in resource.items() if key not in ("apiVersion", "kind")}
        lines.append(f'import {{ {resource["kind"]} as Kind{number} }} from "{module}";')
        lines.append(f"new Kind{number}({json.dumps(fields)}).validate();")
    (packages / "check.ts").write_text("\n".join(lines))
    for command in (["node_modules/.bin/tsc", *COMPILER.split()], ["node", "out/check.js"]):
        done = subprocess.run(command, cwd=packages, capture_output=True, text=True, timeout=120)
        if done.returncode:
            return done.stdout + done.stderr
    return ""


def test_every_custom_resource_has_the_types_and_values_that_its_definition_says(packages: Path) -> None:
    resources = list(custom())
    kinds = {resource["kind"] for resource in resources}
    assert kinds >= {"Gateway", "HTTPRoute", "ServiceMonitor", "PrometheusRule", "ScaledObject"}
    assert check(resources, packages) == ""


def test_an_unknown_field_and_a_wrong_value_are_found(packages: Path) -> None:
    (route,) = [resource for resource in custom() if resource["kind"] == "HTTPRoute"]
    text = json.dumps(route)
    for wrong, complaint in {'"hostname": []': '"hostname"', '"hostnames": [5]': "string"}.items():
        changed = json.loads(text.replace('"hostnames": ["stepdial.example.com"]', wrong))
        assert changed != route and complaint in check([changed], packages)
    late = json.loads(text.replace('"130s"', '"soon"'))
    assert late != route and "pattern" in check([late], packages)
