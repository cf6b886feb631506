"""`norm_heads` and its gradients as Triton kernels.

A row is one head of one token; a program works on rows of queries or on rows of keys.
"""

# Kernels annotate only their compile-time arguments: Triton reads the annotations itself.
# mypy: allow-incomplete-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.backend import aligned

TILE, WARPS = 4096, 4
PASSES = 8
"""Tiles whose gradients a program sums before it writes the sums."""


@triton.jit
def _places(first, kind, ROWS: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr):
    """Rows, their elements' places in qkv, and channels; rows counted over tokens and heads."""
    row = first.to(tl.int64) + tl.arange(0, ROWS)[:, None]
    channel = tl.arange(0, BLOCK)
    place = (row // HEADS) * (3 * HEADS * D) + kind * HEADS * D + (row % HEADS) * D + channel[None, :]
    return row, place, channel


@triton.jit
def _normed(qkv_ptr, place, inside, eps, D: tl.constexpr):
    x = tl.load(qkv_ptr + place, mask=inside, other=0.0).to(tl.float32)
    centred = tl.where(inside, x - tl.sum(x, axis=1, keep_dims=True) / D, 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=1, keep_dims=True) / D + eps)
    return centred * rstd, rstd


@triton.jit
def norm_heads_kernel(
    qkv_ptr,
    weight_q_ptr,
    bias_q_ptr,
    weight_k_ptr,
    bias_k_ptr,
    out_ptr,
    rows,
    eps,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """ROWS rows of queries (second program axis 0) or keys (1)."""
    kind = tl.program_id(1)
    row, place, channel = _places(tl.program_id(0) * ROWS, kind, ROWS, HEADS, D, BLOCK)
    known = channel < D
    inside = (row < rows) & known[None, :]
    normed, _ = _normed(qkv_ptr, place, inside, eps, D)
    if kind == 0:
        weight = tl.load(weight_q_ptr + channel, mask=known, other=0.0).to(tl.float32)
        bias = tl.load(bias_q_ptr + channel, mask=known, other=0.0).to(tl.float32)
    else:
        weight = tl.load(weight_k_ptr + channel, mask=known, other=0.0).to(tl.float32)
        bias = tl.load(bias_k_ptr + channel, mask=known, other=0.0).to(tl.float32)
    y = normed * weight[None, :] + bias[None, :]
    out = out_ptr + (kind.to(tl.int64) * rows + row) * D + channel[None, :]
    tl.store(out, y.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def norm_heads_gradient_kernel(
    gradient_ptr,
    qkv_ptr,
    weight_q_ptr,
    weight_k_ptr,
    d_qkv_ptr,
    sums_ptr,
    rows,
    eps,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    PASSES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradients of PASSES * ROWS rows of queries or keys, and their part of the weight's and the bias's."""
    part, kind = tl.program_id(0), tl.program_id(1)
    channel = tl.arange(0, BLOCK)
    known = channel < D
    if kind == 0:
        weight = tl.load(weight_q_ptr + channel, mask=known, other=0.0).to(tl.float32)[None, :]
    else:
        weight = tl.load(weight_k_ptr + channel, mask=known, other=0.0).to(tl.float32)[None, :]
    d_weight = tl.zeros((ROWS, BLOCK), tl.float32)
    d_bias = tl.zeros((ROWS, BLOCK), tl.float32)
    for k in range(PASSES):
        row, place, _ = _places((part * PASSES + k) * ROWS, kind, ROWS, HEADS, D, BLOCK)
        inside = (row < rows) & known[None, :]
        normed, rstd = _normed(qkv_ptr, place, inside, eps, D)
        from_row = gradient_ptr + (kind.to(tl.int64) * rows + row) * D + channel[None, :]
        g = tl.load(from_row, mask=inside, other=0.0).to(tl.float32)
        d_weight += g * normed
        d_bias += g
        h = g * weight
        mean = tl.sum(h, axis=1, keep_dims=True) / D
        slant = tl.sum(h * normed, axis=1, keep_dims=True) / D
        d_x = rstd * (h - mean - normed * slant)
        tl.store(d_qkv_ptr + place, d_x.to(d_qkv_ptr.dtype.element_ty), mask=inside)
    out = sums_ptr + (part * 2 + kind) * 2 * D + channel
    tl.store(out, tl.sum(d_weight, axis=0), mask=known)
    tl.store(out + D, tl.sum(d_bias, axis=0), mask=known)


def norm_heads(qkv: Tensor, weight_q: Tensor, bias_q: Tensor, weight_k: Tensor, bias_k: Tensor, eps: float) -> Tensor:
    """Return what `kernels.heads.plain_norm_heads` does; arguments as there."""
    heads, size, rows, tile, block = _tiling(qkv, weight_q)
    weights = [aligned(tensor) for tensor in (weight_q, bias_q, weight_k, bias_k)]
    out = torch.empty((2, *qkv.shape[:2], heads, size), dtype=qkv.dtype, device=qkv.device)
    with torch.cuda.device_of(qkv):  # Triton launches on the current device
        norm_heads_kernel[triton.cdiv(rows, tile), 2](
            aligned(qkv), *weights, out, rows, eps, heads, size, tile, block, num_warps=WARPS, enable_fp_fusion=True
        )
    return out


def norm_heads_backward(
    gradient: Tensor, qkv: Tensor, weight_q: Tensor, weight_k: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Return what `kernels.heads.plain_norm_heads_backward` does; arguments as there."""
    heads, size, rows, tile, block = _tiling(qkv, weight_q)
    qkv = aligned(qkv)
    parts = triton.cdiv(rows, tile * PASSES)
    d_qkv = torch.empty_like(qkv)
    d_qkv[:, :, 2 * heads * size :] = 0  # values are not looked at
    sums = torch.empty((parts, 2, 2, size), dtype=torch.float32, device=qkv.device)
    inputs = (aligned(gradient), qkv, aligned(weight_q), aligned(weight_k))
    sizes = (rows, eps, heads, size, tile, PASSES, block)
    with torch.cuda.device_of(qkv):
        norm_heads_gradient_kernel[parts, 2](*inputs, d_qkv, sums, *sizes, num_warps=2 * WARPS, enable_fp_fusion=True)
    return d_qkv, sums.sum(0)


def _tiling(qkv: Tensor, weight_q: Tensor) -> tuple[int, int, int, int, int]:
    """Return heads, their size, rows of queries, rows of a program's tile, and its padded channels."""
    batch, tokens, channels = qkv.shape
    size = weight_q.shape[0]
    heads, block = channels // (3 * size), triton.next_power_of_2(size)
    return heads, size, batch * tokens * heads, max(1, TILE // block), block
