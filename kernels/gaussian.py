"""Seeded noise: standard normals that a seed, an image index and a stream determine, whatever else is in the batch."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.backend import uses_triton
from kernels.philox import MASK, philox

LOG_TERMS, ANGLE_TERMS = 8, 6
LOG_SPLIT = 181 / 128
"""Close to sqrt(2), and exact in float32: Triton rounds a constant that float64 is compared with to float32."""


def noise(
    seeds: Tensor | Sequence[int],
    indices: Tensor | Sequence[int],
    shape: Sequence[int],
    *,
    stream: int | Tensor | Sequence[int] = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return standard normal noise of shape (B, *shape), float32.  This docstring defines it.

    Elements 4j .. 4j + 3 of an image (row-major) come from the four 32-bit words r0 .. r3 of Philox4x32-10 with

        key = the 64 bits of the image's seed, low word first,   counter = (j, image index, stream, 0),

    each pair of words (a, b) making two normals by Box and Muller's transform, in float64, rounded to float32:

        radius = sqrt(-2 ln((a + 1/2) / 2^32)),   (radius cos, radius sin)(2 pi (b + 1/2) / 2^32).

    ln, cos and sin are the series written out in this file, of relative error below 1e-11, made of additions,
    multiplications, divisions and a square root alone, each correctly rounded by IEEE 754 and none fused.  So the
    bits, not merely the values, are the same on every device that keeps to IEEE 754 in float64.  (A library's log and
    cos differ between devices in the last bit.)  Values lie within +-6.77.
    The noise of a smaller shape is the beginning of that of a larger one.

    seeds: int64 (B,), each any 64-bit pattern (as numbers: -2^63 .. 2^63 - 1).  indices, stream: 0 .. 2^32 - 1; stream
    is a number or (B,): 0 for the initial noise, k + 1 for the noise of hop k.  device: default the seeds'.
    Tensors already on the device are used without a transfer, as a CUDA graph needs.
    Raises ValueError naming the argument whose shape, type or (for numbers and sequences) range does not fit.
    """
    seeds = _words("seeds", seeds, None, device, -(2**63), 2**63 - 1)
    batch, device = seeds.shape[0], seeds.device
    indices = _words("indices", indices, batch, device, 0, 2**32 - 1)
    if isinstance(stream, int):
        if not 0 <= stream < 2**32:
            raise ValueError(f"stream must be in 0 .. 2^32 - 1, got {stream}")
        streams = torch.full((batch,), stream, dtype=torch.int64, device=device)
    else:
        streams = _words("stream", stream, batch, device, 0, 2**32 - 1)
    return torch.ops.stepdial.noise(seeds, indices, streams, list(shape))


def _words(
    name: str,
    values: Tensor | Sequence[int],
    batch: int | None,
    device: torch.device | str | None,
    low: int,
    high: int,
) -> Tensor:
    if not isinstance(values, Tensor):
        if not all(isinstance(value, int) and low <= value <= high for value in values):
            raise ValueError(f"{name} must be integers in {low} .. {high}")
        values = torch.tensor(values, dtype=torch.int64, device=device)
    if values.ndim != 1 or values.dtype != torch.int64 or batch not in (None, values.shape[0]):
        length = "B" if batch is None else batch
        raise ValueError(f"{name} is {values.dtype} {tuple(values.shape)}, expected torch.int64 ({length},)")
    return values if device is None else values.to(device)


@torch.library.custom_op("stepdial::noise", mutates_args=())
def _noise(seeds: Tensor, indices: Tensor, streams: Tensor, shape: Sequence[int]) -> Tensor:
    if uses_triton(seeds):
        from kernels import gaussian_triton  # here, so that this file imports where Triton is not installed

        return gaussian_triton.noise(seeds, indices, streams, shape)
    if seeds.is_cpu:
        from kernels import gaussian_numpy  # here, because it imports this file

        return gaussian_numpy.noise(seeds, indices, streams, shape)
    return plain_noise(seeds, indices, streams, shape)


@_noise.register_fake
def _(seeds: Tensor, indices: Tensor, streams: Tensor, shape: Sequence[int]) -> Tensor:
    return seeds.new_empty((seeds.shape[0], *shape), dtype=torch.float32)


def plain_noise(seeds: Tensor, indices: Tensor, streams: Tensor, shape: Sequence[int]) -> Tensor:
    """Return what `noise` defines, in plain PyTorch; seeds, indices, streams int64 (B,)."""
    size = math.prod(shape)
    blocks = torch.arange((size + 3) // 4, device=seeds.device)
    seeds, indices, streams = seeds[:, None], indices[:, None], streams[:, None]
    words = philox((blocks, indices, streams, torch.zeros_like(blocks)), (seeds & MASK, (seeds >> 32) & MASK))
    normals = torch.stack([*_normals(words[0], words[1]), *_normals(words[2], words[3])], dim=-1)
    return normals.flatten(1)[:, :size].reshape(-1, *shape).contiguous()


def _normals(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    radius = _log((a.double() + 0.5) * 2.0**-32).mul_(-2.0).sqrt_()
    cos, sin = _cos_sin(b)
    return (radius * cos).float(), (radius * sin).float()


def _log(u: Tensor) -> Tensor:
    """ln u of normal float64 u > 0: u = 2^k m with m in (0.7, 1.42], ln m = 2 artanh((m - 1) / (m + 1)) as a series."""
    bits = u.view(torch.int64)
    exponent = (bits >> 52) - 1023
    m = ((bits & (2**52 - 1)) | (1023 << 52)).view(torch.float64)
    high = m > LOG_SPLIT
    m = torch.where(high, m * 0.5, m)
    exponent = exponent + high
    s = (m - 1.0) / (m + 1.0)
    square = s * s
    series = torch.full_like(s, 1.0 / (2 * LOG_TERMS + 1))
    for k in range(LOG_TERMS - 1, -1, -1):
        series.mul_(square).add_(1.0 / (2 * k + 1))
    return exponent.double() * math.log(2.0) + (s * 2.0) * series


def _cos_sin(b: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of 2 pi (b + 1/2) / 2^32: Taylor's series around the nearest multiple of a quarter turn."""
    quarter = (b + 2**29) >> 30
    angle = ((b - (quarter << 30)).double() + 0.5) * (2.0 * math.pi * 2.0**-32)
    square = -(angle * angle)
    cos, sin = torch.ones_like(angle), torch.ones_like(angle)
    for k in range(ANGLE_TERMS, 0, -1):
        cos.mul_(square).mul_(1.0 / ((2 * k - 1) * (2 * k))).add_(1.0)
        sin.mul_(square).mul_(1.0 / ((2 * k) * (2 * k + 1))).add_(1.0)
    sin.mul_(angle)
    odd = (quarter & 1) == 1
    cos_sign, sin_sign = 1.0 - ((quarter + 1) & 2).double(), 1.0 - (quarter & 2).double()
    return torch.where(odd, sin, cos) * cos_sign, torch.where(odd, cos, sin) * sin_sign
