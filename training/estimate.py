"""What a training takes, told before it is started: parameters, arithmetic, memory of a process, hours.

Counted, not measured: parameters and arithmetic on the meta device, what the backward pass keeps on fake tensors.  The hours
divide the arithmetic by a GPU's peak times a fraction that the asker states.
"""

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from diffusion.uvit import TransformerBlock, UViT, UViTConfig
from training.world import blocks

WEIGHT, GRADIENT, MOMENTS, AVERAGE, HALF = 4, 4, 8, 4, 2
"""Bytes of each parameter: float32, AdamW's two moments; a bfloat16 copy of the weights, which the backward pass keeps."""


@dataclass(frozen=True)
class Gpu:
    """A GPU as its maker describes it."""

    name: str
    teraflops: float
    """Dense bfloat16 with float32 sums, 1e12 operations a second."""
    gigabytes: float
    """Memory, 1e9 bytes."""


GPUS = {
    "a100": Gpu("NVIDIA A100 80 GB", 312, 80),
    "h100": Gpu("NVIDIA H100 SXM", 989, 80),
    "h200": Gpu("NVIDIA H200", 989, 141),
    "b200": Gpu("NVIDIA B200", 2250, 180),
    "l4": Gpu("NVIDIA L4", 121, 24),
    "l40s": Gpu("NVIDIA L40S", 362, 48),
    "rtx4090": Gpu("NVIDIA GeForce RTX 4090", 165, 24),
}


@dataclass(frozen=True)
class Work:
    """A training of one network, as far as its cost goes."""

    network: UViTConfig
    batch: int
    """Images of an iteration, over all processes."""
    iterations: int
    targets: int = 0
    """Evaluations of the network for each image that no gradient goes through."""
    teacher: int = 0
    """Evaluations of a teacher of the same kind for each image."""
    processes: int = 1
    turns: int = 1
    """In how many turns a process takes its part of the batch."""
    shard: bool = False
    checkpointing: bool = False

    @property
    def evaluations(self) -> int:
        """What training on an image costs, in forward passes; a backward pass is two, and one more where it computes again."""
        return 3 + self.targets + self.teacher + self.checkpointing

    @property
    def micro_batch(self) -> int:
        """Images that a process computes at a time."""
        return self.batch // (self.processes * self.turns)


@dataclass(frozen=True)
class Estimate:
    """What it takes."""

    parameters: int
    forward: int
    """Operations of one evaluation on one image; a multiplication and an addition are two."""
    image: int
    """Operations of training on one image."""
    total: int
    """Operations of the training."""
    memory: dict[str, int]
    """Bytes in each process, by what they are for."""

    def room(self, gpu: Gpu, micro_batch: int) -> int:
        """Return how many images at a time fit into nine tenths of a GPU's memory, from what `micro_batch` of them take."""
        each = self.memory["activations"] / micro_batch
        return max(0, int((0.9e9 * gpu.gigabytes - sum(self.memory.values())) / each + micro_batch))

    def hours(self, gpu: Gpu, processes: int, utilisation: float) -> float:
        """Return how long that many such GPUs take at this fraction of their peak."""
        return self.total / (gpu.teraflops * 1e12 * utilisation * processes) / 3600


def estimate(work: Work) -> Estimate:
    """Count what a training takes."""
    with torch.device("meta"):
        network = UViT(work.network)
    parameters = sum(value.numel() for value in network.parameters())
    forward = operations(network)
    image = forward * work.evaluations
    return Estimate(
        parameters=parameters,
        forward=forward,
        image=image,
        total=image * work.batch * work.iterations,
        memory=_memory(work, network, parameters),
    )


