"""The stack of docker-compose.yml: what the files say; and, with Docker, the stack itself, used and broken.

`make stack-test` builds the image and runs the slow half. STACK_CPUSET=1 keeps its containers to these cores.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.settings import Settings
from tests.server.processes import ROOT

COMPOSE = ROOT / "docker-compose.yml"
GPU = ROOT / "docker-compose.gpu.yml"
STACK = yaml.safe_load(COMPOSE.read_text())
SECRETS = {"REDIS_PASSWORD": "secret", "GRAFANA_PASSWORD": "secret"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAMED = {"ids": lambda service: service}


def compose(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run docker compose on the repository's files without anybody's .env. Skips without Docker, but never in CI."""
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        assert os.environ.get("CI") != "true", "no docker compose: the stack cannot be tested, and in CI it must be"
        pytest.skip("no docker compose: its reading of docker-compose.yml was not tested")
    names = ("PATH", "HOME", "DOCKER_HOST", "STACK_CPUSET")
    known = {name: os.environ[name] for name in names if name in os.environ}
    command = [docker, "compose", "--project-directory", str(ROOT), "--env-file", "/dev/null", *arguments]
    return subprocess.run(command, env=known | environment, capture_output=True, text=True, cwd=ROOT)


def variables(text: str) -> set[str]:
    """The variables that a compose file takes from .env, those that are only passed on too."""
    return set(re.findall(r"\$\{([A-Z_]+)", text)) | set(re.findall(r"^  ([A-Z_]+):$", text, re.MULTILINE))


