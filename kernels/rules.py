"""The update rules: DDIM, its inverse, and aDDIM (equations 4, 5 and 14 of the paper).

Latents are (B, C, H, W) or (B, d), any floating dtype; coefficients are floats or (B,) tensors, combined in float64.
The result has the shape of z_t and is float32, or float64 if an input latent is.  sigma_t must be above 0.
"""

import torch
from torch import Tensor

from kernels.latents import Coefficient, exact, lift, mean_square, noise_ratio, times

MEAN_SQUARE_FLOOR = 1e-8
"""||eps_hat||^2 / d is taken to be at least this, so that an all-zero eps_hat does not divide by zero."""


def ddim(
    x_hat: Tensor,
    z_t: Tensor,
    *,
    alpha_t: Coefficient,
    sigma_t: Coefficient,
    alpha_s: Coefficient,
    sigma_s: Coefficient,
) -> Tensor:
    """Return z_s = alpha_s x_hat + (sigma_s / sigma_t)(z_t - alpha_t x_hat) (equation 4).

    Computed as (alpha_s - alpha_t sigma_s / sigma_t) x_hat + (sigma_s / sigma_t) z_t (equation 11).
    Raises ValueError naming the argument whose shape does not fit, and for a number sigma_t <= 0.
    """
    x, z = lift(x_hat, "x_hat", like=z_t), lift(z_t, "z_t")
    ratio = noise_ratio(exact(sigma_s, "sigma_s", z), exact(sigma_t, "sigma_t", z))
    return times(exact(alpha_s, "alpha_s", z) - exact(alpha_t, "alpha_t", z) * ratio, x) + times(ratio, z)


def inv_ddim(
    z_s: Tensor, z_t: Tensor, *, alpha_t: Coefficient, sigma_t: Coefficient, alpha_s: Coefficient, sigma_s: Coefficient
) -> Tensor:
    """Return x = (z_s - (sigma_s/sigma_t) z_t) / (alpha_s - alpha_t sigma_s/sigma_t) (equation 5): ddim(x) = z_s.

    Not finite at s = t, where every x is an answer.  Near t = 1 the denominator is small: keep the latents float32.
    Raises ValueError naming the argument whose shape does not fit, and for a number sigma_t <= 0.
    """
    z_s, z = lift(z_s, "z_s", like=z_t), lift(z_t, "z_t")
    ratio = noise_ratio(exact(sigma_s, "sigma_s", z), exact(sigma_t, "sigma_t", z))
    slope = exact(alpha_s, "alpha_s", z) - exact(alpha_t, "alpha_t", z) * ratio
    difference = z_s - times(ratio, z)
    return difference / (slope.to(difference.dtype) if isinstance(slope, Tensor) else slope)


def addim(
    x_hat: Tensor,
    z_t: Tensor,
    x_var: Coefficient,
    *,
    alpha_t: Coefficient,
    sigma_t: Coefficient,
    alpha_s: Coefficient,
    sigma_s: Coefficient,
) -> Tensor:
    """Return z_s = alpha_s x_hat + sqrt(sigma_s^2 + (d / ||eps_hat||^2) z_var) eps_hat (equation 14, Algorithm 3).

    z_var = (alpha_s - alpha_t sigma_s / sigma_t)^2 x_var; x_var >= 0 is the variance per dimension of x given z_t, with
    eta already inside, a float or (B,).  The norm is one sample's, over all its d dimensions.
    With x_var = 0 this is `ddim` up to rounding.  At s = 0 it adds noise of variance x_var to x_hat: it is not x_hat.
    Raises ValueError naming the argument whose shape does not fit, and for a number sigma_t <= 0.
    """
    x, z = lift(x_hat, "x_hat", like=z_t), lift(z_t, "z_t")
    alpha_t, sigma_t = exact(alpha_t, "alpha_t", z), exact(sigma_t, "sigma_t", z)
    alpha_s, sigma_s = exact(alpha_s, "alpha_s", z), exact(sigma_s, "sigma_s", z)
    ratio = noise_ratio(sigma_s, sigma_t)
    eps = times(1.0 / sigma_t, z - times(alpha_t, x))
    z_var = (alpha_s - alpha_t * ratio) ** 2 * exact(x_var, "x_var", z)
    out_eps = torch.sqrt(sigma_s**2 + z_var / mean_square(eps).clamp_min(MEAN_SQUARE_FLOOR))
    return times(alpha_s, x) + times(out_eps, eps)
