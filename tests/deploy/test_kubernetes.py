"""The Kubernetes manifests: they render, validate, agree with the server and among themselves. No cluster is needed."""

import json
import os
import re
import textwrap
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from prometheus_client import REGISTRY

import deploy.kubernetes.prometheusrule as prometheusrule
import server.metrics  # noqa: F401  (declares the metrics)
from server.ending import JOIN_SECONDS
from server.settings import Settings
from tests.deploy.manifests import (
    COMPONENTS,
    KUBERNETES,
    OVERLAYS,
    ROOT,
    Resource,
    environment,
    every_container,
    find,
    overlay,
    pod,
    render,
    serving,
    with_component,
)

VERSIONS = ("1.30", "1.37")
"""The oldest Kubernetes that has all that is used (preStop's sleep), and the newest whose schemas the validator has."""
DEFINED_ELSEWHERE = {
    "monitoring.coreos.com/v1": {"ServiceMonitor", "PrometheusRule"},
    "keda.sh/v1alpha1": {"ScaledObject"},
    "gateway.networking.k8s.io/v1": {"Gateway", "HTTPRoute"},
}
"""Kinds that Kubernetes itself does not know; tests/deploy/test_kubernetes_types.py checks them."""
NOT_OURS = {"OMP_NUM_THREADS", "REDIS_PASSWORD", "REDISCLI_AUTH"}
"""Variables that are read by PyTorch, the manifest itself and redis-cli."""


@pytest.fixture(params=[*OVERLAYS, *(f"with {name}" for name in COMPONENTS)])
def resources(request: pytest.FixtureRequest) -> list[Resource]:
    """What an overlay renders to, or the base with one component."""
    name = request.param
    return with_component(name.removeprefix("with ")) if name.startswith("with ") else overlay(name)


def test_every_resource_passes_the_strict_schemas_of_kubernetes() -> None:
    checked: set[str] = set()
    everything = [resource for name in OVERLAYS for resource in overlay(name)]
    for name in COMPONENTS:
        everything += with_component(name)
    for resource in everything:
        if resource["kind"] in DEFINED_ELSEWHERE.get(resource["apiVersion"], ()):
            continue
        text = json.dumps(resource, sort_keys=True)
        for version in VERSIONS if text not in checked else ():
            kubernetes_validate.validate(resource, version, strict=True)
        checked.add(text)
    assert len(checked) > 20


def test_the_schemas_find_what_is_wrong() -> None:
    deployment = json.loads(json.dumps(find(overlay("single"), "Deployment")))
    deployment["spec"]["template"]["spec"]["terminationGracePeriod"] = 150
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGracePeriod"):
        kubernetes_validate.validate(deployment, VERSIONS[-1], strict=True)


