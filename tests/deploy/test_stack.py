"""The stack of docker-compose.yml: what the files say; and, with Docker, the stack itself, used and broken.

`make stack-test` builds the image and runs the slow half. STACK_CPUSET=1 keeps its containers to these cores.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from server.ending import JOIN_SECONDS
from server.settings import Settings
from tests.deploy.clients import Clients
from tests.server.processes import ROOT
from tests.server.redis_server import free_port

COMPOSE = ROOT / "docker-compose.yml"
GPU = ROOT / "docker-compose.gpu.yml"
STACK = yaml.safe_load(COMPOSE.read_text())
SECRETS = {"REDIS_PASSWORD": "secret", "GRAFANA_PASSWORD": "secret"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAMED = {"ids": lambda service: service}
GRAFANA = STACK["services"]["grafana"]["image"]
PATIENCE = 900
"""Seconds that containers may take to be ready, or to do what a test waits for."""


def is_compose(program: list[str]) -> bool:
    """Whether a command is there and Docker Compose, not its version 1."""
    if shutil.which(program[0]) is None:
        return False
    done = subprocess.run([*program, "version", "--short"], capture_output=True, text=True)
    return done.returncode == 0 and not done.stdout.startswith("1.")


def compose(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run Docker Compose 2 on the repository's files without anybody's .env. Skips where it is not, but never in CI."""
    program = next(filter(is_compose, (["docker", "compose"], ["docker-compose"])), None)
    if program is None:
        assert os.environ.get("CI") != "true", "no docker compose: the stack cannot be tested, and in CI it must be"
        pytest.skip("no docker compose: its reading of docker-compose.yml was not tested")
    names = ("PATH", "HOME", "DOCKER_HOST", "STACK_CPUSET")
    known = {name: os.environ[name] for name in names if name in os.environ}
    command = [*program, "--project-directory", str(ROOT), "--env-file", "/dev/null", *arguments]
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
    delay = STACK["services"]["stepdial"]["environment"]["STEPDIAL_SHUTDOWN_DELAY_SECONDS"]
    assert delay >= 3  # checks of the balancer that a replica which leaves has to fail
    assert grace > delay + Settings.model_fields["shutdown_timeout_seconds"].default + JOIN_SECONDS


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


def test_with_gpus_one_server_alone_and_the_command_for_keys_have_the_image_of_the_replicas() -> None:
    done = compose("-f", str(COMPOSE), "-f", str(GPU), "config", **SECRETS, COMPOSE_PROFILES="server,keys")
    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    assert {services[name]["image"] for name in ("server", "keys", "stepdial")} == {
        f"stepdial:{PROJECT['version']}-cuda"
    }
    assert services["server"]["environment"]["STEPDIAL_DEVICE"] == "cuda"
    assert services["server"]["deploy"]["resources"].keys() == {"limits", "reservations"}


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


DOCKER = """#!/bin/sh
case "$*" in
  "compose ps "*) echo old ;;
  "compose exec "*) echo 'haproxy_backend_active_servers{proxy="stepdial"} 1' ;;
  "compose up "*) echo 'no such image: stepdial:9' >&2; exit 1 ;;
  "compose rm "*) ;;
  *) echo "unexpected: docker $*" >&2; exit 2 ;;
esac
"""
"""A Docker that has one replica and no image for another."""


