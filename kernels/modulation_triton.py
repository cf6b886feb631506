"""`modulate` and its gradients as Triton kernels; rows and programs as in norms_triton.py."""

# Kernels annotate only their compile-time arguments: Triton reads the annotations itself.
# mypy: allow-incomplete-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.backend import aligned, rows_aligned

BLOCK, ROWS, WARPS = 256, 16, 4
"""A program's channels and rows.  Rows do not need all their channels in one program here."""
PASSES = 8
"""Tiles whose gradients a program sums before it writes the sums."""


@triton.jit
def modulate_kernel(
    hidden_ptr,
    film_ptr,
    out_ptr,
    film_stride,
    N: tl.constexpr,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """ROWS rows of BLOCK channels of one sample."""
    sample = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    known = channel < C
    inside = (row < N) & known[None, :]
    place = sample * N * C + row * C + channel[None, :]
    h = tl.load(hidden_ptr + place, mask=inside, other=0.0).to(tl.float32)
    film = film_ptr + sample * film_stride + channel
    scale = tl.load(film, mask=known, other=0.0).to(tl.float32)[None, :]
    shift = tl.load(film + C, mask=known, other=0.0).to(tl.float32)[None, :]
    y = h / (1.0 + tl.exp(-h)) * (1.0 + scale) + shift
    tl.store(out_ptr + place, y.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def modulate_gradient_kernel(
    gradient_ptr,
    hidden_ptr,
    film_ptr,
    d_hidden_ptr,
    sums_ptr,
    film_stride,
    N: tl.constexpr,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    PASSES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradients of hidden, and of scale and shift summed over these rows, of PASSES * ROWS rows of BLOCK channels."""
    sample, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    channel = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    known = channel < C
    grown = 1.0 + tl.load(film_ptr + sample * film_stride + channel, mask=known, other=0.0).to(tl.float32)[None, :]
    d_scale = tl.zeros((ROWS, BLOCK), tl.float32)
    d_shift = tl.zeros((ROWS, BLOCK), tl.float32)
    for k in range(PASSES):
        row = (part * PASSES + k) * ROWS + tl.arange(0, ROWS)[:, None]
        inside = (row < N) & known[None, :]
        place = sample * N * C + row * C + channel[None, :]
        h = tl.load(hidden_ptr + place, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(gradient_ptr + place, mask=inside, other=0.0).to(tl.float32)
        gate = 1.0 / (1.0 + tl.exp(-h))
        d_scale += g * h * gate
        d_shift += g
        d_hidden = g * grown * gate * (1.0 + h * (1.0 - gate))
        tl.store(d_hidden_ptr + place, d_hidden.to(d_hidden_ptr.dtype.element_ty), mask=inside)
    out = sums_ptr + (sample * tl.num_programs(1) + part) * 2 * C + channel
    tl.store(out, tl.sum(d_scale, axis=0), mask=known)
    tl.store(out + C, tl.sum(d_shift, axis=0), mask=known)


def modulate(hidden: Tensor, film: Tensor) -> Tensor:
    """Return what `kernels.modulate` does; arguments as there, already checked."""
    batch, rows, channels = hidden.shape
    hidden, film = aligned(hidden), rows_aligned(film)
    out = torch.empty_like(hidden)
    block, tile = _tiling(rows, channels)
    grid = batch, triton.cdiv(rows, tile), triton.cdiv(channels, block)
    with torch.cuda.device_of(hidden):  # Triton launches on the current device
        modulate_kernel[grid](
            hidden, film, out, film.stride(0), rows, channels, tile, block, num_warps=WARPS, enable_fp_fusion=True
        )
    return out


def modulate_backward(gradient: Tensor, hidden: Tensor, film: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `kernels.modulation.plain_modulate_backward` does; arguments as there."""
    batch, rows, channels = hidden.shape
    gradient, hidden, film = aligned(gradient), aligned(hidden), rows_aligned(film)
    d_hidden = torch.empty_like(hidden)
    block, tile = _tiling(rows, channels)
    passes = min(PASSES, triton.next_power_of_2(triton.cdiv(rows, tile)))
    parts = triton.cdiv(rows, tile * passes)
    sums = torch.empty((batch, parts, 2, channels), dtype=torch.float32, device=hidden.device)
    sizes = (film.stride(0), rows, channels, tile, passes, block)
    with torch.cuda.device_of(hidden):
        modulate_gradient_kernel[batch, parts, triton.cdiv(channels, block)](
            gradient, hidden, film, d_hidden, sums, *sizes, num_warps=2 * WARPS, enable_fp_fusion=True
        )
    return d_hidden, sums.sum(1)


def _tiling(rows: int, channels: int) -> tuple[int, int]:
    """Return channels and rows of a program, from the sample's shape alone."""
    block = min(BLOCK, triton.next_power_of_2(channels))
    return block, min(ROWS * (BLOCK // block), triton.next_power_of_2(rows))
