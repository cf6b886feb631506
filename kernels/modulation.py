"""SiLU and FiLM of an MLP's hidden layer as one operation with its gradients."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.backend import uses_triton


def modulate(hidden: Tensor, film: Tensor) -> Tensor:
    """Return silu(hidden) * (1 + scale) + shift, film = (scale, shift), (B, N, C) contiguous, in hidden's dtype; differentiable.

    hidden: (B, N, C); film: (B, 2C), rows may be strided; each float32, float16 or bfloat16 (float64 on a CPU).
    Arithmetic is float32.  A sample's bits do not depend on the rest of the batch, and gradients are the same in every run.
    Raises ValueError naming the argument whose shape or device does not fit.
    """
    if hidden.ndim != 3 or not hidden.is_floating_point():
        raise ValueError(f"hidden is {hidden.dtype} {tuple(hidden.shape)}, expected floating point (B, N, C)")
    expected = (hidden.shape[0], 2 * hidden.shape[2])
    if tuple(film.shape) != expected:
        raise ValueError(f"film has shape {tuple(film.shape)}, expected {expected}")
    if film.device != hidden.device:
        raise ValueError(f"film is on {film.device}, hidden on {hidden.device}")
    return torch.ops.stepdial.modulate(hidden, film)


@torch.library.custom_op("stepdial::modulate", mutates_args=())
def _modulate(hidden: Tensor, film: Tensor) -> Tensor:
    if uses_triton(hidden):
        from kernels import modulation_triton  # here, so that this file imports where Triton is not installed

        return modulation_triton.modulate(hidden, film)
    return plain_modulate(hidden, film)


@_modulate.register_fake
def _(hidden: Tensor, film: Tensor) -> Tensor:
    return hidden.new_empty(hidden.shape)


@torch.library.custom_op("stepdial::modulate_backward", mutates_args=())
def _modulate_backward(gradient: Tensor, hidden: Tensor, film: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of hidden and of (scale, shift), (B, 2, C), before it is rounded to film's dtype."""
    if uses_triton(hidden):
        from kernels import modulation_triton

        return modulation_triton.modulate_backward(gradient, hidden, film)
    return plain_modulate_backward(gradient, hidden, film)


@_modulate_backward.register_fake
def _(gradient: Tensor, hidden: Tensor, film: Tensor) -> tuple[Tensor, Tensor]:
    batch, _, channels = hidden.shape
    wide = torch.promote_types(hidden.dtype, torch.float32)
    return hidden.new_empty(hidden.shape), hidden.new_empty((batch, 2, channels), dtype=wide)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    hidden, film = ctx.saved_tensors
    d_hidden, sums = torch.ops.stepdial.modulate_backward(gradient, hidden, film)
    return d_hidden, sums.flatten(1).to(film.dtype)


_modulate.register_autograd(_backward, setup_context=_keep)


def plain_modulate(hidden: Tensor, film: Tensor) -> Tensor:
    """Return what `modulate` does, in plain PyTorch."""
    h, scale, shift = _wide(hidden, film)
    return (F.silu(h) * (1 + scale) + shift).to(hidden.dtype).contiguous()


def plain_modulate_backward(gradient: Tensor, hidden: Tensor, film: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of `plain_modulate` written out, in plain PyTorch."""
    h, scale, _ = _wide(hidden, film)
    g, gate = gradient.to(h.dtype), torch.sigmoid(h)
    d_hidden = g * (1 + scale) * gate * (1 + h * (1 - gate))
    return d_hidden.to(hidden.dtype).contiguous(), torch.stack([(g * h * gate).sum(1), g.sum(1)], dim=1)


def _wide(hidden: Tensor, film: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    h = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    scale, shift = film[:, None].to(h.dtype).chunk(2, dim=2)
    return h, scale, shift
