"""The ways to evaluate a network that are compared, and what each is given."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from diffusion.capture import cuda_graphs
from diffusion.recording import RecordedNetwork, Recorder
from diffusion.steady import steady
from diffusion.uvit import UViT, UViTConfig


@dataclass(frozen=True)
class Way:
    """A way to evaluate a network."""

    name: str
    kind: torch.dtype = torch.float32
    """What weights and activations are."""
    memory: torch.memory_format = torch.channels_last
    """How images lie in memory at first; between, the network itself asks for channels-last."""
    compiled: bool = False
    """By torch.compile for each batch size; on a GPU with max-autotune."""
    plain: bool = False
    """On a CPU: with PyTorch's own layers, not as `diffusion.steady` has them."""
    recorded: bool = False
    """On a CPU: recorded once for each batch size, as a server has it (`diffusion.recording`)."""
    graph: bool = False
    """Repeated as a CUDA graph."""


WAYS = {
    way.name: way
    for way in (
        Way("fp32"),
        Way("fp32-recorded", recorded=True),
        Way("fp32-plain", plain=True),
        Way("fp32-contiguous", memory=torch.contiguous_format),
        Way("fp32-compiled", compiled=True),
        Way("bf16", torch.bfloat16),
        Way("bf16-contiguous", torch.bfloat16, torch.contiguous_format),
        Way("bf16-compiled", torch.bfloat16, compiled=True),
        Way("fp32-graph", graph=True),
        Way("bf16-graph", torch.bfloat16, graph=True),
        Way("bf16-compiled-graph", torch.bfloat16, compiled=True, graph=True),
    )
}
ON_CPU = ("fp32", "fp32-recorded", "fp32-plain", "fp32-contiguous", "fp32-compiled", "bf16")
ON_GPU = tuple(way.name for way in WAYS.values() if not way.plain and not way.recorded)
Inputs = tuple[Tensor, ...]
"""Latents, log SNRs and conditions."""


def inputs(config: UViTConfig, rows: int, device: torch.device | str) -> Inputs:
    """Return random latents, log SNRs and conditions, the same each time."""
    generator = torch.Generator().manual_seed(rows)
    z = torch.randn(rows, config.channels, config.resolution, config.resolution, generator=generator)
    logsnr = torch.linspace(-10.0, 10.0, rows)
    columns = [torch.randint(0, values + 1, (rows,), generator=generator) for values in config.slots]
    if config.segments:
        columns.append(torch.full((rows,), config.segments[-1]))
    condition = torch.stack(columns, dim=1) if columns else torch.zeros(rows, 0, dtype=torch.int64)
    return z.to(device), logsnr.to(device), condition.to(device)


def operations(config: UViTConfig) -> int:
    """Return the operations of one evaluation on one image, a multiplication and an addition being two."""
    with torch.device("meta"):
        network = UViT(config)
    given = inputs(config, 1, "meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*given)
    return counter.get_total_flops()


def random_network(config: UViTConfig, device: torch.device | str) -> UViT:
    """Return a network of an architecture with random weights, the same each time, none of them zero throughout."""
    torch.manual_seed(0)
    with torch.device(device):
        drawn = UViT(config).eval().requires_grad_(False)
    for value in drawn.parameters():  # the layers that begin as zeros would be faster, and hide every error
        torch.nn.init.normal_(value, std=0.02) if not value.any() else None
    return drawn


def network_in(way: Way, network: UViT) -> UViT:
    """Return a copy of a network as a way has it; where it is compiled, it is when it is first called with a batch size."""
    device = next(network.parameters()).device
    made = UViT(network.config).eval().requires_grad_(False)
    made.load_state_dict(network.state_dict())
    made.to(device, way.kind, memory_format=way.memory)  # type: ignore[call-overload]
    if way.compiled:
        made.compile(dynamic=False, mode="max-autotune-no-cudagraphs" if device.type == "cuda" else "default")
    elif device.type == "cpu" and not way.plain:
        steady(made)
    return made


def evaluation(way: Way, network: UViT, given: Inputs) -> Callable[[], Tensor]:
    """Return what evaluates a network of `network_in` on these inputs in a way, and returns v."""
    z, logsnr, condition = given
    z = z.to(way.kind).contiguous(memory_format=way.memory)
    evaluated = RecordedNetwork(network, Recorder()) if way.recorded else network

    @torch.inference_mode()
    def evaluate() -> Tensor:
        return evaluated(z, logsnr, condition)

    return cuda_graphs(z.device)(evaluate) if way.graph else evaluate
