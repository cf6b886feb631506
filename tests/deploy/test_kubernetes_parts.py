"""What the Kubernetes manifests run besides the server, run for real: the script that fetches families, Redis, key files."""

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import redis

from diffusion.family import open_family
from server.keys import Keyring, add_key, remove_key
from tests.deploy.manifests import KUBERNETES, find, pod, with_component
from tests.server.processes import wait_until
from tests.server.redis_server import find_redis, free_port
from tests.server.tiny import write_tiny_family

FETCH = KUBERNETES / "components" / "families-fetch" / "fetch.py"


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[str]:
    """The address of a web server that gives the files of tmp_path/shelf."""
    (tmp_path / "shelf").mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "shelf"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{web.server_port}"
        web.shutdown()


def pack(archive: Path, folder: Path, name: str) -> str:
    """Put a folder into an archive under a name; return the archive's SHA-256."""
    with tarfile.open(archive, "w:gz") as opened:
        opened.add(folder, arcname=name)
    return hashlib.sha256(archive.read_bytes()).hexdigest()


def fetch(url: str, sha256: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the script as the init container does."""
    (init,) = pod(find(with_component("families-fetch"), "Deployment"))["initContainers"]
    assert init["command"] == ["python", "/fetch/fetch.py", "/families"]
    folder.mkdir()
    return subprocess.run(
        [sys.executable, str(FETCH), str(folder)],
        env={"ARCHIVE_URL": url, "ARCHIVE_SHA256": sha256},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_family_is_fetched_and_can_be_opened(shelf: str, tmp_path: Path) -> None:
    write_tiny_family(tmp_path / "tiny")
    sha256 = pack(tmp_path / "shelf" / "families.tar.gz", tmp_path / "tiny", "tiny")
    done = fetch(f"{shelf}/families.tar.gz", sha256.upper(), tmp_path / "families")
    assert (done.returncode, done.stdout) == (0, "fetched 1 families; SHA-256 is right\n"), done.stderr
    assert open_family(tmp_path / "families" / "tiny").manifest.members
    assert [path.name for path in (tmp_path / "families").iterdir()] == ["tiny"]


def test_an_archive_that_is_not_the_one_meant_is_not_unpacked(shelf: str, tmp_path: Path) -> None:
    write_tiny_family(tmp_path / "tiny")
    pack(tmp_path / "shelf" / "families.tar.gz", tmp_path / "tiny", "tiny")
    done = fetch(f"{shelf}/families.tar.gz", "0" * 64, tmp_path / "families")
    assert done.returncode == 1 and "SHA-256" in done.stderr and "Traceback" not in done.stderr
    assert list((tmp_path / "families").iterdir()) == []


@pytest.mark.parametrize("name", ["../outside", "nothing-in-it", "missing", "truncated"])
def test_an_archive_that_makes_no_sense_is_refused_in_one_sentence(name: str, shelf: str, tmp_path: Path) -> None:
    write_tiny_family(tmp_path / "tiny")
    archive = tmp_path / "shelf" / "families.tar.gz"
    if name == "nothing-in-it":
        (tmp_path / "tiny" / "family.json").unlink()
    if name != "missing":
        pack(archive, tmp_path / "tiny", name)
    if name == "truncated":
        archive.write_bytes(archive.read_bytes()[:-1000])
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest() if archive.exists() else "0" * 64
    done = fetch(f"{shelf}/families.tar.gz", sha256, tmp_path / "families")
    assert done.returncode == 1
    assert done.stderr.startswith("families were not fetched: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "outside").exists()


def test_redis_starts_by_the_manifests_command_asks_for_the_password_and_keeps_what_it_has(tmp_path: Path) -> None:
    executable, password, port = find_redis(), "0123456789abcdef", free_port()
    (container,) = pod(find(with_component("redis"), "StatefulSet", "stepdial-redis"))["containers"]
    folder = KUBERNETES / "components" / "redis"
    written = (folder / "redis.conf").read_text().replace("dir /data", f"dir {tmp_path}\nport {port}\nbind 127.0.0.1")
    (tmp_path / "redis.conf").write_text(written)
    shell, flag, script = container["command"]
    script = script.replace("/etc/redis/", f"{tmp_path}/").replace("redis-server", executable)
    environment = os.environ | {"REDISCLI_AUTH": password}
    for beginning in (True, False):
        process = subprocess.Popen([shell, flag, script], env=environment, stdout=subprocess.DEVNULL)
        try:
            wait_until(partial(answers, port))
            with pytest.raises(redis.AuthenticationError):
                redis.Redis(port=port, protocol=2).get("kept")
            client = redis.Redis(port=port, password=password, protocol=2)
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "volatile-lru"}
            if beginning:
                client.set("kept", "yes")
            assert client.get("kept") == b"yes"
            assert password not in Path(f"/proc/{process.pid}/cmdline").read_text()
            ping(container["readinessProbe"]["exec"]["command"], port, environment)
        finally:
            process.terminate()  # the shell has become the server, which hears it
            assert process.wait(30) == 0


def answers(port: int) -> bool:
    """Whether somebody listens on a port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def ping(command: list[str], port: int, environment: dict[str, str]) -> None:
    """Run the manifest's probe, and see that it fails where it should: with a wrong password."""
    if shutil.which(command[0]) is None:
        return  # PyPI's Redis comes without its client
    probe = [command[0], "-p", str(port), *command[1:]]
    assert subprocess.run(probe, env=environment, capture_output=True, timeout=10).returncode == 0
    wrong = environment | {"REDISCLI_AUTH": "wrong"}
    assert subprocess.run(probe, env=wrong, capture_output=True, timeout=10).returncode != 0


def test_a_secret_that_changes_changes_the_keys_without_a_restart(tmp_path: Path) -> None:
    """The kubelet writes a new folder and swaps a link to it; the file's own path leads through that link."""
    ann = add_key(tmp_path / "keys.json", "ann")
    publish(tmp_path / "keys.json", tmp_path / "mounted", 1)
    keyring = Keyring(tmp_path / "mounted" / "keys.json")
    assert keyring.find(ann)
    bob = add_key(tmp_path / "keys.json", "bob")
    remove_key(tmp_path / "keys.json", "ann")
    publish(tmp_path / "keys.json", tmp_path / "mounted", 2)
    assert keyring.find(bob) and not keyring.find(ann)


def publish(keys: Path, mounted: Path, number: int) -> None:
    """Update a mounted secret as the kubelet does."""
    version = mounted / f"..{number}"
    version.mkdir(parents=True)
    shutil.copy(keys, version / "keys.json")
    (mounted / "..data_tmp").symlink_to(version.name)
    os.replace(mounted / "..data_tmp", mounted / "..data")
    if not (mounted / "keys.json").is_symlink():
        (mounted / "keys.json").symlink_to("..data/keys.json")
