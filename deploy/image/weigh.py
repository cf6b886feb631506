"""Weigh the image and time its start: `make image-weigh` writes deploy/image/result.json."""

import gzip
import json
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from diffusion import provenance

RESULT = Path(__file__).parent / "result.json"
HARDENED = ("--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges")
STARTS = 3


def docker(*arguments: str) -> str:
    """Return what a docker command prints."""
    return subprocess.run(["docker", *arguments], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def layers(image: str) -> list[dict[str, str | int]]:
    """Return the layers of an image, the lowest first: what made each, its bytes, and its bytes compressed with gzip."""
    with tempfile.NamedTemporaryFile() as file:
        subprocess.run(["docker", "save", image], stdout=file, check=True)
        with tarfile.open(file.name) as archive:
            manifest = json.loads(member(archive, "manifest.json"))[0]
            history = json.loads(member(archive, manifest["Config"]))["history"]
            made = [step.get("created_by") or "base" for step in history if not step.get("empty_layer")]
            contents = (member(archive, name) for name in manifest["Layers"])
            return [
                {"layer": what.removesuffix(" # buildkit"), "bytes": len(tar), "gzip_bytes": len(gzip.compress(tar, 6))}
                for what, tar in zip(made, contents, strict=True)
            ]


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
    """Weigh the image that the first argument names."""
    image = sys.argv[1]
    found = json.loads(docker("image", "inspect", image))[0]
    result = {
        "command": "make image-weigh",
        "at": provenance.now(),
        "commit": found["Config"]["Labels"]["org.opencontainers.image.revision"],
        "docker": docker("version", "--format={{.Server.Version}}"),
        "base": found["Config"]["Labels"]["org.opencontainers.image.base.name"],
        "bytes": found["Size"],
        "layers": layers(image),
        "starts": [start(image) for _ in range(STARTS)],
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
