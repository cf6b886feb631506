"""`target_distance` and its gradient as Triton kernels: one program takes a sample's norms, many write its gradient."""

# Kernels annotate only their compile-time arguments: Triton reads the annotations itself.
# mypy: allow-incomplete-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.backend import aligned
from kernels.rules import MEAN_SQUARE_FLOOR
from kernels.target import TargetColumn

BLOCK, WARPS = 2048, 8
COLUMNS = tl.constexpr(len(TargetColumn))
ALPHA_T = tl.constexpr(int(TargetColumn.ALPHA_T))
SIGMA_T = tl.constexpr(int(TargetColumn.SIGMA_T))
LAMBDA = tl.constexpr(int(TargetColumn.LAMBDA))
SLOPE = tl.constexpr(int(TargetColumn.SLOPE))
SIGMA_S = tl.constexpr(int(TargetColumn.SIGMA_S))
Z_VAR = tl.constexpr(int(TargetColumn.Z_VAR))
FLOOR = tl.constexpr(MEAN_SQUARE_FLOOR)


@triton.jit
def _eps_hat(z_ptr, x_teacher_ptr, row, place, mask):
    z = tl.load(z_ptr + place, mask=mask, other=0.0)
    x_teacher = tl.load(x_teacher_ptr + place, mask=mask, other=0.0)
    return tl.div_rn(z - tl.load(row + ALPHA_T) * x_teacher, tl.load(row + SIGMA_T)), z, x_teacher


@triton.jit
def _v_diff(v_ptr, z_ptr, x_ref_ptr, x_teacher_ptr, row, excess, place, mask):
    """v - v_target of some elements of a sample, float32; 0 outside the mask."""
    eps_hat, z, x_teacher = _eps_hat(z_ptr, x_teacher_ptr, row, place, mask)
    x_ref = tl.load(x_ref_ptr + place, mask=mask, other=0.0)
    v = tl.load(v_ptr + place, mask=mask, other=0.0).to(tl.float32)
    x_target = x_ref + tl.load(row + LAMBDA) * (x_teacher - x_ref)
    x_target = x_target + tl.load(row + SLOPE) * excess * eps_hat
    return v - tl.div_rn(tl.load(row + ALPHA_T) * z - x_target, tl.load(row + SIGMA_T))


@triton.jit
def target_distance_kernel(
    v_ptr,
    z_ptr,
    x_ref_ptr,
    x_teacher_ptr,
    coefficients_ptr,
    distance_ptr,
    facts_ptr,
    epsilon,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The distance of one sample, and what its gradient needs."""
    sample = tl.program_id(0).to(tl.int64)
    row = coefficients_ptr + sample * COLUMNS
    z_var = tl.load(row + Z_VAR).to(tl.float64)
    sigma_s = tl.load(row + SIGMA_S).to(tl.float64)
    excess = z_var * 0.0
    if z_var != 0.0:
        squares = tl.zeros((BLOCK,), tl.float64)
        for first in range(0, D, BLOCK):
            element = first + tl.arange(0, BLOCK)
            eps_hat, _, _ = _eps_hat(z_ptr, x_teacher_ptr, row, sample * D + element, element < D)
            squares += eps_hat.to(tl.float64) * eps_hat.to(tl.float64)
        floor = tl.full((), FLOOR, tl.float64)
        energy = tl.sum(squares, axis=0) / D
        added = z_var / tl.where(energy > floor, energy, floor)
        excess = added / (tl.sqrt(sigma_s * sigma_s + added) + sigma_s) / sigma_s
    squares = tl.zeros((BLOCK,), tl.float64)
    for first in range(0, D, BLOCK):
        element = first + tl.arange(0, BLOCK)
        place = sample * D + element
        apart = _v_diff(v_ptr, z_ptr, x_ref_ptr, x_teacher_ptr, row, excess.to(tl.float32), place, element < D)
        squares += apart.to(tl.float64) * apart.to(tl.float64)
    root = tl.sqrt(tl.sum(squares, axis=0) / D + epsilon * epsilon)
    tl.store(distance_ptr + sample, (root - epsilon).to(tl.float32))
    tl.store(facts_ptr + sample * 2, excess.to(tl.float32))
    tl.store(facts_ptr + sample * 2 + 1, (1.0 / (root * D)).to(tl.float32))


@triton.jit
def target_gradient_kernel(
    gradient_ptr,
    v_ptr,
    z_ptr,
    x_ref_ptr,
    x_teacher_ptr,
    coefficients_ptr,
    facts_ptr,
    d_v_ptr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The gradient of one block of one sample's v."""
    sample = tl.program_id(0).to(tl.int64)
    row = coefficients_ptr + sample * COLUMNS
    element = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    place, mask = sample * D + element, element < D
    excess = tl.load(facts_ptr + sample * 2)
    scale = tl.load(gradient_ptr + sample) * tl.load(facts_ptr + sample * 2 + 1)
    apart = _v_diff(v_ptr, z_ptr, x_ref_ptr, x_teacher_ptr, row, excess, place, mask)
    tl.store(d_v_ptr + place, (scale * apart).to(d_v_ptr.dtype.element_ty), mask=mask)


def target_distance(
    v: Tensor, z_t: Tensor, x_ref: Tensor, x_teacher: Tensor, coefficients: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """Return what `kernels.target.plain_target_distance` does; arguments as there, already checked."""
    given = [aligned(tensor) for tensor in (v, z_t, x_ref, x_teacher, coefficients)]
    distance = torch.empty((len(v),), dtype=torch.float32, device=v.device)
    facts = torch.empty((len(v), 2), dtype=torch.float32, device=v.device)
    size, block, warps = _tiling(v)
    with torch.cuda.device_of(v):  # Triton launches on the current device
        target_distance_kernel[(len(v),)](
            *given, distance, facts, epsilon, size, block, num_warps=warps, enable_fp_fusion=False
        )
    return distance, facts


def target_gradient(
    gradient: Tensor, v: Tensor, z_t: Tensor, x_ref: Tensor, x_teacher: Tensor, coefficients: Tensor, facts: Tensor
) -> Tensor:
    """Return what `kernels.target.plain_target_gradient` does; arguments as there."""
    given = [aligned(tensor) for tensor in (gradient, v, z_t, x_ref, x_teacher, coefficients, facts)]
    d_v = torch.empty_like(given[1])
    size, block, warps = _tiling(v)
    with torch.cuda.device_of(v):
        target_gradient_kernel[len(v), triton.cdiv(size, block)](
            *given, d_v, size, block, num_warps=warps, enable_fp_fusion=False
        )
    return d_v


def _tiling(v: Tensor) -> tuple[int, int, int]:
    """Return a sample's elements, a block's, and its warps; float32 in 16 bytes a thread, 2,048 elements being 8 warps'."""
    size = v[0].numel()
    block = max(128, min(BLOCK, triton.next_power_of_2(size)))
    return size, block, max(1, block * WARPS // BLOCK)
