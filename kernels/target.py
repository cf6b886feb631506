"""The training target and its distance in one pass: Algorithm 1's x_target in closed form, v_target, pseudo-Huber, gradient."""

from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from kernels.backend import uses_triton
from kernels.rules import MEAN_SQUARE_FLOOR


class TargetColumn(IntEnum):
    """The columns of a batch's coefficient table, float32 (B, 6), rho being alpha / sigma."""

    ALPHA_T = 0
    SIGMA_T = 1  # above 0
    LAMBDA = 2  # (rho_s - rho_t) / (rho_step - rho_t)
    SLOPE = 3  # 1 / (rho_step - rho_t)
    SIGMA_S = 4  # above 0 where Z_VAR is not 0
    Z_VAR = 5  # aDDIM's (alpha_s - alpha_t sigma_s / sigma_t)^2 x_var; 0 for a DDIM teacher


def target_distance(
    v: Tensor, z_t: Tensor, x_ref: Tensor, x_teacher: Tensor, coefficients: Tensor, *, epsilon: float
) -> Tensor:
    """Return how far each sample's v is from the training target, float32 (B,); differentiable with respect to v alone.

        eps_hat  = (z_t - alpha_t x_teacher) / sigma_t
        excess   = (sqrt(sigma_s^2 + z_var d / ||eps_hat||^2) - sigma_s) / sigma_s       0 where z_var is 0
        x_target = (1 - lambda) x_ref + lambda x_teacher + slope excess eps_hat
        distance = sqrt(||v - (alpha_t z_t - x_target) / sigma_t||^2 / d + epsilon^2) - epsilon

    v: (B, ...), float32, float16 or bfloat16; z_t, x_ref, x_teacher: float32 of v's shape; coefficients: float32 (B, 6),
    columns as in `TargetColumn`.  Arithmetic is float32, norms float64.  A sample's bits do not depend on the batch.
    Raises ValueError naming the argument whose shape, dtype or device does not fit.
    """
    for name, tensor, shape in (
        ("z_t", z_t, v.shape),
        ("x_ref", x_ref, v.shape),
        ("x_teacher", x_teacher, v.shape),
        ("coefficients", coefficients, (len(v), len(TargetColumn))),
    ):
        if tuple(tensor.shape) != tuple(shape):
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(shape)}")
        if tensor.dtype != torch.float32:
            raise ValueError(f"{name} is {tensor.dtype}, expected torch.float32")
        if tensor.device != v.device:
            raise ValueError(f"{name} is on {tensor.device}, v on {v.device}")
    distance, _ = torch.ops.stepdial.target_distance(v, z_t, x_ref, x_teacher, coefficients, epsilon)
    return distance


@torch.library.custom_op("stepdial::target_distance", mutates_args=())
def _target_distance(
    v: Tensor, z_t: Tensor, x_ref: Tensor, x_teacher: Tensor, coefficients: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """Return the distance, and for its gradient excess and 1 / (d sqrt(||v_diff||^2 / d + epsilon^2)), (B, 2)."""
    if uses_triton(v):
        from kernels import target_triton  # here, so that this file imports where Triton is not installed

        return target_triton.target_distance(v, z_t, x_ref, x_teacher, coefficients, epsilon)
    return plain_target_distance(v, z_t, x_ref, x_teacher, coefficients, epsilon)


@_target_distance.register_fake
def _(
    v: Tensor, z_t: Tensor, x_ref: Tensor, x_teacher: Tensor, coefficients: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    return z_t.new_empty((len(v),)), z_t.new_empty((len(v), 2))


@torch.library.custom_op("stepdial::target_gradient", mutates_args=())
def _target_gradient(
    gradient: Tensor, v: Tensor, z_t: Tensor, x_ref: Tensor, x_teacher: Tensor, coefficients: Tensor, facts: Tensor
) -> Tensor:
    if uses_triton(v):
        from kernels import target_triton

        return target_triton.target_gradient(gradient, v, z_t, x_ref, x_teacher, coefficients, facts)
    return plain_target_gradient(gradient, v, z_t, x_ref, x_teacher, coefficients, facts)


@_target_gradient.register_fake
def _(
    gradient: Tensor, v: Tensor, z_t: Tensor, x_ref: Tensor, x_teacher: Tensor, coefficients: Tensor, facts: Tensor
) -> Tensor:
    return torch.empty_like(v, memory_format=torch.contiguous_format)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:5], output[1])


def _backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    d_v = torch.ops.stepdial.target_gradient(gradient, *ctx.saved_tensors)
    return d_v, None, None, None, None, None


_target_distance.register_autograd(_backward, setup_context=_keep)


def plain_target_distance(
    v: Tensor, z_t: Tensor, x_ref: Tensor, x_teacher: Tensor, coefficients: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """Return what `target_distance` does, in plain PyTorch, and what its gradient needs."""
    table = coefficients.double()
    sigma_s, z_var = table[:, TargetColumn.SIGMA_S], table[:, TargetColumn.Z_VAR]
    eps_hat = _eps_hat(z_t, x_teacher, coefficients)
    energy = eps_hat.double().square().flatten(1).mean(1).clamp(min=MEAN_SQUARE_FLOOR)
    added = z_var / energy
    excess = torch.where(z_var != 0, added / ((sigma_s**2 + added).sqrt() + sigma_s) / sigma_s, 0.0)
    squared = _v_diff(v, z_t, x_ref, x_teacher, coefficients, excess.float()).double().square().flatten(1).mean(1)
    root = (squared + epsilon**2).sqrt()
    return (root - epsilon).float(), torch.stack([excess, 1.0 / (root * v[0].numel())], dim=1).float()


def plain_target_gradient(
    gradient: Tensor, v: Tensor, z_t: Tensor, x_ref: Tensor, x_teacher: Tensor, coefficients: Tensor, facts: Tensor
) -> Tensor:
    """Return the gradient of v written out, in plain PyTorch."""
    excess, weight = facts.unbind(1)
    v_diff = _v_diff(v, z_t, x_ref, x_teacher, coefficients, excess)
    return (_columns(gradient * weight, v) * v_diff).to(v.dtype).contiguous()


def _eps_hat(z_t: Tensor, x_teacher: Tensor, coefficients: Tensor) -> Tensor:
    alpha_t, sigma_t = (_columns(coefficients[:, at], z_t) for at in (TargetColumn.ALPHA_T, TargetColumn.SIGMA_T))
    return (z_t - alpha_t * x_teacher) / sigma_t


def _v_diff(v: Tensor, z_t: Tensor, x_ref: Tensor, x_teacher: Tensor, coefficients: Tensor, excess: Tensor) -> Tensor:
    alpha_t, sigma_t, lam, slope = (_columns(column, z_t) for column in coefficients.unbind(1)[:4])
    x_target = x_ref + lam * (x_teacher - x_ref)
    x_target = x_target + slope * _columns(excess, z_t) * _eps_hat(z_t, x_teacher, coefficients)
    return v.float() - (alpha_t * z_t - x_target) / sigma_t


def _columns(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.ndim - 1))
