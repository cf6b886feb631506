"""Measuring how long evaluations and training steps take."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from resource import RUSAGE_SELF, getrusage
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.clock import alternate, matrix_peak
from benchmarks.networks.ways import WAYS, Inputs, Way, evaluation, inputs, network_in, operations
from diffusion.uvit import UViT

FAULT_RUNS = 5
SIZES = {"cpu": 1024, "cuda": 8192}
"""Height and width of the matrices whose product is a device's peak."""


def peaks(device: torch.device, size: int | None = None) -> dict[str, float]:
    """Return the operations a second of the device's matrix products, by what they are of.

    Where bf16 is emulated, fp32's is the peak of both.
    """
    size = size or SIZES[device.type]
    full, half = (matrix_peak(device, kind, size=size) for kind in (torch.float32, torch.bfloat16))
    return {"fp32": full, "bf16": max(full, half)}


def evaluations(
    network: UViT,
    ways: Sequence[str],
    rows: Sequence[int],
    device: torch.device,
    *,
    rounds: int,
    peak: dict[str, float],
) -> Iterator[dict[str, Any]]:
    """Time evaluations of a network in several ways, at each of some batch sizes; yields a result of each.

    A way that cannot be on this device yields why.  Utilisation is of the matrix peak; equal_bits tells whether rows have the
    bits that they have in the largest batch, page_faults is how many an evaluation takes.
    """
    made = {name: network_in(WAYS[name], network) for name in ways}
    given, whole = inputs(network.config, max(rows), device), {}
    for name in ways:
        try:
            whole[name] = _run(evaluation(WAYS[name], made[name], given), device)
        except RuntimeError as error:
            yield {"way": name, "failed": str(error).partition("\n")[0]}
    expected, flops = evaluation(WAYS["fp32"], network, given)().float(), operations(network.config)
    for count in rows:
        part = tuple(value[:count] for value in given)
        runs = {name: _begun(WAYS[name], made[name], part, device) for name in whole}
        taken = alternate([run for run, _, _ in runs.values()], device, rounds=rounds)
        for (name, (run, v, first)), (wall, processor) in zip(runs.items(), taken, strict=True):
            ceiling = peak["bf16" if WAYS[name].kind == torch.bfloat16 else "fp32"]
            yield {
                "way": name,
                "rows": count,
                "seconds": wall.model_dump(),
                "processor_seconds": processor.model_dump(),
                "images_per_second": count / wall.median,
                "utilisation": flops * count / wall.median / ceiling,
                "first_seconds": first,
                "relative_error": ((v.float() - expected[:count]).norm() / expected[:count].norm()).item(),
                "equal_bits": torch.equal(v, whole[name][:count]),
                "page_faults": _page_faults(run),
            }


def _begun(way: Way, network: UViT, given: Inputs, device: torch.device) -> tuple[Callable[[], Tensor], Tensor, float]:
    """What evaluates, its first result, and how long that took, compiling and recording included."""
    began = perf_counter()
    run = evaluation(way, network, given)
    return run, _run(run, device), perf_counter() - began


def _page_faults(run: Callable[[], Tensor]) -> float:
    """Pages that the system hands out, cleared, to an evaluation: what is freed and asked for again costs them."""
    before = getrusage(RUSAGE_SELF).ru_minflt
    for _ in range(FAULT_RUNS):
        run()
    return (getrusage(RUSAGE_SELF).ru_minflt - before) / FAULT_RUNS


def training(
    network: UViT, ways: Sequence[str], rows: int, device: torch.device, *, rounds: int, peak: dict[str, float]
) -> Iterator[dict[str, Any]]:
    """Time forward, backward and AdamW's step of the network alone on a batch, under bfloat16 autocast; three forwards' work."""
    flops = 3 * operations(network.config) * rows
    for name in ways:
        trained = network_in(WAYS[name], network).train().requires_grad_(True)
        step = _training_step(trained, rows, device)
        began = perf_counter()
        _run(step, device)
        first = perf_counter() - began
        ((wall, _),) = alternate([step], device, rounds=rounds)
        yield {
            "training": name,
            "rows": rows,
            "seconds": wall.model_dump(),
            "images_per_second": rows / wall.median,
            "utilisation": flops / wall.median / peak["bf16"],
            "first_seconds": first,
        }


def _training_step(network: UViT, rows: int, device: torch.device) -> Callable[[], Tensor]:
    z, logsnr, condition = inputs(network.config, rows, device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=device.type == "cuda")

    def step() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            loss = F.mse_loss(network(z, logsnr, condition).float(), z)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def _run(run: Callable[[], Tensor], device: torch.device) -> Tensor:
    value = run().clone()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return value


def compile_starts(arguments: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Time a process that compiles the network for every batch size, with an empty cache and then with what that left in it.

    arguments: of `python -m benchmarks.networks`, of one compiled way.
    """
    with tempfile.TemporaryDirectory() as folder:
        places = {"TORCHINDUCTOR_CACHE_DIR": folder, "TRITON_CACHE_DIR": f"{folder}/triton"}
        for cache in ("empty", "filled"):
            began = perf_counter()
            subprocess.run(
                [sys.executable, "-m", "benchmarks.networks", *arguments, "--rounds", "1", "--no-result"],
                env=os.environ | places,
                check=True,
                stdout=subprocess.DEVNULL,
            )
            yield {"compile_cache": cache, "process_seconds": perf_counter() - began}
