"""`norm` and its gradients as Triton kernels.

A program works on some whole rows of one sample, of all its channels; which rows depends on N and C alone, and no program
adds to another's result.  So a sample's bits do not depend on its batch, and gradients are the same in every run.
Groups reach over all rows of a sample: their statistics, and backwards their means, take a pass of their own, whose
partial results are put together in a fixed order.
"""

# Kernels annotate only their compile-time arguments: Triton reads the annotations itself.
# mypy: allow-incomplete-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.backend import aligned, rows_aligned
from kernels.norms import growth

TILE, WARP_ELEMENTS = 4096, 1024
"""Elements a program holds in registers at once, and how many of them are a warp's: 32 a thread."""
BACKWARD_WARP_ELEMENTS = 512
"""Backwards there is more to hold for each element."""
PASSES = 8
"""Tiles whose gradients a program sums before it writes the sums, which are of float32 and two a channel."""
SQRT_HALF = tl.constexpr(0.5**0.5)


@triton.jit
def _normed(x, stats_ptr, sample, channel, inside, eps, C: tl.constexpr, GROUP: tl.constexpr):
    """The normed tile, 0 outside, and 1 / sqrt(var + eps): of each row, or of each channel's group."""
    if GROUP == 0:
        mean = tl.sum(x, axis=1, keep_dims=True) / C
        centred = tl.where(inside, x - mean, 0.0)
        rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=1, keep_dims=True) / C + eps)
    else:
        place = stats_ptr + (sample * (C // GROUP) + channel // GROUP) * 2
        known = channel < C
        mean = tl.load(place, mask=known, other=0.0)[None, :]
        rstd = tl.load(place + 1, mask=known, other=0.0)[None, :]
        centred = tl.where(inside, x - mean, 0.0)
    return centred * rstd, rstd


@triton.jit
def _followed(normed, weight_ptr, bias_ptr, film_ptr, addend_ptr, film_row, place, inside, channel, C: tl.constexpr):
    """What comes before SiLU; by what it grows with the norm's value, (1, BLOCK); and that times the weight."""
    known = channel < C
    weight = tl.load(weight_ptr + channel, mask=known, other=0.0).to(tl.float32)[None, :]
    n = normed * weight
    grown = tl.full(weight.shape, 1.0, tl.float32)
    if bias_ptr is not None:
        n += tl.load(bias_ptr + channel, mask=known, other=0.0).to(tl.float32)[None, :]
    if addend_ptr is not None:
        grown = grown * SQRT_HALF
        n = (n + tl.load(addend_ptr + place, mask=inside, other=0.0).to(tl.float32)) * SQRT_HALF
    if film_ptr is not None:
        grown = 1.0 + tl.load(film_ptr + film_row + channel, mask=known, other=0.0).to(tl.float32)[None, :]
        n = n * grown + tl.load(film_ptr + film_row + C + channel, mask=known, other=0.0).to(tl.float32)[None, :]
    return n, grown, weight * grown


@triton.jit
def norm_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    film_ptr,
    addend_ptr,
    stats_ptr,
    out_ptr,
    film_stride,
    eps,
    N: tl.constexpr,
    C: tl.constexpr,
    GROUP: tl.constexpr,
    SILU: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """ROWS rows of one sample.  GROUP: channels in a group, whose statistics are at hand; 0 where each row has its own."""
    sample, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if GROUP > 0:
        part = tl.num_programs(1) - 1 - part  # backwards: the pass before has left its last rows in the cache
    row = part * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.arange(0, BLOCK)
    inside = (row < N) & (channel < C)[None, :]
    place = sample * N * C + row * C + channel[None, :]
    x = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
    normed, _ = _normed(x, stats_ptr, sample, channel, inside, eps, C, GROUP)
    film_row = sample * film_stride
    n, _, _ = _followed(normed, weight_ptr, bias_ptr, film_ptr, addend_ptr, film_row, place, inside, channel, C)
    if SILU:
        n = n / (1.0 + tl.exp(-n))
    tl.store(out_ptr + place, n.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def channel_statistics_kernel(
    x_ptr, partial_ptr, N: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """Mean, and sum of squared deviations from it, of every channel in ROWS rows of one sample; in two passes."""
    sample, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row = part * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.arange(0, BLOCK)
    inside = (row < N) & (channel < C)[None, :]
    x = tl.load(x_ptr + sample * N * C + row * C + channel[None, :], mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(x, axis=0) / tl.minimum(ROWS, N - part * ROWS)
    centred = tl.where(inside, x - mean[None, :], 0.0)
    place = partial_ptr + (sample * tl.num_programs(1) + part) * 2 * C + channel
    tl.store(place, mean, mask=channel < C)
    tl.store(place + C, tl.sum(centred * centred, axis=0), mask=channel < C)


@triton.jit
def group_statistics_kernel(
    partial_ptr,
    stats_ptr,
    eps,
    N: tl.constexpr,
    C: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
    PARTS_BLOCK: tl.constexpr,
    GROUP_BLOCK: tl.constexpr,
):
    """Mean and 1 / sqrt(var + eps) of one group of one sample, from those of its channels in each part."""
    sample, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    part = tl.arange(0, PARTS_BLOCK)[:, None]
    member = tl.arange(0, GROUP_BLOCK)[None, :]
    inside = (part < PARTS) & (member < GROUP)
    place = partial_ptr + (sample * PARTS + part) * 2 * C + group * GROUP + member
    count = tl.minimum(ROWS, N - part * ROWS)
    means = tl.load(place, mask=inside, other=0.0)
    mean = tl.sum(means * count) / (N * GROUP)
    apart = tl.where(inside, means - mean, 0.0)
    squares = tl.load(place + C, mask=inside, other=0.0) + apart * apart * count
    out = stats_ptr + (sample * tl.num_programs(1) + group) * 2
    tl.store(out, mean)
    tl.store(out + 1, 1.0 / tl.sqrt(tl.sum(squares) / (N * GROUP) + eps))


@triton.jit
def gradient_kernel(
    gradient_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    film_ptr,
    addend_ptr,
    stats_ptr,
    means_ptr,
    d_x_ptr,
    d_addend_ptr,
    sums_ptr,
    film_stride,
    eps,
    N: tl.constexpr,
    C: tl.constexpr,
    GROUP: tl.constexpr,
    SILU: tl.constexpr,
    ROWS: tl.constexpr,
    PASSES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradients of x and the addend, and sums over rows of the gradient before SiLU, of PASSES * ROWS rows of one sample.

    Whichever of d_x_ptr and sums_ptr is there is written.  Groups want their sums first: means_ptr has what comes of them.
    """
    sample, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if means_ptr is not None:
        part = tl.num_programs(1) - 1 - part  # backwards, as above
    channel = tl.arange(0, BLOCK)
    along = tl.zeros((ROWS, BLOCK), tl.float32)
    plain = tl.zeros((ROWS, BLOCK), tl.float32)
    for k in range(PASSES):
        row = (part * PASSES + k) * ROWS + tl.arange(0, ROWS)[:, None]
        inside = (row < N) & (channel < C)[None, :]
        place = sample * N * C + row * C + channel[None, :]
        x = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(gradient_ptr + place, mask=inside, other=0.0).to(tl.float32)
        normed, rstd = _normed(x, stats_ptr, sample, channel, inside, eps, C, GROUP)
        film_row = sample * film_stride
        n, grown, slope = _followed(
            normed, weight_ptr, bias_ptr, film_ptr, addend_ptr, film_row, place, inside, channel, C
        )
        if SILU:
            gate = 1.0 / (1.0 + tl.exp(-n))
            g = g * gate * (1.0 + n * (1.0 - gate))
        if sums_ptr is not None:
            along += g * normed
            plain += g
        if d_x_ptr is not None:
            h = g * slope
            if GROUP == 0:
                mean = tl.sum(h, axis=1, keep_dims=True) / C
                slant = tl.sum(h * normed, axis=1, keep_dims=True) / C
            else:
                known = channel < C
                means = means_ptr + sample * 2 * (C // GROUP) + channel // GROUP
                slant = tl.load(means, mask=known, other=0.0)[None, :]
                mean = tl.load(means + C // GROUP, mask=known, other=0.0)[None, :]
            d_x = rstd * (h - mean - normed * slant)
            tl.store(d_x_ptr + place, d_x.to(d_x_ptr.dtype.element_ty), mask=inside)
            if d_addend_ptr is not None:
                tl.store(d_addend_ptr + place, (g * grown).to(d_addend_ptr.dtype.element_ty), mask=inside)
    if sums_ptr is not None:
        out = sums_ptr + (sample * tl.num_programs(1) + part) * 2 * C + channel
        tl.store(out, tl.sum(along, axis=0), mask=channel < C)
        tl.store(out + C, tl.sum(plain, axis=0), mask=channel < C)


def norm(
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
    """Return what `kernels.norms.plain_norm` does; arguments as there."""
    batch, rows, channels = x.shape
    x, weight, bias, film, addend, stride = _ready(x, weight, bias, film, addend)
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    group = channels // groups if groups else 0
    tile, block, warps = tiling(rows, channels, WARP_ELEMENTS)
    options = {"num_warps": warps, "enable_fp_fusion": True}
    with torch.cuda.device_of(x):  # Triton launches on the current device
        stats = _statistics(x, groups, eps)
        norm_kernel[batch, triton.cdiv(rows, tile)](
            x, weight, bias, film, addend, stats, out, stride, eps, rows, channels, group, silu, tile, block, **options
        )
    return out, stats


def norm_backward(
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
    """Return what `kernels.norms.plain_norm_backward` does; arguments as there."""
    batch, rows, channels = x.shape
    gradient, (x, weight, bias, film, addend, stride) = aligned(gradient), _ready(x, weight, bias, film, addend)
    d_x = torch.empty_like(x)
    d_addend = None if addend is None else torch.empty_like(addend)
    group = channels // groups if groups else 0
    tile, block, warps = tiling(rows, channels, BACKWARD_WARP_ELEMENTS)
    passes = min(PASSES, triton.next_power_of_2(triton.cdiv(rows, tile)))
    parts = triton.cdiv(rows, tile * passes)
    partial = torch.empty((batch, parts, 2, channels), dtype=torch.float32, device=x.device)
    inputs = (gradient, x, weight, bias, film, addend, statistics)
    sizes = (stride, eps, rows, channels, group, silu, tile, passes, block)
    options = {"num_warps": warps, "enable_fp_fusion": True}
    with torch.cuda.device_of(x):
        if not groups:
            gradient_kernel[batch, parts](*inputs, None, d_x, d_addend, partial, *sizes, **options)
            sums = partial.sum(1)
        else:
            gradient_kernel[batch, parts](*inputs, None, None, None, partial, *sizes, **options)
            sums = partial.sum(1)
            grown = growth(film, addend)
            slope = weight.float() * (grown[:, None] if isinstance(grown, Tensor) else grown)
            means = (sums * slope).unflatten(2, (groups, group)).sum(3) / (rows * group)
            gradient_kernel[batch, parts](*inputs, means, d_x, d_addend, None, *sizes, **options)
    return d_x, x.new_empty((0,)) if d_addend is None else d_addend, sums


def _statistics(x: Tensor, groups: int, eps: float) -> Tensor:
    """Return mean and 1 / sqrt(var + eps) of every group, float32 (B, groups, 2); none (0,) where rows have their own."""
    batch, rows, channels = x.shape
    if not groups:
        return torch.empty((0,), dtype=torch.float32, device=x.device)
    tile, block, warps = tiling(rows, channels, WARP_ELEMENTS)
    parts, group = triton.cdiv(rows, tile), channels // groups
    partial = torch.empty((batch, parts, 2, channels), dtype=torch.float32, device=x.device)
    stats = torch.empty((batch, groups, 2), dtype=torch.float32, device=x.device)
    channel_statistics_kernel[batch, parts](
        x, partial, rows, channels, tile, block, num_warps=warps, enable_fp_fusion=True
    )
    padded = triton.next_power_of_2(parts), triton.next_power_of_2(group)
    warps = max(1, min(8, padded[0] * padded[1] // 256))
    group_statistics_kernel[batch, groups](
        partial, stats, eps, rows, channels, group, tile, parts, *padded, num_warps=warps, enable_fp_fusion=True
    )
    return stats


def tiling(rows: int, channels: int, warp_elements: int) -> tuple[int, int, int]:
    """Return rows and (padded) channels of a program's tile, and its warps; from the sample's shape alone."""
    block = triton.next_power_of_2(channels)
    tile = max(1, min(TILE // block, triton.next_power_of_2(rows)))
    return tile, block, max(1, min(16, tile * block // warp_elements))


def _ready(
    x: Tensor, weight: Tensor, bias: Tensor | None, film: Tensor | None, addend: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, int]:
    """Return the arguments as kernels want them in memory, and how far apart film's rows are."""
    film = None if film is None else rows_aligned(film)
    return (
        aligned(x),
        aligned(weight),
        None if bias is None else aligned(bias),
        film,
        None if addend is None else aligned(addend),
        0 if film is None else film.stride(0),
    )
