"""Steps that are commands of this project, run in processes of their own."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.gpu.piece import Ask, StepFailed, Unfinished

ROOT = Path(__file__).parents[2]
GRACE = 20.0
"""Seconds before the end at which a command is told to stop, and that a training then has for its checkpoint."""
LAST = 6
"""Lines of a failed command's output that are kept."""


def call(ask: Ask, *arguments: str, goes_on: bool = False) -> str:
    """Run `python ARGUMENTS` and return what it printed.

    goes_on: whether the command goes on where it was when it is interrupted and started again.
    Raises StepFailed when it ends with an error or too late, Unfinished when it was interrupted and goes on.
    """
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        printed, _ = process.communicate(timeout=max(1.0, ask.seconds_left - GRACE))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM if goes_on else signal.SIGKILL)
        printed, _ = process.communicate()
        if goes_on:
            raise Unfinished(_last(printed, 1)) from None
        raise StepFailed("it took too long") from None
    if process.returncode:
        raise StepFailed(f"status {process.returncode}: {_last(printed, LAST)}")
    return printed


def _last(printed: str, count: int) -> str:
    """The last lines, on one; of a progress bar what it showed last."""
    lines = [line.rpartition("\r")[2].strip() for line in printed.rstrip().splitlines()]
    return " / ".join(line for line in lines[-count:] if line)[-300:]


def tests(*arguments: str) -> Callable[[Ask], dict[str, Any]]:
    """Return a step that runs tests and counts them; any that fails, or none that ran, is a failure of the step."""

    def step(ask: Ask) -> dict[str, Any]:
        chosen = ["--collect-only"] if ask.tiny else []
        printed = call(ask, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen, *arguments)
        found = {word: int(count) for count, word in re.findall(r"(\d+) (passed|skipped|xfailed)", printed)}
        if ask.tiny:
            return {"collected": sum("::" in line for line in printed.splitlines())}
        if not found.get("passed"):
            raise StepFailed(f"no test ran: {found}")
        return found

    return step


def measured_by(*arguments: str, module: str) -> Callable[[Ask], dict[str, Any]]:
    """Return a step that runs `python -m MODULE ARGUMENTS --device D --out FILE` and has the file's results."""

    def step(ask: Ask) -> dict[str, Any]:
        if find_spec(module) is None:
            raise StepFailed(f"{module} is not there")
        out = ask.work / "out.json"
        out.parent.mkdir(parents=True, exist_ok=True)
        out.unlink(missing_ok=True)
        call(ask, "-m", module, *arguments, "--device", ask.device, "--out", str(out))
        return {"results": json.loads(out.read_text())["results"]}

    return step


def copied_family(ask: Ask, source: str) -> Path:
    """Return a copy of a bundled family to write into, made once."""
    folder = ask.work / "families" / source
    if not folder.exists():
        shutil.copytree(ROOT / "families" / source, folder)
    return folder


def frontier(source: str, position: int) -> Callable[[Ask], dict[str, Any]]:
    """Return a step that measures one dial position of a bundled family, in a copy."""

    def step(ask: Ask) -> dict[str, Any]:
        folder = copied_family(ask, "digits" if ask.tiny else source)
        sizes = ["--samples", "80", "--seeds", "1"] if ask.tiny else ["--samples", "2000", "--seeds", "3"]
        what = ["--positions", str(position), "--sources", "student,whole,teacher", *sizes]
        where = ["--family", str(folder), "--device", ask.device, "--runs", str(ask.work / "evaluate")]
        call(ask, "stepdial.py", "evaluate", *where, *what)
        measured = json.loads((folder / "frontier.json").read_text())["positions"]
        kept = ("steps", "source", "frechet", "agreement", "latency_ms", "images_per_second", "batch")
        return {"positions": [{k: p[k] for k in kept} for p in measured if p["steps"] == position]}

    return step


def training_speed(preset: str, batch: int, *flags: str) -> Callable[[Ask], dict[str, Any]]:
    """Return a step that trains a preset's network for a while and tells images a second after the first iterations."""

    def step(ask: Ask) -> dict[str, Any]:
        data, name, size, iterations = ("digits", "debug", 8, 100) if ask.tiny else ("scenes", preset, batch, 200)
        runs = ask.work / "speed"
        shutil.rmtree(runs, ignore_errors=True)
        what = ["--data", data, "--preset", name, "--iterations", str(iterations), "--batch", str(size)]
        where = ["--family", str(runs / "family"), "--runs", str(runs), "--device", ask.device, "--tracker", "none"]
        call(ask, "stepdial.py", "train", *what, *where, "--probes", "0", "--no-flip", *flags)
        (log,) = runs.glob("**/log.jsonl")
        first, *_, last = map(json.loads, log.read_text().splitlines())
        speed = (last["images"] - first["images"]) / (last["seconds"] - first["seconds"])
        shutil.rmtree(runs)
        return {"images_per_second": speed, "waiting": last["waiting"], "batch": size, "iterations": iterations}

    return step


def stepdial(*arguments: str, tiny: Sequence[str]) -> Callable[[Ask], dict[str, Any]]:
    """Return a step that runs a `stepdial` command to its end, over as many starts of the piece as it takes.

    {work} in an argument is the folder of what it goes on with.  tiny: arguments instead, to try the piece.
    """

    def step(ask: Ask) -> dict[str, Any]:
        chosen = [part.replace("{work}", str(ask.work)) for part in (tiny if ask.tiny else arguments)]
        printed = call(ask, "stepdial.py", *chosen, "--device", ask.device, goes_on=True)
        return {"said": _last(printed, 2)}

    return step
