"""Comparisons of what a network does between matrix products: norm, FiLM, SiLU, the norm of heads; forward, and backward too."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernels.comparison import OURS, Comparison, shape_name, size_of
from diffusion.fusion import image, tokens
from kernels import modulate, norm, norm_heads

EPS, GROUPS = 1e-6, 32
DTYPE = {"cpu": torch.float32, "cuda": torch.bfloat16}
SHAPES: dict[str, dict[str, tuple[tuple[int, int, int], ...]]] = {
    # (B, N, C): of the bundled family's network at 16 images, and for groups of a small one
    "cpu": {
        "groups": ((4, 1024, 128),),
        "rows": ((16, 256, 64),),
        "tokens": ((16, 64, 192),),
        "hidden": ((16, 64, 768),),
        "heads": ((16, 64, 576),),
    },
    # of imagenet64-small at 1 and 64 images, and for images normed by rows of small64
    "cuda": {
        "groups": ((1, 4096, 256), (64, 4096, 256)),
        "rows": ((1, 1024, 64), (64, 1024, 64)),
        "tokens": ((1, 256, 1024), (64, 256, 1024)),
        "hidden": ((1, 256, 4096), (64, 256, 4096)),
        "heads": ((1, 256, 3072), (64, 256, 3072)),
    },
}
Made = Tensor | tuple[Tensor, ...]
HEAD_DIM = {"cpu": 64, "cuda": 128}


class Stretch(NamedTuple):
    """One stretch of a network: as one operation, and by PyTorch's layers."""

    job: str
    ours: Callable[..., Made]
    layers: Callable[..., Made]
    inputs: tuple[Tensor, ...]
    """Activations first, then what there is less of."""
    activations: int = 1
    """How many of the inputs are."""


def stretches(device: torch.device) -> Iterator[Stretch]:
    """Yield every stretch at every shape."""
    shapes, dtype = SHAPES[device.type], DTYPE[device.type]

    def normal(*size: int) -> Tensor:
        return torch.randn(size, device=device).to(dtype)

    for kind in ("groups", "rows"):
        groups = GROUPS if kind == "groups" else None
        for shape in shapes[kind]:
            weights = normal(shape[2]), normal(shape[2])
            name = f"{'GroupNorm' if groups else 'LayerNorm of pixels'}, {{}}, SiLU, {shape_name(shape, dtype)}"
            film = normal(shape[0], 2 * shape[2])
            yield Stretch(name.format("FiLM"), *_with_film(groups), (normal(*shape), *weights, film))
            both = normal(*shape), normal(*shape)
            yield Stretch(name.format("skip connection"), *_with_skip(groups), (*both, *weights), activations=2)
    for shape in shapes["tokens"]:
        inputs = normal(*shape), normal(shape[2])
        yield Stretch(f"LayerNorm of tokens, {shape_name(shape, dtype)}", *_bare(), inputs)
    for shape in shapes["hidden"]:
        inputs = normal(*shape), normal(shape[0], 2 * shape[2])
        yield Stretch(f"SiLU, FiLM, {shape_name(shape, dtype)}", modulate, _modulated, inputs)
    for shape in shapes["heads"]:
        size = HEAD_DIM[device.type]
        given = normal(*shape), *(normal(size) for _ in range(4))
        yield Stretch(f"norm of queries and keys, {shape_name(shape, dtype)}", _heads, _heads_by_layers, given)


def forward(device: torch.device) -> Iterator[Comparison]:
    """Every stretch, forward."""
    for stretch in stretches(device):
        functions = {name: partial(f, *stretch.inputs) for name, f in _functions(stretch).items()}
        yield Comparison("norm", stretch.job, _moved(stretch), functions)


def backward(device: torch.device) -> Iterator[Comparison]:
    """Every stretch, forward and backward."""
    for stretch in stretches(device):
        leaves = tuple(tensor.requires_grad_() for tensor in stretch.inputs)
        made = stretch.layers(*leaves)
        gradient = torch.randn_like(made) if isinstance(made, Tensor) else tuple(map(torch.randn_like, made))
        # forward as above; backward reads the result's gradient and the activations, and writes the activations' gradients
        moved = 2 * _moved(stretch) + size_of(*stretch.inputs[: stretch.activations])
        functions = {name: _training(f, leaves, gradient) for name, f in _functions(stretch).items()}
        yield Comparison("norm_backward", f"{stretch.job}, and backward", moved, functions, trains=True)


def _functions(stretch: Stretch) -> dict[str, Callable[..., Made]]:
    torch.compiler.reset()  # every shape has kernels of its own
    compiled = torch.compile(stretch.layers, fullgraph=True, dynamic=False)
    return {OURS: stretch.ours, "PyTorch": stretch.layers, "torch.compile": compiled}


def _moved(stretch: Stretch) -> int:
    """Bytes of the activations that go in, and of as many as one of them (of heads two thirds of it, twice) that come out."""
    first = size_of(stretch.inputs[0])
    if stretch.ours is _heads:
        return 2 * first * 2 // 3
    return size_of(*stretch.inputs[: stretch.activations]) + first


def _training(
    function: Callable[..., Made], leaves: tuple[Tensor, ...], gradient: Made
) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: torch.autograd.grad(function(*leaves), leaves, gradient)


def _with_film(groups: int | None) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    def ours(x: Tensor, weight: Tensor, bias: Tensor, film: Tensor) -> Tensor:
        return norm(x, weight, bias, eps=EPS, groups=groups, film=film, silu=True)

    def layers(x: Tensor, weight: Tensor, bias: Tensor, film: Tensor) -> Tensor:
        scale, shift = film[:, :, None, None].chunk(2, dim=1)
        return tokens(F.silu(_image_norm(x, weight, bias, groups) * (1 + scale) + shift))

    return ours, layers


def _with_skip(groups: int | None) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    def ours(x: Tensor, skip: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return norm(x, weight, bias, eps=EPS, groups=groups, addend=skip, silu=True)

    def layers(x: Tensor, skip: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        skip = image(skip, math.isqrt(skip.shape[1]), -1)
        return tokens(F.silu((_image_norm(x, weight, bias, groups) + skip) * math.sqrt(0.5)))

    return ours, layers


def _bare() -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    return (
        lambda x, weight: norm(x, weight, eps=EPS),
        lambda x, weight: F.layer_norm(x, weight.shape, weight, None, EPS),
    )


def _image_norm(x: Tensor, weight: Tensor, bias: Tensor, groups: int | None) -> Tensor:
    """Norm tokens as the image that they are in the network, (B, C, H, W) in channels-last memory."""
    pixels = image(x, math.isqrt(x.shape[1]), -1)
    if groups:
        return F.group_norm(pixels, groups, weight, bias, EPS)
    return F.layer_norm(pixels.permute(0, 2, 3, 1), weight.shape, weight, bias, EPS).permute(0, 3, 1, 2)


def _modulated(hidden: Tensor, film: Tensor) -> Tensor:
    scale, shift = film[:, None].chunk(2, dim=-1)
    return F.silu(hidden) * (1 + scale) + shift


def _heads(qkv: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
    return norm_heads(qkv, *weights, eps=EPS)


def _heads_by_layers(
    qkv: Tensor, weight_q: Tensor, bias_q: Tensor, weight_k: Tensor, bias_k: Tensor
) -> tuple[Tensor, Tensor]:
    q, k, _ = qkv.unflatten(2, (3, -1, weight_q.shape[0])).unbind(2)
    size = weight_q.shape
    return F.layer_norm(q, size, weight_q, bias_q, EPS), F.layer_norm(k, size, weight_k, bias_k, EPS)
