"""The Kubernetes manifests, rendered by the kustomize that users have: kubectl's."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = sorted(folder.name for folder in (KUBERNETES / "overlays").iterdir())
COMPONENTS = sorted(folder.name for folder in (KUBERNETES / "components").iterdir())

Resource = dict[str, Any]


def kustomize() -> list[str]:
    """Return the command that renders a folder; skips where there is none. Debian 12's kubectl is too old."""
    for command in (["kubectl", "kustomize"], ["kustomize", "build"]):
        if shutil.which(command[0]):
            return command
    pytest.skip("neither kubectl (1.27 or later) nor kustomize (5 or later) on the PATH: manifests were not tested")


def render(folder: Path) -> list[Resource]:
    """Return the resources that a folder with a kustomization gives."""
    done = subprocess.run([*kustomize(), str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return list(yaml.load_all(done.stdout, yaml.CSafeLoader))


@cache
def overlay(name: str) -> list[Resource]:
    """Return the resources of one of our overlays."""
    return render(KUBERNETES / "overlays" / name)


@cache
def with_component(name: str) -> list[Resource]:
    """Return the resources of the base with one component."""
    with tempfile.TemporaryDirectory() as folder:
        kustomization = {
            "namespace": "stepdial",
            "resources": [os.path.relpath(KUBERNETES / "base", folder)],
            "components": [os.path.relpath(KUBERNETES / "components" / name, folder)],
            "images": [{"name": "stepdial", "newTag": "0.1.0"}],
        }
        (Path(folder) / "kustomization.yaml").write_text(json.dumps(kustomization))
        return render(Path(folder))


def find(resources: list[Resource], kind: str, name: str = "stepdial") -> Resource:
    """Return the one resource of this kind and name; settings' names without the hash at their end will do."""
    (found,) = [
        resource
        for resource in resources
        if resource["kind"] == kind
        and (resource["metadata"]["name"] == name or resource["metadata"]["name"].rpartition("-")[0] == name)
    ]
    return found


def pod(resource: Resource) -> Resource:
    """Return the pod's specification in a Deployment or StatefulSet."""
    spec: Resource = resource["spec"]["template"]["spec"]
    return spec


def serving(resources: list[Resource]) -> Resource:
    """Return the container that serves."""
    (container,) = pod(find(resources, "Deployment"))["containers"]
    return dict(container)


def environment(resources: list[Resource], container: Resource) -> dict[str, str]:
    """Return a container's variables; those from secrets are "secret", those of the pod's resources their amount."""
    values: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        (settings,) = [r for r in resources if r["metadata"]["name"] == source["configMapRef"]["name"]]
        values |= settings["data"]
    for variable in container.get("env", ()):
        values[variable["name"]] = _value(variable, values, container)
    return values


def _value(variable: Resource, before: dict[str, str], container: Resource) -> str:
    if "value" in variable:
        value = str(variable["value"])
        for name, known in before.items():  # as Kubernetes does it: only variables above this one
            value = value.replace(f"$({name})", known)
        return value
    origin = variable["valueFrom"]
    if "resourceFieldRef" in origin:
        kind, what = origin["resourceFieldRef"]["resource"].split(".")
        return str(container["resources"][kind][what])
    assert "secretKeyRef" in origin, variable
    return "secret"


def every_container(resources: list[Resource]) -> Iterator[tuple[Resource, Resource]]:
    """Every container of every pod, those that initialise too, with its pod's specification."""
    for resource in resources:
        if resource["kind"] in ("Deployment", "StatefulSet"):
            spec = pod(resource)
            for container in [*spec.get("initContainers", ()), *spec["containers"]]:
                yield container, spec
