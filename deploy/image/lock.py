"""Renew the image's locked requirements: `make lock`.

uv resolves pyproject.toml for CPython 3.11 on Linux, once for everything. What it finds is written, with the SHA-256 of every
file, in three parts, one for each layer of the image:

  torch.txt     PyTorch and Triton as PyPI has them, and the CUDA libraries they need
  serving.txt   what the server needs besides
  training.txt  what training and measuring need besides
"""

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PROJECT = HERE.parents[1] / "pyproject.toml"
SERVING = ("gpu", "tracing")
TRAINING = ("training", "bench")
HEAD = "# Made by `make lock` from pyproject.toml, for CPython 3.11 on Linux. {}\n"
OF_TORCH = re.compile(r"torch|triton|nvidia-.*|cuda-.*")


def resolve(extras: tuple[str, ...], *options: str) -> dict[str, str]:
    """Return name -> locked requirement, hashes included, of the project with these extras."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-config", "--python-version=3.11"]
    command += ["--python-platform=linux", "--generate-hashes", "--no-annotate", "--no-header", *options]
    command += [f"--extra={extra}" for extra in extras]
    done = subprocess.run([*command, str(PROJECT)], stdout=subprocess.PIPE, text=True, check=True)
    return {entry.split("==")[0]: entry for entry in re.findall(r"^\S.*(?:\n .*)*\n", done.stdout, re.MULTILINE)}


def main() -> None:
    """Write the three files; versions are the newest that pyproject.toml allows."""
    everything = resolve(SERVING + TRAINING, "--upgrade")
    together = HERE / "training.txt"
    together.write_text("".join(everything.values()))  # the server gets the versions that training gets
    served = resolve(SERVING, f"--constraint={together}")
    parts: dict[str, list[str]] = {"torch": [], "serving": [], "training": []}
    for name, entry in everything.items():
        parts["torch" if OF_TORCH.fullmatch(name) else "serving" if name in served else "training"].append(entry)
    for part, entries in parts.items():
        (HERE / f"{part}.txt").write_text(HEAD.format("Do not edit.") + "".join(entries))


if __name__ == "__main__":
    main()
