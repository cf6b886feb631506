"""A norm and what follows it in a network (FiLM, a skip connection, SiLU) as one operation with its gradients."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.backend import uses_triton


def norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    eps: float,
    groups: int | None = None,
    film: Tensor | None = None,
    addend: Tensor | None = None,
    silu: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return the normed rows of x, and of what follows what is asked for, (B, N, C) contiguous; differentiable.

        n = (x - mean) / sqrt(var + eps) * weight + bias
        n <- (n + addend) / sqrt(2)              if an addend is given, the normed skip connection
        n <- n * (1 + scale) + shift             if film = (scale, shift) is given
        n <- n * sigmoid(n)                      if silu

    mean and var (of the population, two passes) are of each row's C channels (LayerNorm), or with `groups` of all rows
    of a sample in each group of C / groups neighbouring channels (GroupNorm).
    x, addend: (B, N, C), tokens or the pixels of an image in channels-last memory; weight, bias: (C,); film: (B, 2C), rows
    may be strided; each float32, float16 or bfloat16 (float64 on a CPU).  dtype: of the result, default x's.  Arithmetic is
    float32.  A sample's bits do not depend on the rest of the batch, and gradients are the same in every run.
    Raises ValueError naming the argument whose shape or device does not fit.
    """
    _check(x, weight, bias, groups, film, addend)
    y, _ = torch.ops.stepdial.norm(x, weight, bias, film, addend, groups or 0, eps, silu, dtype or x.dtype)
    return y


def _check(
    x: Tensor, weight: Tensor, bias: Tensor | None, groups: int | None, film: Tensor | None, addend: Tensor | None
) -> None:
    if x.ndim != 3 or not x.is_floating_point():
        raise ValueError(f"x is {x.dtype} {tuple(x.shape)}, expected floating point (B, N, C)")
    batch, _, channels = x.shape
    for name, tensor, shape in (
        ("weight", weight, (channels,)),
        ("bias", bias, (channels,)),
        ("film", film, (batch, 2 * channels)),
        ("addend", addend, tuple(x.shape)),
    ):
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, x on {x.device}")
    if film is not None and addend is not None:
        raise ValueError("film and addend exclude each other")
    if groups is not None and (groups < 1 or channels % groups):
        raise ValueError(f"groups must divide the {channels} channels, got {groups}")


@torch.library.custom_op("stepdial::norm", mutates_args=())
def _norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    film: Tensor | None,
    addend: Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    if uses_triton(x):
        from kernels import norms_triton  # here, so that this file imports where Triton is not installed

        return norms_triton.norm(x, weight, bias, film, addend, groups, eps, silu, dtype)
    return plain_norm(x, weight, bias, film, addend, groups, eps, silu, dtype)


@_norm.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    film: Tensor | None,
    addend: Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=dtype), _no_statistics(x, groups)


