"""`noise` as a Triton kernel: the same operations in the same order as the plain version, none of them fused."""

# Kernels annotate only their compile-time arguments: Triton reads the annotations itself.
# mypy: allow-incomplete-defs

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import gaussian

BLOCK, WARPS = 512, 4

LOG_TERMS = tl.constexpr(gaussian.LOG_TERMS)
ANGLE_TERMS = tl.constexpr(gaussian.ANGLE_TERMS)
LOG_SPLIT = tl.constexpr(gaussian.LOG_SPLIT)
LN_2 = tl.constexpr(math.log(2.0))
ANGLE_UNIT = tl.constexpr(2.0 * math.pi * 2.0**-32)
WORD_UNIT = tl.constexpr(2.0**-32)


@triton.jit
def _log(u):
    bits = u.to(tl.int64, bitcast=True)
    exponent = (bits >> 52) - 1023
    m = ((bits & 0xFFFFFFFFFFFFF) | 0x3FF0000000000000).to(tl.float64, bitcast=True)
    high = m > LOG_SPLIT
    m = tl.where(high, m * 0.5, m)
    exponent = exponent + high.to(tl.int64)
    s = (m - 1.0) / (m + 1.0)
    square = s * s
    series = tl.full(s.shape, 1.0 / (2 * LOG_TERMS + 1), tl.float64)
    for k in tl.static_range(LOG_TERMS - 1, -1, -1):
        series = series * square + 1.0 / (2 * k + 1)
    return exponent.to(tl.float64) * LN_2 + (s * 2.0) * series


@triton.jit
def _cos_sin(b):
    b = b.to(tl.int64)
    quarter = (b + 0x20000000) >> 30
    angle = ((b - (quarter << 30)).to(tl.float64) + 0.5) * ANGLE_UNIT
    square = -(angle * angle)
    cos = tl.full(angle.shape, 1.0, tl.float64)
    sin = cos
    for k in tl.static_range(ANGLE_TERMS, 0, -1):
        cos = cos * square * (1.0 / ((2 * k - 1) * (2 * k))) + 1.0
        sin = sin * square * (1.0 / ((2 * k) * (2 * k + 1))) + 1.0
    sin = sin * angle
    odd = (quarter & 1) == 1
    cos_sign = 1.0 - ((quarter + 1) & 2).to(tl.float64)
    sin_sign = 1.0 - (quarter & 2).to(tl.float64)
    return tl.where(odd, sin, cos) * cos_sign, tl.where(odd, cos, sin) * sin_sign


@triton.jit
def _normals(a, b):
    radius = tl.sqrt(_log((a.to(tl.float64) + 0.5) * WORD_UNIT) * -2.0)
    cos, sin = _cos_sin(b)
    return (radius * cos).to(tl.float32), (radius * sin).to(tl.float32)


@triton.jit
def noise_kernel(seeds_ptr, indices_ptr, streams_ptr, out_ptr, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """BLOCK counters of one image, four normals each."""
    image = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * BLOCK
    zero = tl.zeros((BLOCK,), tl.uint32)
    index = tl.load(indices_ptr + image).to(tl.uint32) + zero
    stream = tl.load(streams_ptr + image).to(tl.uint32) + zero
    block = (first + tl.arange(0, BLOCK)).to(tl.uint32)
    r0, r1, r2, r3 = tl.philox(tl.load(seeds_ptr + image), block, index, stream, zero, 10)
    n0, n1 = _normals(r0, r1)
    n2, n3 = _normals(r2, r3)
    normals = tl.interleave(tl.interleave(n0, n2), tl.interleave(n1, n3))
    element = first * 4 + tl.arange(0, 4 * BLOCK)
    tl.store(out_ptr + image * SIZE + element, normals, mask=element < SIZE)


def noise(seeds: Tensor, indices: Tensor, streams: Tensor, shape: Sequence[int]) -> Tensor:
    """Return what `kernels.noise` defines; seeds, indices, streams int64 (B,)."""
    batch, size = seeds.shape[0], math.prod(shape)
    out = torch.empty((batch, *shape), dtype=torch.float32, device=seeds.device)
    with torch.cuda.device_of(seeds):  # Triton launches on the current device
        noise_kernel[batch, triton.cdiv(size, 4 * BLOCK)](
            seeds.contiguous(),
            indices.contiguous(),
            streams.contiguous(),
            out,
            size,
            BLOCK,
            num_warps=WARPS,
            enable_fp_fusion=False,
        )
    return out
