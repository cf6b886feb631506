"""Where a number or a network comes from: command, commit, device, versions."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a load generator asks for command and versions, and should not load torch for them
    import torch

HERE = Path(__file__).parent.parent


def command() -> str:
    """Return the command line that runs now, as one would type it."""
    return shlex.join(["stepdial", *sys.argv[1:]])


@cache
def commit() -> str:
    """Return git's name of the code when it was first asked, "-dirty" appended if it was changed since that commit.

    Outside a checkout it is the environment variable STEPDIAL_COMMIT, which the image sets, else "unknown".  A long run
    asks at its start: that is the code it runs.
    """
    try:
        return _git("rev-parse", "--short=12", "HEAD") + (
            "-dirty" if _git("status", "--porcelain", "--", "*.py") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("STEPDIAL_COMMIT") or "unknown"


def code(*sources: str) -> str:
    """Return a hash of the code that draws images, and of further files or folders below this project's, in hexadecimal.

    What was computed by other code is not gone on with.
    """
    files = [
        file
        for source in ("kernels", "diffusion", *sources)
        for file in ([HERE / source] if source.endswith(".py") else sorted((HERE / source).rglob("*.py")))
    ]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(HERE), *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


def device_name(device: torch.device) -> str:
    """Return the GPU's name, or the processor's and how many threads were used."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {torch.get_num_threads()} threads"


def processor() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Return the versions of Python, of stepdial where it is installed, and of the libraries that change numbers."""
    packages = ("stepdial", "torch", "triton", "numpy", "pillow", "safetensors")
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"python": platform.python_version(), **found}


def now() -> str:
    """Return the time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