def test_every_variable_is_a_setting_and_its_value_is_accepted(
    resources: list[Resource], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    values = environment(resources, serving(resources))
    assert {name for name in values if not name.startswith("STEPDIAL_")} <= NOT_OURS
    ours = {name.removeprefix("STEPDIAL_").lower(): value for name, value in values.items() if name not in NOT_OURS}
    assert ours.keys() <= Settings.model_fields.keys()
    if values.get("STEPDIAL_REDIS_URL") == "secret":
        values["STEPDIAL_REDIS_URL"] = "rediss://:password@redis.example.com:6379/0"
    if "STEPDIAL_FAMILIES" in values:
        values["STEPDIAL_FAMILIES"] = str(tmp_path)  # a folder that exists here
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    for field in ours.keys() - {"families", "redis_url", "trusted_proxies"}:
        assert str(getattr(settings, field)) == ours[field]
    assert ",".join(map(str, settings.trusted_proxies)) == ours.get("trusted_proxies", "")


def test_whose_word_is_taken_for_an_address_is_for_an_overlay_to_say() -> None:
    named = {name: environment(overlay(name), serving(overlay(name))) for name in OVERLAYS}
    assert {name for name, values in named.items() if "STEPDIAL_TRUSTED_PROXIES" in values} == {"everything"}
    assert not any("FORWARDED_ALLOW_IPS" in values for values in named.values())


def test_a_service_link_would_stop_the_server_so_there_are_none(
    resources: list[Resource], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEPDIAL_PORT", "tcp://10.0.0.1:8000")  # what Kubernetes makes of a service called stepdial
    with pytest.raises(ValueError, match="port"):
        Settings()
    assert all(spec["enableServiceLinks"] is False for _, spec in every_container(resources))


def test_ports_and_probes_are_the_servers(resources: list[Resource]) -> None:
    container = serving(resources)
    values = environment(resources, container)
    ports = {port["name"]: str(port["containerPort"]) for port in container["ports"]}
    assert ports == {"http": values["STEPDIAL_PORT"], "metrics": values["STEPDIAL_ADMIN_PORT"]}
    paths = json.loads((ROOT / "docs" / "openapi.json").read_text())["paths"]
    asked = {"startup": ("/readyz", "http"), "readiness": ("/readyz", "http"), "liveness": ("/livez", "metrics")}
    for probe, (path, port) in asked.items():
        assert container[f"{probe}Probe"]["httpGet"] == {"path": path, "port": port}
        assert "get" in paths[path]


def test_a_pod_that_leaves_has_time_for_all_it_accepted(resources: list[Resource]) -> None:
    spec, container = pod(find(resources, "Deployment")), serving(resources)
    drain = int(environment(resources, container)["STEPDIAL_SHUTDOWN_TIMEOUT_SECONDS"])
    asleep = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert drain >= Settings.model_fields["request_timeout_seconds"].default
    assert spec["terminationGracePeriodSeconds"] >= asleep + drain + JOIN_SECONDS + 10
    readiness = container["readinessProbe"]
    assert asleep > readiness["periodSeconds"]


def test_a_rollout_is_patient_for_as_long_as_a_start_may_take_and_never_has_a_replica_less(
    resources: list[Resource],
) -> None:
    deployment, startup = find(resources, "Deployment")["spec"], serving(resources)["startupProbe"]
    assert deployment["progressDeadlineSeconds"] > startup["periodSeconds"] * startup["failureThreshold"]
    assert deployment["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}


def test_every_pod_keeps_to_the_restricted_security_standard(resources: list[Resource]) -> None:
    labels = find(resources, "Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    for container, spec in every_container(resources):
        of_pod, own = spec["securityContext"], container["securityContext"]
        assert of_pod["runAsNonRoot"] and of_pod["runAsUser"] > 0
        assert of_pod["seccompProfile"] == {"type": "RuntimeDefault"}
        assert own == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert spec["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        kinds = {kind for volume in spec["volumes"] for kind in volume.keys() - {"name"}}
        assert kinds <= {"emptyDir", "configMap", "secret", "persistentVolumeClaim"}
        assert all(container["resources"][kind].keys() >= {"cpu", "memory"} for kind in ("requests", "limits"))
    assert pod(find(resources, "Deployment"))["securityContext"]["runAsUser"] == 10001


def test_images_carry_the_projects_version(resources: list[Resource]) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    images = {container["image"] for container, _ in every_container(resources)} - {"redis:7-alpine"}
    assert len(images) == 1 and images <= {f"stepdial:{version}", f"stepdial:{version}-cuda"}


def test_only_a_pod_with_a_gpu_has_the_image_for_it() -> None:
    for name in OVERLAYS:
        container = serving(overlay(name))
        gpus = container["resources"]["limits"].get("nvidia.com/gpu", 0)
        device = environment(overlay(name), container).get("STEPDIAL_DEVICE", "auto")
        assert (gpus, device) == ((1, "cuda") if container["image"].endswith("-cuda") else (0, "auto")), name


def test_what_resources_refer_to_is_there(resources: list[Resource]) -> None:
    labels = {
        json.dumps(workload["spec"]["template"]["metadata"]["labels"].get("app.kubernetes.io/name"))
        for workload in resources
        if workload["kind"] in ("Deployment", "StatefulSet")
    }
    selectors = [json.dumps(selected) for resource in resources for selected in _selected(resource)]
    assert selectors and set(selectors) <= labels
    services = {
        resource["metadata"]["name"]: {port[key] for port in resource["spec"]["ports"] for key in ("name", "port")}
        for resource in resources
        if resource["kind"] == "Service"
    }
    for service, port in _backends(resources):
        assert port in services[service]
    named = {(resource["kind"], resource["metadata"]["name"]) for resource in resources}
    for _, spec in every_container(resources):
        maps = {volume["configMap"]["name"] for volume in spec["volumes"] if "configMap" in volume}
        assert {("ConfigMap", name) for name in maps} <= named
    account = pod(find(resources, "Deployment"))["serviceAccountName"]
    assert ("ServiceAccount", account) in named


def _selected(resource: Resource) -> list[str]:
    """The names of pods, by their label, that a resource selects."""
    spec = resource.get("spec", {})
    peers = [peer for rule in spec.get("ingress", []) + spec.get("egress", []) for peer in _peers(rule)]
    found = [spec.get("selector"), spec.get("podSelector"), *peers]
    kind = resource["kind"]
    if kind not in ("Service", "NetworkPolicy", "PodDisruptionBudget", "ServiceMonitor"):
        return []
    names = [(item or {}).get("matchLabels", item or {}) for item in found]
    return [name["app.kubernetes.io/name"] for name in names if name]


def _peers(rule: Resource) -> list[Resource]:
    return [peer["podSelector"] for peer in rule.get("from", []) + rule.get("to", []) if "podSelector" in peer]


def _backends(resources: list[Resource]) -> list[tuple[str, Any]]:
    """(service, port) that an Ingress, a route or a variable points to."""
    backends = []
    for resource in resources:
        spec = resource.get("spec", {})
        if resource["kind"] == "Ingress":
            found = [path["backend"]["service"] for rule in spec["rules"] for path in rule["http"]["paths"]]
            backends += [(service["name"], service["port"]["name"]) for service in found]
        if resource["kind"] == "HTTPRoute":
            backends += [(ref["name"], ref["port"]) for rule in spec["rules"] for ref in rule["backendRefs"]]
        if resource["kind"] == "ServiceMonitor":
            backends += [("stepdial", endpoint["port"]) for endpoint in spec["endpoints"]]
    url = environment(resources, serving(resources)).get("STEPDIAL_REDIS_URL", "")
    if found := re.fullmatch(r"redis://:secret@([\w-]+):(\d+)/0", url):
        backends.append((found[1], int(found[2])))
    return backends


def test_an_autoscaler_owns_the_number_of_replicas() -> None:
    for name in ("keda", "hpa"):
        assert "replicas" not in find(with_component(name), "Deployment")["spec"]
    assert [find(overlay(name), "Deployment")["spec"].get("replicas") for name in ("single", "cpu", "gpu")] == [1, 3, 2]


def test_autoscalers_ask_for_metrics_that_the_server_has() -> None:
    scaled = find(with_component("keda"), "ScaledObject")["spec"]
    asked = {name for trigger in scaled["triggers"] for name in metric_names(trigger["metadata"]["query"])}
    hpa = find(with_component("hpa"), "HorizontalPodAutoscaler")["spec"]
    adapter = (KUBERNETES / "components" / "hpa" / "prometheus-adapter.yaml").read_text()
    derived = set(re.findall(r"as: (\w+)", adapter))
    asked |= {metric["pods"]["metric"]["name"] for metric in hpa["metrics"]} - derived
    asked |= metric_names(adapter) - derived
    assert asked == {"stepdial_pending_evaluations", "stepdial_backlog_seconds", "stepdial_device_seconds_total"}
    assert asked <= known_metrics()


def test_both_autoscalers_want_the_same_and_what_they_want_follows_from_the_settings() -> None:
    scaled = find(with_component("keda"), "ScaledObject")["spec"]
    hpa = find(with_component("hpa"), "HorizontalPodAutoscaler")["spec"]
    thresholds = [float(trigger["metadata"]["threshold"]) for trigger in scaled["triggers"]]
    averages = [metric["pods"]["target"]["averageValue"] for metric in hpa["metrics"]]
    assert [float(v.removesuffix("m")) / (1000 if v.endswith("m") else 1) for v in averages] == thresholds
    defaults = Settings()
    assert thresholds[:2] == [defaults.max_evaluations / 4, defaults.brownout_low_seconds]
    assert scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == hpa["behavior"]
    assert (scaled["minReplicaCount"], scaled["maxReplicaCount"]) == (hpa["minReplicas"], hpa["maxReplicas"])


def test_the_rules_are_those_of_prometheus() -> None:
    assert prometheusrule.RESOURCE.read_text() == prometheusrule.resource()
    rendered = find(with_component("monitoring"), "PrometheusRule")["spec"]["groups"]
    assert rendered == prometheusrule.groups()
    assert not any("haproxy" in json.dumps(group) for group in rendered)


def test_the_way_in_waits_longer_than_a_request_may_take() -> None:
    annotations = find(with_component("ingress"), "Ingress")["metadata"]["annotations"]
    rules = find(with_component("gateway"), "HTTPRoute")["spec"]["rules"]
    limits = [annotations["haproxy.org/timeout-server"], rules[1]["timeouts"]["request"]]
    assert all(int(limit.removesuffix("s")) > Settings().request_timeout_seconds for limit in limits)
    assert rules[0]["matches"][0]["path"]["value"] == "/jobs" and rules[0]["timeouts"]["request"] == "0s"


def test_the_ingress_sends_an_order_again_only_under_a_key_as_the_balancer_of_the_stack_does() -> None:
    annotations = find(with_component("ingress"), "Ingress")["metadata"]["annotations"]
    lines = annotations["haproxy.org/backend-config-snippet"].splitlines()
    ours = [line.strip() for line in (KUBERNETES.parent / "haproxy" / "haproxy.cfg").read_text().splitlines()]
    for begin in ("http-request set-header Idempotency-Key", "option http-buffer-request", "retry-on"):
        (line,) = (line for line in lines if line.startswith(begin))
        assert line in ours


def test_the_overlay_that_the_docs_show_renders(tmp_path: Path) -> None:
    shown = re.search(
        r"^(    apiVersion: kustomize.*?)\n\n(?! )", (ROOT / "docs" / "kubernetes.md").read_text(), re.S | re.M
    )
    assert shown
    text = textwrap.dedent(shown[1]).replace("../..", os.path.relpath(KUBERNETES, tmp_path))
    (tmp_path / "kustomization.yaml").write_text(text)
    resources = render(tmp_path)
    container = serving(resources)
    assert container["image"] == "registry.example.com/stepdial:0.1.0"
    assert environment(resources, container)["STEPDIAL_MAX_WAVE"] == "32"
    assert find(resources, "Deployment")["spec"]["replicas"] == 3 and find(resources, "Ingress")


def test_the_docs_tell_of_every_overlay_and_component() -> None:
    text = (ROOT / "docs" / "kubernetes.md").read_text()
    tables = "".join(line for line in text.splitlines() if line.startswith("| `"))
    assert [name for name in [*OVERLAYS, *COMPONENTS] if f"`{name}`" not in tables] == []


def test_no_secret_is_committed() -> None:
    for name in OVERLAYS:
        assert not [resource for resource in overlay(name) if resource["kind"] == "Secret"]


def metric_names(text: str) -> set[str]:
    """Names in an expression that could be metrics of ours."""
    return set(re.findall(r"\bstepdial_\w+", text))


def known_metrics() -> set[str]:
    """Every name under which Prometheus knows something of the server."""
    families = list(REGISTRY.collect())
    suffixes = {"counter": ["_total", "_created"], "histogram": ["_bucket", "_count", "_sum", "_created"]}
    return {family.name + suffix for family in families for suffix in suffixes.get(family.type, [""])}