def test_a_rolling_update_says_why_no_new_replica_could_be_started_and_touches_no_old_one(tmp_path: Path) -> None:
    docker = tmp_path / "docker"
    docker.write_text(DOCKER)
    docker.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run([ROOT / "deploy" / "roll.sh"], env={"PATH": path}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "unexpected" not in done.stderr
    assert "no such image: stepdial:9\n" in done.stderr and "no new replica could be started" in done.stderr


def slots(*taken: bool) -> str:
    """What the balancer says of its slots for replicas."""
    states = [(n, state, (state == "UP") == up) for n, up in enumerate(taken, 1) for state in ("UP", "MAINT")]
    return "".join(
        f'haproxy_server_status{{proxy="stepdial",server="replica{n}",state="{state}"}} {int(so)}\n'
        for n, state, so in states
    )


@pytest.mark.parametrize(("taken", "refused"), [((True, True), True), ((True, False), False)])
def test_a_rolling_update_is_refused_where_the_balancer_has_no_slot_for_one_replica_more(
    tmp_path: Path, taken: tuple[bool, ...], refused: bool
) -> None:
    (tmp_path / "metrics").write_text('haproxy_backend_active_servers{proxy="stepdial"} 1\n' + slots(*taken))
    docker = tmp_path / "docker"
    docker.write_text(re.sub(r'("compose exec "\*\)).*?;;', rf"\1 cat {tmp_path}/metrics ;;", DOCKER))
    docker.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run([ROOT / "deploy" / "roll.sh"], env={"PATH": path}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "unexpected" not in done.stderr
    assert ("no slot for one replica more" in done.stderr) == refused != ("no such image" in done.stderr)


def test_the_table_of_drills_is_written_even_when_a_promise_broke_and_the_status_is_kept(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$3" >>"$0.did"\ncase "$3" in all) exit 3;; esac\n')
    python.chmod(0o755)
    made = [part for name in (".venv/.test", "redis", "haproxy") for part in ("--old-file", name)]
    done = subprocess.run(["make", *made, f"BIN={tmp_path}", "drills"], cwd=ROOT, capture_output=True, text=True)
    assert (tmp_path / "python.did").read_text().split() == ["all", "table"]
    assert done.returncode == 2 and "Error 3" in done.stderr


class Stack:
    """The stack, with ports and a network of its own, of the small family; as a context manager it is up within the block."""

    def __init__(self, folder: Path, name: str, services: Sequence[str], **environment: str):
        """folder: where a file that keeps the containers to some cores may be written; name: of the Compose project."""
        self._services = services
        ports = {part: free_port() for part in ("STEPDIAL", "PROMETHEUS", "ALERTMANAGER", "GRAFANA")}
        self.url, self.prometheus = (f"http://127.0.0.1:{ports[part]}" for part in ("STEPDIAL", "PROMETHEUS"))
        published = {f"{part}_PUBLISH": f"127.0.0.1:{port}" for part, port in ports.items()}
        own = {"STEPDIAL_FAMILY": "/families/digits", "BACK_SUBNET": "172.30.81.0/24"}
        self._environment = SECRETS | published | own | environment
        cores = folder / "cores.yml"
        cpuset = {"cpuset": os.environ["STACK_CPUSET"]} if "STACK_CPUSET" in os.environ else {}
        cores.write_text(yaml.safe_dump({"services": {service: cpuset for service in STACK["services"]}}))
        self._files = ["-p", name, "-f", str(COMPOSE), "-f", str(cores)]

    def __enter__(self) -> "Stack":
        self.up()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.compose("--profile", "*", "down", "--volumes", "--timeout", "40", "--remove-orphans")

    def compose(self, *arguments: str) -> str:
        """Run docker compose on it and return what it prints."""
        done = compose(*self._files, *arguments, **self._environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def up(self, *arguments: str) -> None:
        """Bring up what is not up, and wait for it."""
        started = ["up", "--detach", "--wait", "--wait-timeout", str(PATIENCE), "--no-build"]
        self.compose(*started, *arguments, *self._services)

    def replicas(self) -> list[str]:
        """The containers of the replicas."""
        return self.compose("ps", "--quiet", "stepdial").split()

    def serving(self) -> int:
        """How many replicas the balancer sends requests to."""
        page = "http://127.0.0.1:8404/metrics"
        fetch = f"wget -qO- {page} 2>/dev/null || curl -fs {page}"
        metrics = self.compose("exec", "-T", "balancer", "sh", "-c", fetch)
        found = re.search(r'^haproxy_backend_active_servers{proxy="stepdial"} (\d+)$', metrics, re.MULTILINE)
        assert found, metrics
        return int(found[1])

    def query(self, expression: str) -> list[float]:
        """The values of an expression in Prometheus."""
        answer = httpx2.get(f"{self.prometheus}/api/v1/query", params={"query": expression}, timeout=30)
        assert answer.status_code == 200, answer.text
        return [float(found["value"][1]) for found in answer.json()["data"]["result"]]

    def roll(self) -> "subprocess.CompletedProcess[str]":
        """Run the rolling update."""
        command = shlex.join(["docker", "compose", "--env-file", "/dev/null", *self._files])
        environment = os.environ | self._environment | {"COMPOSE": command, "READY_SECONDS": str(PATIENCE)}
        return subprocess.run([ROOT / "deploy" / "roll.sh"], env=environment, capture_output=True, text=True)


def docker(*arguments: str) -> str:
    """Run docker and return what it prints."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def eventually(condition: Callable[[], bool]) -> None:
    """Wait for a condition, but not for ever."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.5)


def needs_docker() -> None:
    """Skip where no Docker daemon answers or the image is not built, but never in CI."""
    image = f"stepdial:{PROJECT['version']}"
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "image", "inspect", image], capture_output=True).returncode
    ):
        assert os.environ.get("CI") != "true", f"no Docker, or no image {image}: in CI the stack must be tested"
        pytest.skip(f"no Docker daemon, or no image {image} (make image): the stack was not tested")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The whole stack; without Grafana, and saying so, where its image cannot be had."""
    needs_docker()
    services = ["balancer", "prometheus", "alertmanager"]
    had = [["docker", "image", "inspect", GRAFANA], ["docker", "pull", GRAFANA]]
    if any(subprocess.run(command, capture_output=True).returncode == 0 for command in had):
        services.append("grafana")
    else:
        print(f"{GRAFANA} cannot be had: the stack is tested without it")
    with Stack(tmp_path_factory.mktemp("stack"), "stepdial-test", services) as stack:
        yield stack


def clients(stack: Stack) -> Clients:
    """Clients of the balancer."""
    return Clients(stack.url, {"label": "3"}, steps=(1, 2, 4, 8, 16))


@pytest.mark.slow
def test_every_position_of_the_dial_is_drawn_through_the_balancer(stack: Stack) -> None:
    positions = [
        p["steps"] for p in httpx2.get(f"{stack.url}/models").json()["data"][0]["positions"] if p["steps"] <= 64
    ]
    assert len(positions) > 5
    for steps in positions:
        answer = httpx2.post(f"{stack.url}/generate", json={"label": "3", "steps": steps, "seed": 1}, timeout=150)
        assert answer.status_code == 200 and answer.json()["steps_used"] == steps
    assert httpx2.get(f"{stack.url}/metrics").status_code == 404


@pytest.mark.slow
def test_prometheus_finds_the_replicas_by_name_and_scrapes_everything(stack: Stack) -> None:
    eventually(lambda: sorted(stack.query("count by (job) (up == 1)")) == [1, 1, 1, 2])
    eventually(lambda: stack.query("sum(stepdial_ready)") == [2])
    eventually(lambda: stack.query('haproxy_backend_active_servers{proxy="stepdial"}') == [2])
    assert stack.query("prometheus_notifications_alertmanagers_discovered") == [1]
    assert stack.query("prometheus_rule_group_last_evaluation_samples > 0")


@pytest.mark.slow
def test_containers_have_the_rights_that_the_file_gives_them(stack: Stack) -> None:
    replica = stack.replicas()[0]
    assert docker("exec", replica, "id", "-u") == "10001"
    touched = subprocess.run(["docker", "exec", replica, "touch", "/app/x"], capture_output=True, text=True)
    assert "Read-only file system" in touched.stderr
    status = docker("exec", replica, "cat", "/proc/1/status")
    assert re.search(r"^CapBnd:\s+0+$", status, re.MULTILINE) and re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
    assert SECRETS["REDIS_PASSWORD"] not in docker("top", stack.compose("ps", "--quiet", "redis"))
    outside = "import socket; socket.create_connection(('192.0.2.1', 80), 2)"
    assert subprocess.run(["docker", "exec", replica, "python", "-c", outside], capture_output=True).returncode


@pytest.mark.slow
def test_accepted_jobs_outlive_redis_and_are_drawn_by_all_replicas(stack: Stack) -> None:
    with httpx2.Client(base_url=stack.url, timeout=150) as client:
        wishes = [{"label": "3", "steps": 64, "n": 4, "seed": seed} for seed in range(20)]
        orders = [client.post("/jobs", json=wish).json()["id"] for wish in wishes]
        stack.compose("restart", "redis")
        eventually(lambda: all(client.get(f"/jobs/{job}").json().get("state") == "done" for job in orders))
    eventually(lambda: len(stack.query("stepdial_jobs_begun_total > 0")) >= 2)


@pytest.mark.slow
def test_a_replica_that_is_killed_takes_nothing_with_it(stack: Stack) -> None:
    with clients(stack) as asking:
        eventually(lambda: asking.asked > 10)
        docker("kill", stack.replicas()[0])
        asked = asking.asked
        eventually(lambda: asking.asked > asked + 20)
        stack.up()
        eventually(lambda: stack.serving() == 2)
    assert asking.failures == []


@pytest.mark.slow
def test_more_replicas_are_found_by_the_balancer_and_by_prometheus(stack: Stack) -> None:
    with clients(stack) as asking:
        stack.up("--no-recreate", "--scale", "stepdial=3")
        eventually(lambda: stack.serving() == 3)
        eventually(lambda: stack.query('count(up{job="stepdial"} == 1)') == [3])
        stack.up("--no-recreate", "--scale", "stepdial=2")
        eventually(lambda: stack.serving() == 2)
    assert asking.failures == []


@pytest.mark.slow
def test_a_rolling_update_of_the_containers_fails_no_request_and_loses_no_job(stack: Stack) -> None:
    before = stack.replicas()
    with clients(stack) as asking:
        eventually(lambda: asking.asked > 10)
        done = stack.roll()
    assert done.returncode == 0, done.stdout + done.stderr
    assert asking.failures == [] and asking.asked > 20
    assert len(stack.replicas()) == 2 and not set(stack.replicas()) & set(before)


@pytest.mark.slow
def test_keys_are_made_in_the_volume_that_replicas_read(stack: Stack) -> None:
    assert re.fullmatch(r"sd_[\w-]{43}", stack.compose("run", "--rm", "keys", "add", "ann"))
    assert stack.compose("run", "--rm", "keys", "list").startswith("ann\t")
    docker("exec", stack.replicas()[0], "cat", "/keys/keys.json")


@pytest.mark.slow
def test_one_server_alone(tmp_path: Path) -> None:
    needs_docker()
    with Stack(tmp_path, "stepdial-test-alone", ["server"], BACK_SUBNET="172.30.82.0/24") as stack:
        answer = httpx2.post(f"{stack.url}/generate", json={"label": "3", "steps": 4}, timeout=150)
        assert answer.status_code == 200 and answer.json()["steps_used"] == 4
        assert stack.compose("ps", "--services").split() == ["server"]
