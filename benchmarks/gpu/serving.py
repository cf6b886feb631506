"""Steps that run the server: its start, its throughput beside the bare loop's, and the price of exact samples."""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from time import monotonic, perf_counter
from typing import Any

import torch

from benchmarks.gpu.commands import GRACE, ROOT, call
from benchmarks.gpu.loops import bare_loop
from benchmarks.gpu.piece import Ask, StepFailed
from diffusion.family import Precision, open_family

CLIENTS, WAVE = 256, 64
"""Clients that each ask again at once, and the largest wave: enough of the one to fill the other."""
LIMITS = ("--max-evaluations", "1000000", "--cache-bytes", "0")
"""So that nothing is refused and nothing is remembered."""
ROUNDS = 3


class Server:
    """A server in a process of its own, and what it printed until it was ready."""

    def __init__(self, url: str, seconds: float, printed: list[str]):
        self.url, self.seconds, self.printed = url, seconds, printed

    def count(self, what: str) -> int:
        """Return how many of its lines hold some words."""
        return sum(what in line for line in self.printed)


@contextmanager
def served(ask: Ask, source: str, *flags: str) -> Iterator[Server]:
    """Serve a bundled family until the block ends. Raises StepFailed where the server does not come up in time."""
    log = ask.work / "server.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    family = ROOT / "families" / ("digits" if ask.tiny else source)
    began = monotonic()
    with log.open("w") as printed:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "server",
                "--family",
                str(family),
                "--port",
                "0",
                "--device",
                ask.device,
                *LIMITS,
                *flags,
            ],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=printed,
            stderr=subprocess.STDOUT,
        )
    try:
        yield _ready(process, ask, began)
    finally:
        process.terminate()
        process.wait()


def _ready(process: subprocess.Popen, ask: Ask, began: float) -> Server:
    """Wait until the family is ready and the server listens."""
    log = ask.work / "server.log"
    while process.poll() is None and ask.seconds_left > GRACE:
        printed = log.read_text()
        found = re.search(r"running on (http://\S+)", printed)
        if found and " is ready on " in printed:
            return Server(found[1], monotonic() - began, printed.splitlines())
        asyncio.run(asyncio.sleep(0.1))
    raise StepFailed(f"the server did not come up: {log.read_text()[-300:]}")


def start(source: str, precision: Precision) -> Callable[[Ask], dict[str, Any]]:
    """Return a step that starts a server, which draws the golden samples, and tells what it found out."""

    def step(ask: Ask) -> dict[str, Any]:
        with served(ask, source, "--precision", precision, "--max-wave", "4" if ask.tiny else str(WAVE)) as server:
            exact = [line.partition("exact samples, ")[2] for line in server.printed if "exact samples, " in line]
            return {
                "seconds_until_ready": server.seconds,
                "golden_check_passed": bool(server.count("golden check passed")),
                "exact_buckets": exact,
                "shapes_not_recorded": server.count("are not recorded"),
            }

    return step


def saturation(source: str, mix: str, precision: Precision) -> Callable[[Ask], dict[str, Any]]:
    """Return a step that measures the server's images a second beside the bare loop's at the same batch, in turn.

    mix: dial positions and their weights, as `stepdial bench` has them. The bare loop draws them one after another.
    """

    def step(ask: Ask) -> dict[str, Any]:
        wave = 4 if ask.tiny else WAVE
        family = open_family(ROOT / "families" / ("digits" if ask.tiny else source), precision)
        weights = {int(steps): float(weight) for steps, weight in (part.split(":") for part in mix.split(","))}
        loops = {steps: bare_loop(family, steps, wave, ask.device)[1] for steps in weights}
        with served(ask, source, "--precision", precision, "--max-wave", str(wave)) as server:
            pairs = [
                (_offer(ask, server.url, mix, "exact"), _bare(ask, loops, weights, wave))
                for _ in range(1 if ask.tiny else ROUNDS)
            ]
        ratios = [ours / bare for ours, bare in pairs]
        return {
            "images_per_second": [ours for ours, _ in pairs],
            "bare": [bare for _, bare in pairs],
            "ratio": median(ratios),
        }

    return step


def price_of_exact(source: str, mix: str, precision: Precision) -> Callable[[Ask], dict[str, Any]]:
    """Return a step that measures images a second of exact and of fast samples, in turn."""

    def step(ask: Ask) -> dict[str, Any]:
        flags = ["--precision", precision, "--max-wave", "4" if ask.tiny else str(WAVE)]
        with served(ask, source, *flags) as server:
            pairs = [
                (_offer(ask, server.url, mix, "exact"), _offer(ask, server.url, mix, "fast"))
                for _ in range(1 if ask.tiny else ROUNDS)
            ]
        price = median(1 - exact / fast for exact, fast in pairs)
        return {"exact": [exact for exact, _ in pairs], "fast": [fast for _, fast in pairs], "price": price}

    return step


def _offer(ask: Ask, url: str, mix: str, determinism: str) -> float:
    """Images a second that a closed loop of clients gets."""
    out = ask.work / "bench.json"
    load = ["--seconds", "0.5", "--warmup-seconds", "0", "--clients", "2"]
    if not ask.tiny:
        load = ["--seconds", "10", "--warmup-seconds", "3", "--clients", str(CLIENTS)]
    call(
        ask, "stepdial.py", "bench", "--url", url, "--mix", mix, "--determinism", determinism, *load, "--out", str(out)
    )
    return json.loads(out.read_text())["runs"][0]["answered_per_second"]


def _bare(ask: Ask, loops: dict[int, Callable[[], torch.Tensor]], weights: dict[int, float], wave: int) -> float:
    """Images a second of bare loops that draw the positions in these shares: the mean of their times, by weight."""
    times = {}
    for steps, loop in loops.items():
        began, images = perf_counter(), 0
        while perf_counter() - began < (0.2 if ask.tiny else 3.0) / len(loops):
            loop().cpu()
            images += wave
        times[steps] = (perf_counter() - began) / images
    total = sum(weights.values())
    return total / sum(weight * times[steps] for steps, weight in weights.items())