def operations(network: UViT) -> int:
    """Return the operations of one evaluation on one image, a multiplication and an addition being two."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*_inputs(network.config, 1, "meta"))
    return counter.get_total_flops()


def _memory(work: Work, network: UViT, parameters: int) -> dict[str, int]:
    """Return the bytes in each process while the backward pass begins, when they are the most."""
    here = parameters // (work.processes if work.shard else 1)
    fixed, each = kept(work.network, checkpointing=work.checkpointing)
    memory = {
        "weights": WEIGHT * here,
        "gradients": GRADIENT * here,
        "moments": MOMENTS * here,
        "average": AVERAGE * here,
        "weights in bfloat16": fixed,
        "activations": each * work.micro_batch,
    }
    if work.teacher:
        memory["teacher"] = WEIGHT * parameters
    if work.shard:  # the block in use and the one fetched ahead, and all that is in no block
        sizes = [sum(value.numel() for value in block.parameters()) for block in blocks(network)]
        memory["whole while in use"] = (WEIGHT + GRADIENT) * (2 * max(sizes) + parameters - sum(sizes))
    return memory


def kept(config: UViTConfig, *, checkpointing: bool = False) -> tuple[int, int]:
    """Return the bytes that a forward pass in bfloat16 keeps for the backward pass: whatever the batch, and of each image."""
    one, two = (_kept(config, batch, checkpointing) for batch in (1, 2))
    return 2 * one - two, two - one


def _kept(config: UViTConfig, batch: int, checkpointing: bool) -> int:
    with torch.device("meta"):
        network = UViT(config)
    with FakeTensorMode():
        for module in network.modules():
            if isinstance(module, TransformerBlock):
                module.fused_on = ("cpu",)  # keeps what a GPU's kernel does
            for name, value in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(torch.empty(value.shape)))
        own = {value.untyped_storage()._cdata for value in network.parameters()}
        inside = {block: _Kept() for block in blocks(network)} if checkpointing else {}
        outside = _Kept()
        for block, within in inside.items():
            _watch(block, within, outside)
        with outside, torch.autocast("cpu", torch.bfloat16):
            network(*_inputs(config, batch, "cpu"))
        largest = max((within.size(own) for within in inside.values()), default=0)
        return outside.size(own) + largest


class _Kept(torch.autograd.graph.saved_tensors_hooks):
    """What is saved for the backward pass while this is entered."""

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []
        super().__init__(self.keep, lambda tensor: tensor)

    def keep(self, tensor: Tensor) -> Tensor:
        """Note a tensor."""
        self._tensors.append(tensor)
        return tensor

    def size(self, but: set[int]) -> int:
        """Return the bytes of all storages noted, each once, but for some."""
        storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in self._tensors}
        return sum(storage.nbytes() for key, storage in storages.items() if key not in but)


def _watch(block: nn.Module, within: _Kept, outside: _Kept) -> None:
    """Have what a block saves noted apart, and of the block only what goes into it noted outside."""
    forward = block.forward

    def watched(*inputs: Tensor) -> Tensor:
        for value in inputs:
            outside.keep(value)
        with within:
            return forward(*inputs)

    block.forward = watched


def _inputs(config: UViTConfig, batch: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return a latent, log SNR and condition to evaluate a network on."""
    columns = len(config.slots) + bool(config.segments)
    return (
        torch.zeros(batch, config.channels, config.resolution, config.resolution, device=device),
        torch.zeros(batch, device=device),
        torch.zeros(batch, columns, dtype=torch.int64, device=device),
    )


def describe(settings: dict[str, Any], work: Work, gpu: Gpu, utilisation: float, runs: int = 1) -> str:
    """Return settings and estimate as lines of text; runs: how many networks are trained so, one after another."""
    found = estimate(work)
    memory = sum(found.memory.values())
    split = ", ".join(f"{name} {size / 1e9:.3g}" for name, size in found.memory.items())
    turns = f" in {work.turns} turns of {work.micro_batch}" if work.turns > 1 else ""
    room = found.room(gpu, work.micro_batch)
    fits = f"--micro-batch {room} is about the most" if room else "it does not fit, whatever the --micro-batch"
    evaluations = f"{work.evaluations} times a forward pass of {found.forward / 1e9:,.3g} GFLOP"
    hours = found.hours(gpu, work.processes, utilisation)
    each = f" each, {runs * hours:,.3g} for all {runs}" if runs > 1 else ""
    return "\n".join(
        [
            *(f"{name} = {json.dumps(value)}" for name, value in settings.items()),
            "",
            f"parameters   {found.parameters:,}",
            f"batch        {work.batch:,} images, {work.batch // work.processes:,} in each of {work.processes} process(es){turns}",
            f"arithmetic   {found.image / 1e9:,.3g} GFLOP an image: {evaluations}; {found.total / 1e18:,.3g} EFLOP in all",
            f"memory       about {memory / 1e9:,.3g} GB in each process (GB: {split})",
            f"             of {gpu.gigabytes:g} GB, without the allocator's gaps, communication and CUDA's own; {fits}",
            f"hours        {hours:,.3g}{each}, on {work.processes} x {gpu.name} at {utilisation:.0%} of {gpu.teraflops:g} TFLOP/s",
            "             an estimate: nothing of it was measured on a GPU",
        ]
    )
