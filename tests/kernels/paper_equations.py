"""The paper's equations in NumPy float64, one image at a time, written down independently of the code under test."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def cosine(t: float) -> tuple[float, float]:
    """alpha_t and sigma_t of the plain cosine schedule."""
    return float(np.cos(np.pi / 2 * t)), float(np.sin(np.pi / 2 * t))


def ddim(x: Array, z_t: Array, alpha_t: float, sigma_t: float, alpha_s: float, sigma_s: float) -> Array:
    """Equation 4."""
    return alpha_s * x + (sigma_s / sigma_t) * (z_t - alpha_t * x)


def inv_ddim(z_s: Array, z_t: Array, alpha_t: float, sigma_t: float, alpha_s: float, sigma_s: float) -> Array:
    """Equation 5."""
    return (z_s - sigma_s / sigma_t * z_t) / (alpha_s - alpha_t * sigma_s / sigma_t)


def addim(x: Array, z_t: Array, x_var: float, alpha_t: float, sigma_t: float, alpha_s: float, sigma_s: float) -> Array:
    """Equation 14, with tr(Var[z_s|z_t]) from equation 13 and tr(Var[x|z_t]) = d x_var."""
    eps = (z_t - alpha_t * x) / sigma_t
    trace = (alpha_s - alpha_t * sigma_s / sigma_t) ** 2 * x.size * x_var
    return alpha_s * x + np.sqrt(sigma_s**2 + trace / np.sum(eps**2)) * eps


def ancestral(
    x: Array, z_t: Array, noise: Array, alpha_t: float, sigma_t: float, alpha_s: float, sigma_s: float
) -> Array:
    """A draw from q(z_s | z_t, x): the stochastic (DDPM) sampler."""
    between = alpha_t / alpha_s
    variance = sigma_t**2 - between**2 * sigma_s**2
    mean = between * sigma_s**2 / sigma_t**2 * z_t + alpha_s * variance / sigma_t**2 * x
    return mean + np.sqrt(variance * sigma_s**2 / sigma_t**2) * noise


def x_from_v(v: Array, z_t: Array, alpha_t: float, sigma_t: float) -> Array:
    """Solves z = alpha x + sigma eps, v = alpha eps - sigma x for x, by the determinant."""
    return (alpha_t * z_t - sigma_t * v) / (alpha_t**2 + sigma_t**2)


def to_bytes(x: Array) -> tuple[Array, NDArray[np.bool_]]:
    """Image levels 0..255 in (H, W, C) order, and which of them lie so near a tie that float32 may round either way."""
    level = np.clip((x + 1) * 127.5, 0, 255).transpose(1, 2, 0)
    return np.rint(level), np.abs(level - np.floor(level) - 0.5) < 2e-4