def test_every_setting_of_the_stack_is_explained_in_the_example_and_every_explained_one_is_there() -> None:
    explained = set(re.findall(r"^#?([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert variables(COMPOSE.read_text()) == explained
    assert variables(GPU.read_text()) <= explained


def test_the_defaults_in_the_example_are_those_of_the_stack() -> None:
    for name, value in re.findall(r"^#([A-Z_]+)=(.+)$", (ROOT / ".env.example").read_text(), re.MULTILINE):
        defaults = re.findall(rf"\$\{{{name}:-([^}}]*)\}}", COMPOSE.read_text())
        assert set(defaults) <= {value}, f"{name} is {defaults} in docker-compose.yml"


def test_every_setting_of_the_server_is_one_that_it_has() -> None:
    used = set(re.findall(r"^ +(STEPDIAL_[A-Z_]+):", COMPOSE.read_text() + GPU.read_text(), re.MULTILINE))
    assert len(used) > 8
    assert {name.removeprefix("STEPDIAL_").lower() for name in used} <= set(Settings.model_fields)


def test_the_stack_takes_the_image_of_this_version() -> None:
    assert f"STEPDIAL_VERSION:-{PROJECT['version']}}}" in STACK["services"]["stepdial"]["image"]


@pytest.mark.parametrize("service", STACK["services"], **NAMED)
def test_a_container_may_do_no_more_than_it_must(service: str) -> None:
    container = STACK["services"][service]
    assert container["read_only"] is True and container["cap_drop"] == ["ALL"] and "privileged" not in container
    assert container["security_opt"] == ["no-new-privileges:true"]
    assert container["logging"]["options"].keys() == {"max-size", "max-file"}
    assert not any("docker.sock" in str(volume) for volume in container.get("volumes", []))
    binds = [volume for volume in container.get("volumes", []) if volume.startswith((".", "$"))]
    assert all(volume.endswith(":ro") for volume in binds), "a container may write into the checkout"
    for port in container.get("ports", []):
        assert re.match(r"\$\{[A-Z_]+:-127\.0\.0\.1:\d+\}:\d+$", port), f"{port} is open to everybody"
    if service != "keys":  # which runs a command and ends
        assert container["deploy"]["resources"]["limits"].keys() == {"cpus", "memory", "pids"}
        assert container["restart"] == "unless-stopped"
        own_check = container["image"].startswith("stepdial:") and "\nHEALTHCHECK" in (ROOT / "Dockerfile").read_text()
        assert own_check or "healthcheck" in container


@pytest.mark.parametrize("service", STACK["services"], **NAMED)
def test_an_image_is_pinned_to_a_version(service: str) -> None:
    image = STACK["services"][service]["image"]
    assert re.search(r":(v?\d+(\.\d+)*(-alpine)?|\$\{STEPDIAL_VERSION:-[\d.]+\})$", image), image


def test_only_the_balancer_and_those_who_watch_are_published_and_redis_and_replicas_reach_nothing() -> None:
    services = STACK["services"]
    published = {name for name, service in services.items() if "ports" in service and "profiles" not in service}
    assert published == {"balancer", "prometheus", "alertmanager", "grafana"}
    assert services["redis"]["networks"] == services["stepdial"]["networks"] == ["back"]
    assert STACK["networks"]["back"]["internal"] is True


def test_a_replica_has_the_time_to_finish_before_it_is_killed() -> None:
    grace = int(STACK["services"]["stepdial"]["stop_grace_period"].rstrip("s"))
    assert grace > Settings.model_fields["shutdown_timeout_seconds"].default


def test_the_compose_files_keep_to_the_specification() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE, GPU]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("missing", SECRETS)
def test_a_missing_secret_is_asked_for_by_name(missing: str) -> None:
    done = compose("-f", str(COMPOSE), "config", "-q", **{k: v for k, v in SECRETS.items() if k != missing})
    assert done.returncode != 0
    assert f"required variable {missing} is missing a value: `make .env` writes" in done.stderr


def test_with_the_secrets_docker_compose_takes_the_file() -> None:
    done = compose("-f", str(COMPOSE), "config", **SECRETS, STEPDIAL_REPLICAS="5", TRUSTED_PROXIES="10.1.2.3")
    assert done.returncode == 0, done.stderr
    replica = yaml.safe_load(done.stdout)["services"]["stepdial"]
    assert replica["deploy"]["replicas"] == 5
    assert replica["environment"]["FORWARDED_ALLOW_IPS"] == "172.30.80.0/24,10.1.2.3"


@pytest.mark.parametrize("gpus", [1, 2, 4, 8])
def test_each_gpu_has_one_replica_under_the_name_that_the_balancer_looks_for(gpus: int) -> None:
    profile = {"COMPOSE_PROFILES": f"gpus-{gpus}"} if gpus > 1 else {}
    done = compose("-f", str(COMPOSE), "-f", str(GPU), "config", **SECRETS, **profile)
    assert done.returncode == 0, done.stderr
    services: dict[str, Any] = yaml.safe_load(done.stdout)["services"]
    replicas = {name: service for name, service in services.items() if service["image"].startswith("stepdial:")}
    devices = [service["deploy"]["resources"]["reservations"]["devices"] for service in replicas.values()]
    assert sorted(ids for (device,) in devices for ids in device["device_ids"]) == [str(n) for n in range(gpus)]
    for name, service in replicas.items():
        assert service["image"] == f"stepdial:{PROJECT['version']}-cuda" and service["deploy"]["replicas"] == 1
        assert name == "stepdial" or service["networks"]["back"]["aliases"] == ["stepdial"]
        assert service["read_only"] and service["environment"]["STEPDIAL_DEVICE"] == "cuda"


def test_secrets_are_made_once_and_only_for_their_owner(tmp_path: Path) -> None:
    for file in ("Makefile", ".env.example", "pyproject.toml"):
        shutil.copy(ROOT / file, tmp_path)
    subprocess.run(["make", ".env"], cwd=tmp_path, check=True, capture_output=True)
    made = (tmp_path / ".env").read_text()
    secrets = re.findall(r"^[A-Z_]+_PASSWORD=([0-9a-f]{48})$", made, re.MULTILINE)
    assert len(set(secrets)) == len(SECRETS) and (tmp_path / ".env").stat().st_mode & 0o077 == 0
    subprocess.run(["make", ".env"], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / ".env").read_text() == made
    ignored = subprocess.run(["git", "check-ignore", ".env"], cwd=ROOT, capture_output=True)
    assert ignored.returncode == 0, "git would take the secrets"


def test_the_script_of_the_rolling_update_can_be_read() -> None:
    assert subprocess.run(["bash", "-n", ROOT / "deploy" / "roll.sh"]).returncode == 0
    done = subprocess.run([ROOT / "deploy" / "roll.sh"], env={"PATH": os.environ["PATH"], "COMPOSE": "true"},
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 1 and "no container of the service stepdial runs" in done.stderr
