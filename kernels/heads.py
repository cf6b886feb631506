"""The norm of queries and keys, head by head, straight from the layer that makes queries, keys and values."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.backend import uses_triton


def norm_heads(
    qkv: Tensor, weight_q: Tensor, bias_q: Tensor, weight_k: Tensor, bias_k: Tensor, *, eps: float
) -> tuple[Tensor, Tensor]:
    """Return queries and keys, each normed over every head's D channels: (B, N, H, D) contiguous; differentiable.

    qkv: (B, N, 3 * H * D), all heads' queries, then keys, then values; weights and biases: (D,).  The result has qkv's dtype,
    arithmetic is float32 (float64 for float64, on a CPU).  Raises ValueError naming the argument whose shape does not fit.
    """
    size = weight_q.shape[0]
    if qkv.ndim != 3 or qkv.shape[2] % (3 * size):
        raise ValueError(f"qkv has shape {tuple(qkv.shape)}, expected (B, N, a multiple of {3 * size})")
    for name, tensor in (("weight_q", weight_q), ("bias_q", bias_q), ("weight_k", weight_k), ("bias_k", bias_k)):
        if tuple(tensor.shape) != (size,):
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected ({size},)")
        if tensor.device != qkv.device:
            raise ValueError(f"{name} is on {tensor.device}, qkv on {qkv.device}")
    normed = torch.ops.stepdial.norm_heads(qkv, weight_q, bias_q, weight_k, bias_k, eps)
    return normed[0], normed[1]


@torch.library.custom_op("stepdial::norm_heads", mutates_args=())
def _norm_heads(qkv: Tensor, weight_q: Tensor, bias_q: Tensor, weight_k: Tensor, bias_k: Tensor, eps: float) -> Tensor:
    if uses_triton(qkv):
        from kernels import heads_triton  # here, so that this file imports where Triton is not installed

        return heads_triton.norm_heads(qkv, weight_q, bias_q, weight_k, bias_k, eps)
    return plain_norm_heads(qkv, weight_q, bias_q, weight_k, bias_k, eps)


@_norm_heads.register_fake
def _(qkv: Tensor, weight_q: Tensor, bias_q: Tensor, weight_k: Tensor, bias_k: Tensor, eps: float) -> Tensor:
    batch, rows, channels = qkv.shape
    size = weight_q.shape[0]
    return qkv.new_empty((2, batch, rows, channels // (3 * size), size))


@torch.library.custom_op("stepdial::norm_heads_backward", mutates_args=())
def _norm_heads_backward(
    gradient: Tensor, qkv: Tensor, weight_q: Tensor, weight_k: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Return the gradients of qkv (0 for values), and of weights and biases, (queries or keys, weight or bias, D)."""
    if uses_triton(qkv):
        from kernels import heads_triton

        return heads_triton.norm_heads_backward(gradient, qkv, weight_q, weight_k, eps)
    return plain_norm_heads_backward(gradient, qkv, weight_q, weight_k, eps)


@_norm_heads_backward.register_fake
def _(gradient: Tensor, qkv: Tensor, weight_q: Tensor, weight_k: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(qkv.dtype, torch.float32)
    return qkv.new_empty(qkv.shape), qkv.new_empty((2, 2, weight_q.shape[0]), dtype=wide)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    qkv, weight_q, _, weight_k, _, ctx.eps = inputs
    ctx.dtype = weight_q.dtype
    ctx.save_for_backward(qkv, weight_q, weight_k)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    d_qkv, sums = torch.ops.stepdial.norm_heads_backward(gradient, *ctx.saved_tensors, ctx.eps)
    return d_qkv, *sums.flatten(0, 1).to(ctx.dtype).unbind(), None


_norm_heads.register_autograd(_backward, setup_context=_keep)


def plain_norm_heads(
    qkv: Tensor, weight_q: Tensor, bias_q: Tensor, weight_k: Tensor, bias_k: Tensor, eps: float
) -> Tensor:
    """Return what `norm_heads` does, in plain PyTorch, queries before keys, (2, B, N, H, D)."""
    heads = _wide(qkv, weight_q)
    size, dtype = weight_q.shape, heads.dtype
    normed = [
        F.layer_norm(part, size, weight.to(dtype), bias.to(dtype), eps)
        for part, weight, bias in zip(heads, (weight_q, weight_k), (bias_q, bias_k), strict=True)
    ]
    return torch.stack(normed).to(qkv.dtype)


def plain_norm_heads_backward(
    gradient: Tensor, qkv: Tensor, weight_q: Tensor, weight_k: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Return the gradients of `plain_norm_heads` written out, in plain PyTorch."""
    heads = _wide(qkv, weight_q)
    centred = heads - heads.mean(-1, keepdim=True)
    rstd = torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    normed, g = centred * rstd, gradient.to(heads.dtype)
    h = g * torch.stack([weight_q, weight_k])[:, None, None, None]
    d_heads = rstd * (h - h.mean(-1, keepdim=True) - normed * (h * normed).mean(-1, keepdim=True))
    d_qkv = torch.cat([d_heads, torch.zeros_like(d_heads[:1])]).permute(1, 2, 0, 3, 4).reshape(qkv.shape)
    sums = torch.stack([(g * normed).sum((1, 2, 3)), g.sum((1, 2, 3))], dim=1)
    return d_qkv.to(qkv.dtype).contiguous(), sums


def _wide(qkv: Tensor, weight_q: Tensor) -> Tensor:
    """Queries and keys, (2, B, N, H, D)."""
    heads = qkv.unflatten(2, (3, -1, weight_q.shape[0]))[:, :, :2].permute(2, 0, 1, 3, 4)
    return heads.to(torch.promote_types(qkv.dtype, torch.float32))
