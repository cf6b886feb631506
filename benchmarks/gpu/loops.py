"""Steps that draw with networks alone: the ceilings of a device, and a plan's whole loop, repeated as one graph."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.clock import alternate, copy_bandwidth, matrix_peak
from benchmarks.gpu.commands import ROOT
from benchmarks.gpu.piece import Ask
from diffusion.capture import cuda_graphs
from diffusion.family import Family, Precision, open_family
from diffusion.loop import Loop
from diffusion.sampler import sample

KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def copies(ask: Ask) -> dict[str, Any]:
    """Measure bytes a second, read and written, of copies from 1 MiB to 4 GiB."""
    powers = (20, 22) if ask.tiny else (20, 24, 26, 28, 30, 32)
    return {
        f"bytes_per_second_of_2^{power}": copy_bandwidth(torch.device(ask.device), size=2**power) for power in powers
    }


def products(ask: Ask) -> dict[str, Any]:
    """Measure operations a second of products of square matrices, of random numbers."""
    sizes = (64, 128) if ask.tiny else (2048, 4096, 8192)
    return {
        f"{name}_flops_of_{size}": matrix_peak(torch.device(ask.device), kind, size=size)
        for name, kind in KINDS.items()
        for size in sizes
    }


def bare_loop(family: Family, steps: int, batch: int, device: str) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Return what draws a batch by a position's plan: as the sampler does, and as one loop, on a GPU one graph."""
    plan, manifest = family.positions[steps], family.manifest
    networks: Any = {name: family.network(name, device) for name in plan.members}
    kind = torch.bfloat16 if family.precision == "bf16" else torch.float32
    called: Any = {name: partial(_in_kind, network, kind) for name, network in networks.items()}
    condition = torch.tensor([[1 + row % size for size in manifest.conditioning.sizes] for row in range(batch)])
    who: dict[str, Any] = {"seeds": list(range(batch)), "indices": [0] * batch}
    asked: dict[str, Any] = {"guidance": family.guidance(plan), "told": family.told(plan.members[0])}
    asked |= {"variance": family.variance, "decode": family.decoder(device)}
    loop = Loop(
        called,
        plan,
        manifest.schedule,
        batch=batch,
        columns=condition.shape[1],
        shape=manifest.shape,
        device=device,
        capture=cuda_graphs(device) if device.startswith("cuda") else None,
        **asked,
    )

    def by_sampler() -> Tensor:
        return sample(called, plan, manifest.schedule, condition, shape=manifest.shape, device=device, **asked, **who)

    return by_sampler, lambda: loop.draw(condition, **who)


def _in_kind(network: Callable[..., Tensor], kind: torch.dtype, z: Tensor, logsnr: Tensor, condition: Tensor) -> Tensor:
    return network(z.to(kind), logsnr, condition)


def whole_loop(source: str, steps: int, batch: int, precision: Precision) -> Callable[[Ask], dict[str, Any]]:
    """Return a step that draws a batch by the sampler and by one graph, in turn, and compares their bytes."""

    def step(ask: Ask) -> dict[str, Any]:
        rows = 2 if ask.tiny else batch
        family = open_family(ROOT / "families" / ("digits" if ask.tiny else source), precision)
        runs = bare_loop(family, steps, rows, ask.device)
        one, other = (run() for run in runs)
        taken = alternate(runs, torch.device(ask.device), rounds=2 if ask.tiny else 20)
        sampler, graph = (wall for wall, _ in taken)
        return {
            "sampler_seconds": sampler.model_dump(),
            "loop_seconds": graph.model_dump(),
            "images_per_second": rows / graph.median,
            "equal_bytes": torch.equal(one, other),
        }

    return step
