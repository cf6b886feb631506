"""The fused update that follows a wave: every sample of a batch goes from its own t to its own s by its own rule.

Every sampling rule is affine once x_hat is clipped,

    z_s = out_x * x_hat + out_eps * eps_hat + out_noise * noise,

so a rule is a row of numbers, and a wave a (B, 8) table of them on the device: nothing is read back to the host, and a
CUDA graph that holds a hop serves any mix of samples.
"""

from enum import IntEnum
from typing import Literal

import torch
from torch import Tensor

from kernels.backend import uses_triton
from kernels.latents import mean_square
from kernels.rules import MEAN_SQUARE_FLOOR


class Column(IntEnum):
    """The columns of a wave's coefficient table, float32 (B, 8)."""

    ALPHA_T = 0
    SIGMA_T = 1  # above 0
    OUT_X = 2  # DDIM, aDDIM: alpha_s
    OUT_EPS = 3  # DDIM, aDDIM: sigma_s
    Z_VAR = 4  # aDDIM: (alpha_s - alpha_t sigma_s / sigma_t)^2 x_var; 0 for every other rule
    OUT_NOISE = 5  # standard deviation of the fresh noise; 0 for deterministic rules
    GUIDANCE = 6  # w of classifier-free guidance; 0 is the conditional prediction
    CLIP = 7  # 1 clips x_hat to [-1, 1], 0 does not


def hop(
    z_t: Tensor, v: Tensor, coefficients: Tensor, *, v_uncond: Tensor | None = None, noise: Tensor | None = None
) -> Tensor:
    """Return z_s of every sample of a wave, a new float32 tensor of z_t's shape (equations 4 and 14 in one).

    z_t: float32 (B, ...).  v, v_uncond: z_t's shape, float32, float16 or bfloat16.  noise: float32, z_t's shape.
    coefficients: float32 (B, 8), columns as in `Column`.  All on one device; all arithmetic is float32, aDDIM's norm
    float64, with ||eps_hat||^2 / d at least 1e-8.

        v       <- v + w (v - v_uncond)                      rows with w != 0, if v_uncond is given
        x_hat   =  alpha_t z_t - sigma_t v,  eps_hat = sigma_t z_t + alpha_t v
        x_hat, eps_hat <- clip_x(x_hat, eps_hat)             rows with clip != 0
        out_eps <- sqrt(out_eps^2 + z_var d / ||eps_hat||^2) rows with z_var != 0
        z_s     =  out_x x_hat + out_eps eps_hat (+ out_noise noise: rows with out_noise != 0, if noise is given)

    A sample's bits do not depend on the rest of its wave, nor on v_uncond or noise being given where its row wants
    neither (those rows are never used and may hold anything).  Registers no gradient: sampling only.
    Raises ValueError naming the argument whose shape, dtype or device does not fit.
    """
    _check(z_t, v, coefficients, v_uncond, noise)
    return torch.ops.stepdial.hop(z_t, v, coefficients, v_uncond, noise)


def last_hop(
    z_t: Tensor, v: Tensor, coefficients: Tensor, *, v_uncond: Tensor | None = None, noise: Tensor | None = None
) -> Tensor:
    """Return the wave's images, uint8 (B, H, W, C): `hop`, then [-1, 1] -> 0..255, halves to even, the rest clamped.

    Arguments and errors as in `hop`, z_t being (B, C, H, W).  A value that is not a number becomes 0.
    """
    _check(z_t, v, coefficients, v_uncond, noise)
    if z_t.ndim != 4:
        raise ValueError(f"z_t has shape {tuple(z_t.shape)}, expected (B, C, H, W)")
    return torch.ops.stepdial.last_hop(z_t, v, coefficients, v_uncond, noise)


def _check(z_t: Tensor, v: Tensor, coefficients: Tensor, v_uncond: Tensor | None, noise: Tensor | None) -> None:
    float32, network = (torch.float32,), (torch.float32, torch.float16, torch.bfloat16)
    if z_t.ndim < 2:
        raise ValueError(f"z_t has shape {tuple(z_t.shape)}, expected (B, C, H, W) or (B, d)")
    for name, tensor, shape, dtypes in (
        ("z_t", z_t, z_t.shape, float32),
        ("v", v, z_t.shape, network),
        ("coefficients", coefficients, (z_t.shape[0], len(Column)), float32),
        ("v_uncond", v_uncond, z_t.shape, network),
        ("noise", noise, z_t.shape, float32),
    ):
        if tensor is None:
            continue
        if tuple(tensor.shape) != tuple(shape):
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(shape)}")
        if tensor.dtype not in dtypes:
            raise ValueError(f"{name} is {tensor.dtype}, expected {' or '.join(map(str, dtypes))}")
        if tensor.device != z_t.device:
            raise ValueError(f"{name} is on {tensor.device}, z_t on {z_t.device}")


