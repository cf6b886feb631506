"""`hop` and `last_hop` as Triton kernels.

Launched without fused multiply-adds and with correctly rounded division and square root, so that the result is the
plain version's to the bit (aDDIM's float64 norm, summed in another order, may once in a great many samples round
out_eps to the neighbouring float32).  It also keeps a sample's bits from depending on which optional arguments its
wave came with: a compiler free to fuse may do so differently in each variant.
"""

# Kernels annotate only their compile-time arguments: Triton reads the annotations itself.
# mypy: allow-incomplete-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.backend import aligned
from kernels.rules import MEAN_SQUARE_FLOOR
from kernels.wave import Column

LANE_ELEMENTS = 128
"""Elements a warp works on: 4 a thread, 16 bytes of float32.  With more, mixed dtypes pass through shared memory."""
BLOCK = 2048
SUM_BLOCK = 16384
"""Elements whose squares one program sums; a larger sample needs a pass of partial sums before its hop."""

ALPHA_T = tl.constexpr(int(Column.ALPHA_T))
SIGMA_T = tl.constexpr(int(Column.SIGMA_T))
OUT_X = tl.constexpr(int(Column.OUT_X))
OUT_EPS = tl.constexpr(int(Column.OUT_EPS))
Z_VAR = tl.constexpr(int(Column.Z_VAR))
OUT_NOISE = tl.constexpr(int(Column.OUT_NOISE))
GUIDANCE = tl.constexpr(int(Column.GUIDANCE))
CLIP = tl.constexpr(int(Column.CLIP))
COLUMNS = tl.constexpr(len(Column))
FLOOR = tl.constexpr(MEAN_SQUARE_FLOOR)


