"""Latents and the per-sample coefficients that multiply them.

A latent is (B, C, H, W) or (B, d), of any floating dtype.  A coefficient is a float, or a tensor of shape (B,) or ().
"""

import torch
from torch import Tensor

Coefficient = float | Tensor


def lift(latent: Tensor, name: str, *, like: Tensor | None = None) -> Tensor:
    """Return the latent in the dtype the arithmetic runs in: float64 stays, everything below becomes float32.

    Raises ValueError naming the argument when it is not a floating (B, ...) tensor, or not of the shape of `like`.
    """
    if not isinstance(latent, Tensor) or not latent.is_floating_point() or latent.ndim < 2:
        raise ValueError(f"{name} must be a floating-point tensor of shape (B, C, H, W) or (B, d)")
    if like is not None and latent.shape != like.shape:
        raise ValueError(f"{name} has shape {tuple(latent.shape)}, expected {tuple(like.shape)}")
    return latent.to(torch.promote_types(latent.dtype, torch.float32))


def exact(value: Coefficient, name: str, latent: Tensor) -> Coefficient:
    """Return a coefficient ready for arithmetic with other coefficients: a float, or float64 of shape (B, 1, ...).

    float64, because alpha_s - alpha_t sigma_s / sigma_t is a difference of nearly equal numbers when s is close to t.
    Raises ValueError naming the argument when a tensor is neither (B,) nor ().
    """
    if not isinstance(value, Tensor):
        return float(value)
    if value.ndim == 0:
        return value.to(torch.float64)
    if value.shape != latent.shape[:1]:
        raise ValueError(f"{name} has shape {tuple(value.shape)}, expected ({latent.shape[0]},) or a number")
    return value.to(torch.float64).reshape(-1, *[1] * (latent.ndim - 1))


def times(coefficient: Coefficient, latent: Tensor) -> Tensor:
    """Return coefficient * latent in the latent's dtype."""
    if isinstance(coefficient, Tensor):
        coefficient = coefficient.to(latent.dtype)
    return coefficient * latent


def noise_ratio(sigma_s: Coefficient, sigma_t: Coefficient) -> Coefficient:
    """Return sigma_s / sigma_t; ValueError for a number sigma_t that is not above 0 (a tensor is not looked into)."""
    if not isinstance(sigma_t, Tensor) and not sigma_t > 0:
        raise ValueError(f"sigma_t must be above 0, got {sigma_t}")
    return sigma_s / sigma_t


def mean_square(latent: Tensor) -> Tensor:
    """Return ||latent||^2 / d of every sample, float64, shape (B, 1, ...).

    Halves are added to halves, so the order of additions depends on d alone: torch.sum's depends on the batch size and
    the number of threads, and a sample's bits would then depend on its batch mates.
    """
    total = latent.to(torch.float64).square().reshape(latent.shape[0], -1)
    size = total.shape[1]
    while total.shape[1] > 1:
        half = (total.shape[1] + 1) // 2
        total[:, : total.shape[1] - half] += total[:, half:]
        total = total[:, :half]
    return (total / size).reshape(-1, *[1] * (latent.ndim - 1))