@torch.library.custom_op("stepdial::norm_backward", mutates_args=())
def _norm_backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    film: Tensor | None,
    addend: Tensor | None,
    statistics: Tensor,
    groups: int,
    eps: float,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x and of the addend (empty without one), and sums of gradients, (B, 2, C).

    The sums are over a sample's rows, of the gradient before SiLU: times the normed x, and by itself.
    """
    if uses_triton(x):
        from kernels import norms_triton

        return norms_triton.norm_backward(gradient, x, weight, bias, film, addend, statistics, groups, eps, silu)
    return plain_norm_backward(gradient, x, weight, bias, film, addend, statistics, groups, eps, silu)


@_norm_backward.register_fake
def _(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    film: Tensor | None,
    addend: Tensor | None,
    statistics: Tensor,
    groups: int,
    eps: float,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    sums = x.new_empty((x.shape[0], 2, x.shape[2]), dtype=_wide(x))
    return x.new_empty(x.shape), x.new_empty((0,)) if addend is None else addend.new_empty(addend.shape), sums


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, weight, bias, film, addend, ctx.groups, ctx.eps, ctx.silu, _ = inputs
    ctx.save_for_backward(x, weight, bias, film, addend, output[1])


def _backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, film, addend, statistics = ctx.saved_tensors
    options = (statistics, ctx.groups, ctx.eps, ctx.silu)
    d_x, d_addend, sums = torch.ops.stepdial.norm_backward(gradient, x, weight, bias, film, addend, *options)
    along, plain = sums.unbind(1)
    d_film = None
    if film is not None:  # n is normed * weight + bias here
        d_scale = along * weight if bias is None else along * weight + plain * bias
        d_film = torch.cat([d_scale, plain], dim=1).to(film.dtype)
    grown = growth(film, addend)
    d_weight = (along * grown).sum(0).to(weight.dtype)
    d_bias = None if bias is None else (plain * grown).sum(0).to(bias.dtype)
    return d_x, d_weight, d_bias, d_film, None if addend is None else d_addend, None, None, None, None


_norm.register_autograd(_backward, setup_context=_keep)


def growth(film: Tensor | None, addend: Tensor | None) -> Tensor | float:
    """Return by what the value before SiLU grows with the norm's: 1 + scale (B, C), sqrt(1/2) or 1."""
    if film is not None:
        return 1.0 + film.chunk(2, dim=1)[0].to(_wide(film))
    return math.sqrt(0.5) if addend is not None else 1.0


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _no_statistics(x: Tensor, groups: int) -> Tensor:
    """Memory for mean and 1 / sqrt(var + eps) of every group, (B, groups, 2); rows are worked out again from x."""
    return x.new_empty((x.shape[0], groups, 2) if groups else (0,), dtype=_wide(x))


def plain_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    film: Tensor | None,
    addend: Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Return what `norm` does, in plain PyTorch, and the statistics of groups."""
    normed, mean, rstd = _normed(x, groups, eps)
    n = _followed(normed, weight, bias, film, addend)
    statistics = torch.cat([mean, rstd], dim=-1).reshape(len(x), groups, 2) if groups else _no_statistics(x, 0)
    return (F.silu(n) if silu else n).to(dtype).contiguous(), statistics


def plain_norm_backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    film: Tensor | None,
    addend: Tensor | None,
    statistics: Tensor,
    groups: int,
    eps: float,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of `plain_norm` written out, in plain PyTorch."""
    normed, _, rstd = _normed(x, groups, eps)
    g = gradient.to(normed.dtype)
    if silu:
        n = _followed(normed, weight, bias, film, addend)
        gate = torch.sigmoid(n)
        g = g * gate * (1 + n * (1 - gate))
    grown = growth(film, addend)
    slope = weight * (grown[:, None] if isinstance(grown, Tensor) else grown)
    h = g * slope
    one, along = (_mean(part, groups) for part in (h, h * normed))
    d_x = rstd * (_by_group(h, groups) - one - _by_group(normed, groups) * along)
    d_addend = x.new_empty((0,)) if addend is None else (g * grown).to(addend.dtype)
    sums = torch.stack([(g * normed).sum(1), g.sum(1)], dim=1)
    return d_x.reshape(x.shape).to(x.dtype), d_addend, sums


def _normed(x: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the normed x (B, N, C), and mean and 1 / sqrt(var + eps) as they multiply `_by_group`'s shape."""
    parts = _by_group(x.to(_wide(x)), groups)
    dims = (1, 3) if groups else 2
    mean = parts.mean(dims, keepdim=True)
    centred = parts - mean
    rstd = torch.rsqrt(centred.square().mean(dims, keepdim=True) + eps)
    return (centred * rstd).reshape(x.shape), mean, rstd


def _by_group(x: Tensor, groups: int) -> Tensor:
    """(B, N, C) -> (B, N, groups, C / groups) where there are groups."""
    return x.unflatten(2, (groups, -1)) if groups else x


def _mean(x: Tensor, groups: int) -> Tensor:
    return _by_group(x, groups).mean((1, 3) if groups else 2, keepdim=True)


def _followed(
    normed: Tensor, weight: Tensor, bias: Tensor | None, film: Tensor | None, addend: Tensor | None
) -> Tensor:
    """Return what comes before SiLU."""
    n = normed * weight
    if bias is not None:
        n = n + bias
    if addend is not None:
        n = (n + addend) * math.sqrt(0.5)
    if film is not None:
        scale, shift = film[:, None].to(n.dtype).chunk(2, dim=2)
        n = n * (1 + scale) + shift
    return n
