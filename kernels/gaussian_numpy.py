"""`noise` on a CPU: the same operations in the same order as the plain version, in pieces that stay in the processor's cache.

NumPy's calls cost less than PyTorch's, which counts where a wave of one small image takes some hundred of them.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.gaussian import ANGLE_TERMS, LOG_SPLIT, LOG_TERMS
from kernels.philox import MASK, MULTIPLIERS, WEYL

COUNTERS = 8192
"""Counters worked on at once: an array of two words of 8 bytes of each fills 128 KiB."""

Words = NDArray[np.uint64]
Reals = NDArray[np.float64]
_ROUND = np.array(MULTIPLIERS, np.uint64)[:, None, None]
_STEP = np.array(WEYL, np.uint64)[:, None, None]
_MASK, _HALF = np.uint64(MASK), np.uint64(32)


def noise(seeds: Tensor, indices: Tensor, streams: Tensor, shape: Sequence[int]) -> Tensor:
    """Return what `kernels.noise` defines; seeds, indices, streams int64 (B,) on the CPU."""
    batch, size = len(seeds), math.prod(shape)
    blocks = (size + 3) // 4
    seed, index, stream = (part.numpy().astype(np.uint64)[:, None] for part in (seeds, indices, streams))
    out = np.empty((batch, blocks, 2, 2), np.float32)
    images = max(1, COUNTERS // max(blocks, 1))
    for first in range(0, batch, images):
        some = slice(first, first + images)
        key = np.stack([seed[some] & _MASK, seed[some] >> _HALF])
        for begin in range(0, blocks, COUNTERS):
            end = min(begin + COUNTERS, blocks)
            words = _philox(np.arange(begin, end, dtype=np.uint64), index[some], stream[some], key)
            # (pair, image, block, cos or sin) -> (image, block, pair, cos or sin)
            out[some, begin:end] = _normals(*words).transpose(2, 3, 1, 0)
    return torch.from_numpy(out.reshape(batch, -1)[:, :size].reshape(batch, *shape).copy())


def _philox(block: Words, index: Words, stream: Words, key: Words) -> tuple[Words, Words]:
    """Words r0 and r2, and r1 and r3, each (2, images, blocks); index, stream: (images, 1); key: (2, images, 1)."""
    shape = 2, len(index), len(block)
    even, odd = np.empty(shape, np.uint64), np.zeros(shape, np.uint64)
    even[0], even[1], odd[0] = block, stream, index
    for _ in range(10):
        product = even * _ROUND
        low = product & _MASK
        product >>= _HALF
        np.bitwise_xor(product[::-1], odd, out=even)
        even ^= key
        odd = low[::-1]
        key = (key + _STEP) & _MASK
    return even, odd


def _normals(a: Words, b: Words) -> Reals:
    """The radius times cos and times sin, (2, *a.shape)."""
    radius = _log((a.view(np.int64).astype(np.float64) + 0.5) * 2.0**-32)
    radius *= -2.0
    np.sqrt(radius, out=radius)
    normals = _cos_sin(b.astype(np.int64))
    normals *= radius
    return normals


def _log(u: Reals) -> Reals:
    bits = u.view(np.int64)
    exponent = (bits >> 52) - 1023
    m = ((bits & (2**52 - 1)) | (1023 << 52)).view(np.float64)
    high = m > LOG_SPLIT
    np.multiply(m, 0.5, out=m, where=high)
    exponent += high
    s = (m - 1.0) / (m + 1.0)
    square = s * s
    series = np.full_like(s, 1.0 / (2 * LOG_TERMS + 1))
    for k in range(LOG_TERMS - 1, -1, -1):
        series *= square
        series += 1.0 / (2 * k + 1)
    s *= 2.0
    series *= s
    return exponent * math.log(2.0) + series


def _cos_sin(b: NDArray[np.int64]) -> Reals:
    quarter = (b + 2**29) >> 30
    angle = ((b - (quarter << 30)).astype(np.float64) + 0.5) * (2.0 * math.pi * 2.0**-32)
    square = -(angle * angle)
    series = np.ones((2, *b.shape))
    for k in range(ANGLE_TERMS, 0, -1):
        series *= square
        series[0] *= 1.0 / ((2 * k - 1) * (2 * k))
        series[1] *= 1.0 / ((2 * k) * (2 * k + 1))
        series += 1.0
    series[1] *= angle
    odd = (quarter & 1) == 1
    turned = np.where(odd, series[::-1], series)
    turned[0] *= 1.0 - ((quarter + 1) & 2)
    turned[1] *= 1.0 - (quarter & 2)
    return turned
