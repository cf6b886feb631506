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

from diffusion.autoencoder import AutoencoderConfig
from diffusion.backbone import Backbone, BackboneConfig, library_class
from diffusion.manifest import MemberNetwork, NetworkConfig
from diffusion.uvit import TransformerBlock, UViT, UViTConfig
from training.world import blocks

WEIGHT, GRADIENT, MOMENTS, AVERAGE, HALF = 4, 4, 8, 4, 2
"""Bytes of each parameter: float32, AdamW's two moments; a bfloat16 copy of the weights, which the backward pass keeps."""


SIZES = 6
"""Numbers that SDXL is told of sizes and crops."""


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

    network: NetworkConfig
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
    autoencoder: AutoencoderConfig | None = None
    """What encodes every image first, of networks that see latents."""

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
    encoding: int = 0
    """Operations of encoding one image into a latent, part of `image`."""

    def room(self, gpu: Gpu, micro_batch: int) -> int:
        """Return how many images at a time fit into nine tenths of a GPU's memory, from what `micro_batch` of them take."""
        each = self.memory["activations"] / micro_batch
        return max(0, int((0.9e9 * gpu.gigabytes - sum(self.memory.values())) / each + micro_batch))

    def hours(self, gpu: Gpu, processes: int, utilisation: float) -> float:
        """Return how long that many such GPUs take at this fraction of their peak."""
        return self.total / (gpu.teraflops * 1e12 * utilisation * processes) / 3600


def estimate(work: Work) -> Estimate:
    """Count what a training takes."""
    network = built(work.network)
    parameters = sum(value.numel() for value in network.parameters())
    forward, (encoding, encoder) = operations(network), _encoding(work)
    image = forward * work.evaluations + encoding
    memory = _memory(work, network, parameters) | ({"autoencoder": WEIGHT * encoder} if encoder else {})
    return Estimate(
        parameters=parameters,
        forward=forward,
        encoding=encoding,
        image=image,
        total=image * work.batch * work.iterations,
        memory=memory,
    )


def built(config: NetworkConfig) -> MemberNetwork:
    """Return a network on the meta device; one that reads prompts is given encodings of the right shape."""
    with torch.device("meta"):
        if isinstance(config, UViTConfig):
            return UViT(config)
        network = Backbone(config)
    network.text = _Encodings(config)  # type: ignore[assignment]
    return network


def operations(network: MemberNetwork) -> int:
    """Return the operations of one evaluation on one image, a multiplication and an addition being two."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*_inputs(network.config, 1, "meta"))
    return counter.get_total_flops()


def _encoding(work: Work) -> tuple[int, int]:
    """Return the operations of encoding one image into a latent, and the autoencoder's parameters."""
    config = work.autoencoder
    if config is None:
        return 0, 0
    with torch.device("meta"):
        network = library_class("AutoencoderKL").from_config(dict(config.settings))
    side, channels = work.network.resolution * config.factor, config.channels[1]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.encode(torch.zeros(1, channels, side, side, device="meta"))
    return counter.get_total_flops(), sum(value.numel() for value in network.parameters())


class _Encodings:
    """In place of text encoders: encodings of prompts as a network expects them, all zeros."""

    def __init__(self, config: BackboneConfig):
        self._config = config

    def embed(self, condition: Tensor, device: torch.device) -> dict[str, Any]:
        """Return what `TextEncoder.embed` returns."""
        settings, count = self._config.settings, len(condition)
        length, width = self._config.tokens[0][0], int(str(settings["cross_attention_dim"]))
        asked: dict[str, Any] = {"encoder_hidden_states": torch.zeros(count, length, width, device=device)}
        if settings.get("addition_embed_type"):
            whole = int(str(settings["projection_class_embeddings_input_dim"]))
            pooled = whole - SIZES * int(str(settings["addition_time_embed_dim"]))
            shapes = {"text_embeds": pooled, "time_ids": SIZES}
            asked["added_cond_kwargs"] = {name: torch.zeros(count, n, device=device) for name, n in shapes.items()}
        return asked


def _memory(work: Work, network: MemberNetwork, parameters: int) -> dict[str, int]:
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
        inside = {id(value): value.numel() for block in blocks(network) for value in block.parameters()}
        memory["whole while in use"] = (WEIGHT + GRADIENT) * (2 * max(sizes) + parameters - sum(inside.values()))
    return memory


def kept(config: NetworkConfig, *, checkpointing: bool = False) -> tuple[int, int]:
    """Return the bytes that a forward pass in bfloat16 keeps for the backward pass: whatever the batch, and of each image."""
    one, two = (_kept(config, batch, checkpointing) for batch in (1, 2))
    return 2 * one - two, two - one


def _kept(config: NetworkConfig, batch: int, checkpointing: bool) -> int:
    network = built(config)
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in network.modules():
            if isinstance(module, TransformerBlock):
                module.fused_on = ("cpu",)  # keeps what a GPU's kernel does
            for name, value in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(torch.empty(value.shape)))
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))
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

    def watched(*inputs: Any, **named: Any) -> Any:
        for value in (*inputs, *named.values()):
            if isinstance(value, Tensor):
                outside.keep(value)
        with within:
            return forward(*inputs, **named)

    block.forward = watched


def _inputs(config: NetworkConfig, batch: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return a latent, log SNR and condition to evaluate a network on."""
    columns = len(config.slots) + (config.guidance is not None) + bool(config.segments)
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
    evaluations += f" and {found.encoding / 1e9:,.3g} to encode it" if found.encoding else ""
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