@torch.library.custom_op("stepdial::hop", mutates_args=())
def _hop(z_t: Tensor, v: Tensor, coefficients: Tensor, v_uncond: Tensor | None, noise: Tensor | None) -> Tensor:
    if uses_triton(z_t):
        from kernels import wave_triton  # here, so that this file imports where Triton is not installed

        return wave_triton.hop(z_t, v, coefficients, v_uncond, noise)
    return plain_hop(z_t, v, coefficients, v_uncond, noise)


@_hop.register_fake
def _(z_t: Tensor, v: Tensor, coefficients: Tensor, v_uncond: Tensor | None, noise: Tensor | None) -> Tensor:
    return torch.empty_like(z_t, memory_format=torch.contiguous_format)


@torch.library.custom_op("stepdial::last_hop", mutates_args=())
def _last_hop(z_t: Tensor, v: Tensor, coefficients: Tensor, v_uncond: Tensor | None, noise: Tensor | None) -> Tensor:
    if uses_triton(z_t):
        from kernels import wave_triton

        return wave_triton.last_hop(z_t, v, coefficients, v_uncond, noise)
    return plain_last_hop(z_t, v, coefficients, v_uncond, noise)


@_last_hop.register_fake
def _(z_t: Tensor, v: Tensor, coefficients: Tensor, v_uncond: Tensor | None, noise: Tensor | None) -> Tensor:
    batch, channels, height, width = z_t.shape
    return z_t.new_empty((batch, height, width, channels), dtype=torch.uint8)


def plain_hop(z_t: Tensor, v: Tensor, coefficients: Tensor, v_uncond: Tensor | None, noise: Tensor | None) -> Tensor:
    """Return what `hop` does, in plain PyTorch: no fused multiply-adds, as in the Triton kernel."""
    table = coefficients.reshape(*coefficients.shape, *[1] * (z_t.ndim - 1))
    alpha_t, sigma_t, out_x, out_eps, z_var, out_noise, w, clip = table.unbind(1)
    z, v = z_t.contiguous(), v.float()
    if v_uncond is not None and (guided := _wanted(w)):
        v = _chosen(guided, w, v + w * (v - v_uncond.float()), v)
    x, eps = (alpha_t * z).sub_(sigma_t * v), (sigma_t * z).add_(alpha_t * v)
    if clips := _wanted(clip):
        clipped = x.clamp(-1.0, 1.0)
        eps = _chosen(clips, clip, (x - clipped).mul_(alpha_t / sigma_t).add_(eps), eps)
        x = _chosen(clips, clip, clipped, x)
    if adds := _wanted(z_var):
        mean = mean_square(eps)
        mean = torch.where(mean > MEAN_SQUARE_FLOOR, mean, MEAN_SQUARE_FLOOR)
        adjusted = torch.sqrt(out_eps.double() * out_eps.double() + z_var.double() / mean).float()
        out_eps = _chosen(adds, z_var, adjusted, out_eps)
    z_s = x.mul_(out_x).add_(eps.mul_(out_eps))
    if noise is not None and (noisy := _wanted(out_noise)):
        z_s = _chosen(noisy, out_noise, z_s + out_noise * noise, z_s)
    return z_s.contiguous()


Wanted = Literal["some", "all"]


def _wanted(column: Tensor) -> Wanted | None:
    """Return by which rows a thing is wanted, None for none.  On a GPU nobody looks, which would wait for the device."""
    if not column.is_cpu:
        return "some"
    rows = [value != 0.0 for value in column.flatten().tolist()]
    return "all" if all(rows) else "some" if any(rows) else None


def _chosen(wanted: Wanted, column: Tensor, changed: Tensor, kept: Tensor) -> Tensor:
    """Return what is changed in the rows that want it."""
    return changed if wanted == "all" else torch.where(column != 0, changed, kept)


def plain_last_hop(
    z_t: Tensor, v: Tensor, coefficients: Tensor, v_uncond: Tensor | None, noise: Tensor | None
) -> Tensor:
    """Return what `last_hop` does, in plain PyTorch."""
    level = plain_hop(z_t, v, coefficients, v_uncond, noise).mul_(127.5).add_(127.5)
    level = level.clamp_(0.0, 255.0).nan_to_num_(0.0).round_()
    return level.to(torch.uint8).permute(0, 2, 3, 1).contiguous()