@triton.jit
def _predict(z_ptr, v_ptr, v_uncond_ptr, row, offsets, mask):
    """x_hat and eps_hat of some elements of a sample, guided and clipped, float32; 0 outside the mask."""
    alpha_t, sigma_t = tl.load(row + ALPHA_T), tl.load(row + SIGMA_T)
    clip, w = tl.load(row + CLIP), tl.load(row + GUIDANCE)
    z = tl.load(z_ptr + offsets, mask=mask, other=0.0)
    v = tl.load(v_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    if v_uncond_ptr is not None:
        v_uncond = tl.load(v_uncond_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        v = tl.where(w != 0.0, v + w * (v - v_uncond), v)
    x = alpha_t * z - sigma_t * v
    eps = sigma_t * z + alpha_t * v
    clipped = tl.where(x > 1.0, 1.0, tl.where(x < -1.0, -1.0, x))
    clipped = tl.where(clip != 0.0, clipped, x)
    eps = tl.where(clip != 0.0, eps + tl.div_rn(alpha_t, sigma_t) * (x - clipped), eps)
    return clipped, eps


@triton.jit
def _square_sum(
    z_ptr, v_ptr, v_uncond_ptr, row, start, first, D: tl.constexpr, PASSES: tl.constexpr, BLOCK: tl.constexpr
):
    """||eps_hat||^2, float64, over PASSES * BLOCK elements from `first` on, of the sample that begins at `start`."""
    squares = tl.zeros((BLOCK,), tl.float64)
    for k in tl.static_range(PASSES):
        element = first + k * BLOCK + tl.arange(0, BLOCK)
        _, eps = _predict(z_ptr, v_ptr, v_uncond_ptr, row, start + element, element < D)
        squares += eps.to(tl.float64) * eps.to(tl.float64)
    return tl.sum(squares, axis=0)


@triton.jit
def square_sums_kernel(
    z_ptr,
    v_ptr,
    v_uncond_ptr,
    coefficients_ptr,
    sums_ptr,
    D: tl.constexpr,
    PASSES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Partial sums of ||eps_hat||^2, one a program, for the aDDIM rows of a wave."""
    sample, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row = coefficients_ptr + sample * COLUMNS
    if tl.load(row + Z_VAR) != 0.0:
        first = part * PASSES * BLOCK
        total = _square_sum(z_ptr, v_ptr, v_uncond_ptr, row, sample * D, first, D, PASSES, BLOCK)
        tl.store(sums_ptr + sample * tl.num_programs(1) + part, total)


@triton.jit
def hop_kernel(
    z_ptr,
    v_ptr,
    v_uncond_ptr,
    noise_ptr,
    coefficients_ptr,
    sums_ptr,
    out_ptr,
    D: tl.constexpr,
    CHANNELS: tl.constexpr,
    SUMS: tl.constexpr,
    SUMS_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """z_s of one block of one sample, in float32; or its bytes in (H, W, C) order where CHANNELS is not 0.

    aDDIM rows need the whole sample's norm.  SUMS = 0: every program takes it for itself, from cache, in the same order
    (one launch, and DDIM rows stay spread over the GPU).  Else it is the sum of SUMS partial sums.
    """
    sample = tl.program_id(0).to(tl.int64)
    row = coefficients_ptr + sample * COLUMNS
    element = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = element < D
    offsets = sample * D + element
    if CHANNELS > 0:  # element counts output bytes, so that the stores are contiguous and the loads strided
        offsets = sample * D + (element % CHANNELS) * (D // CHANNELS) + element // CHANNELS

    out_eps, z_var = tl.load(row + OUT_EPS), tl.load(row + Z_VAR)
    if z_var != 0.0:
        if SUMS > 0:
            part = tl.arange(0, SUMS_BLOCK)
            total = tl.sum(tl.load(sums_ptr + sample * SUMS + part, mask=part < SUMS, other=0.0), axis=0)
        else:
            total = _square_sum(z_ptr, v_ptr, v_uncond_ptr, row, sample * D, 0, D, (D + BLOCK - 1) // BLOCK, BLOCK)
        floor = tl.full((), FLOOR, tl.float64)
        mean = total / D
        mean = tl.where(mean > floor, mean, floor)
        base = out_eps.to(tl.float64)
        out_eps = tl.sqrt(base * base + z_var.to(tl.float64) / mean).to(tl.float32)

    x, eps = _predict(z_ptr, v_ptr, v_uncond_ptr, row, offsets, mask)
    z_s = tl.load(row + OUT_X) * x + out_eps * eps
    if noise_ptr is not None:
        out_noise = tl.load(row + OUT_NOISE)
        noise = tl.load(noise_ptr + offsets, mask=mask, other=0.0)
        z_s = tl.where(out_noise != 0.0, z_s + out_noise * noise, z_s)
    if CHANNELS > 0:
        level = z_s * 127.5 + 127.5
        level = tl.where(level > 255.0, 255.0, tl.where(level > 0.0, level, 0.0))  # not a number: 0
        level = (level + 8388608.0) - 8388608.0  # 2^23: leaves the integer, halves to even
        tl.store(out_ptr + sample * D + element, level.to(tl.uint8), mask=mask)
    else:
        tl.store(out_ptr + sample * D + element, z_s, mask=mask)


def hop(z_t: Tensor, v: Tensor, coefficients: Tensor, v_uncond: Tensor | None, noise: Tensor | None) -> Tensor:
    """Return what `kernels.hop` does; arguments as there, already checked."""
    out = torch.empty_like(z_t, memory_format=torch.contiguous_format)
    return _launch(out, 0, z_t, v, coefficients, v_uncond, noise)


def last_hop(z_t: Tensor, v: Tensor, coefficients: Tensor, v_uncond: Tensor | None, noise: Tensor | None) -> Tensor:
    """Return what `kernels.last_hop` does; arguments as there, already checked."""
    batch, channels, height, width = z_t.shape
    out = z_t.new_empty((batch, height, width, channels), dtype=torch.uint8)
    return _launch(out, channels, z_t, v, coefficients, v_uncond, noise)


def _launch(
    out: Tensor, channels: int, z_t: Tensor, v: Tensor, table: Tensor, v_uncond: Tensor | None, noise: Tensor | None
) -> Tensor:
    batch, size = z_t.shape[0], z_t[0].numel()
    z_t, v, table = aligned(z_t), aligned(v), aligned(table)
    v_uncond = None if v_uncond is None else aligned(v_uncond)
    noise = None if noise is None else aligned(noise)
    block = min(BLOCK, max(LANE_ELEMENTS, triton.next_power_of_2(size)))
    warps = block // LANE_ELEMENTS
    sums, parts = None, 0
    with torch.cuda.device_of(z_t):  # Triton launches on the current device
        if size > SUM_BLOCK:
            parts = triton.cdiv(size, SUM_BLOCK)
            sums = torch.empty((batch, parts), dtype=torch.float64, device=z_t.device)
            square_sums_kernel[batch, parts](
                z_t, v, v_uncond, table, sums, size, SUM_BLOCK // block, block, num_warps=warps, enable_fp_fusion=False
            )
        hop_kernel[batch, triton.cdiv(size, block)](
            z_t,
            v,
            v_uncond,
            noise,
            table,
            sums,
            out,
            size,
            channels,
            parts,
            triton.next_power_of_2(max(parts, 1)),
            block,
            num_warps=warps,
            enable_fp_fusion=False,
        )
    return out
