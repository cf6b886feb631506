"""Weigh an image and time its start: `make image-weigh` writes deploy/image/result.json.

weigh.py IMAGE [OTHER ...]   the others are weighed whole, and not started
"""

import gzip
import json
import shlex
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from diffusion import provenance

RESULT = Path(__file__).parent / "result.json"
HARDENED = ("--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges")
STARTS = 3


def docker(*arguments: str) -> str:
    """Return what a docker command prints."""
    return subprocess.run(["docker", *arguments], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def layers(image: str, base: str) -> list[dict[str, str | int]]:
    """Return the layers of an image, its base's as one: what made each, its bytes, and its bytes compressed with gzip."""
    with tempfile.NamedTemporaryFile() as file:
        subprocess.run(["docker", "save", image], stdout=file, check=True)
        with tarfile.open(file.name) as archive:
            manifest = json.loads(member(archive, "manifest.json"))[0]
            history = json.loads(member(archive, manifest["Config"]))["history"]
            made = [step.get("created_by") or "base" for step in history if not step.get("empty_layer")]
            contents = (member(archive, name) for name in manifest["Layers"])
            found: list[dict[str, str | int]] = [
                {"layer": what.removesuffix(" # buildkit"), "bytes": len(tar), "gzip_bytes": len(gzip.compress(tar, 6))}
                for what, tar in zip(made, contents, strict=True)
            ]
    below = len(inspect(base)["RootFS"]["Layers"])
    size, pulled = (sum(int(layer[kind]) for layer in found[:below]) for kind in ("bytes", "gzip_bytes"))
    return [{"layer": base, "bytes": size, "gzip_bytes": pulled}, *found[below:]]


def inspect(image: str) -> dict[str, Any]:
    """Return what Docker says of an image."""
    return json.loads(docker("image", "inspect", image))[0]


def member(archive: tarfile.TarFile, name: str) -> bytes:
    """Return a file of an archive."""
    found = archive.extractfile(name)
    assert found is not None
    return found.read()


def start(image: str) -> dict[str, float | str]:
    """Return what one start took on one core, until the first request would be drawn: seconds, processor seconds, bytes."""
    begun = time.perf_counter()
    container = docker("run", "--detach", "--cpuset-cpus=1", "--publish=127.0.0.1::8000", *HARDENED, image)
    try:
        url = f"http://{docker('port', container, '8000/tcp').splitlines()[0]}"
        while get(f"{url}/readyz") is None:
            if docker("inspect", "--format={{.State.Running}}", container) != "true":
                sys.exit(f"{image} ended before it was ready:\n{docker('logs', '--tail=5', container)}")
            time.sleep(0.1)
        seconds = time.perf_counter() - begun
        used, status = (docker("exec", container, "cat", f"/proc/1/{file}") for file in ("stat", "status"))
        device = json.loads(get(f"{url}/models") or b"")["server"]["device"]
    finally:
        docker("rm", "--force", container)
    ticks = sum(map(int, used.rpartition(")")[2].split()[11:13]))  # in user and kernel mode, hundredths of a second
    peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
    return {"seconds": round(seconds, 1), "cpu_seconds": ticks / 100, "peak_memory_bytes": peak, "device": device}


def get(url: str) -> bytes | None:
    """Return the body of an answer 200, None for any other and for none."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.read()
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return None


def main() -> None:
    """Weigh the images that the arguments name, and start the first."""
    image, *others = sys.argv[1:]
    found = inspect(image)
    labels, base = found["Config"]["Labels"], found["Config"]["Labels"]["org.opencontainers.image.base.name"]
    result = {
        "command": shlex.join(["python", *sys.argv]),
        "at": provenance.now(),
        "commit": labels["org.opencontainers.image.revision"],
        "docker": docker("version", "--format={{.Server.Version}}"),
        "bytes": found["Size"],
        "layers": layers(image, base),
        "others": {other: inspect(other)["Size"] for other in others},
        "starts": [start(image) for _ in range(STARTS)],
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
