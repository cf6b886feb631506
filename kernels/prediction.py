"""What a network predicts: x_hat, eps_hat and v_hat from one another, guided and clipped."""

from torch import Tensor

from kernels.latents import Coefficient, exact, lift, noise_ratio, times


def x_from_v(v: Tensor, z_t: Tensor, *, alpha_t: Coefficient, sigma_t: Coefficient) -> Tensor:
    """Return x_hat = alpha_t z_t - sigma_t v, shape of z_t, float32 (float64 if an input is).

    Latents (B, C, H, W) or (B, d), coefficients floats or (B,); ValueError on a mismatch of shapes.
    """
    z, v = lift(z_t, "z_t"), lift(v, "v", like=z_t)
    return times(exact(alpha_t, "alpha_t", z), z) - times(exact(sigma_t, "sigma_t", z), v)


def eps_from_v(v: Tensor, z_t: Tensor, *, alpha_t: Coefficient, sigma_t: Coefficient) -> Tensor:
    """Return eps_hat = sigma_t z_t + alpha_t v, without the division of (z_t - alpha_t x_hat) / sigma_t.

    Shapes, dtypes and errors as in `x_from_v`.
    """
    z, v = lift(z_t, "z_t"), lift(v, "v", like=z_t)
    return times(exact(sigma_t, "sigma_t", z), z) + times(exact(alpha_t, "alpha_t", z), v)


def v_from_x_eps(x: Tensor, eps: Tensor, *, alpha_t: Coefficient, sigma_t: Coefficient) -> Tensor:
    """Return v = alpha_t eps - sigma_t x.  Shapes, dtypes and errors as in `x_from_v`."""
    x, eps = lift(x, "x"), lift(eps, "eps", like=x)
    return times(exact(alpha_t, "alpha_t", x), eps) - times(exact(sigma_t, "sigma_t", x), x)


def guide(v_cond: Tensor, v_uncond: Tensor, w: Coefficient) -> Tensor:
    """Return v_cond + w (v_cond - v_uncond): classifier-free guidance, the same in x_hat and in v, which are linear.

    w = 0 is the conditional prediction.  w is a float or (B,); shapes, dtypes and errors as in `x_from_v`.
    """
    cond, uncond = lift(v_cond, "v_cond"), lift(v_uncond, "v_uncond", like=v_cond)
    return cond + times(exact(w, "w", cond), cond - uncond)


def clip_x(x_hat: Tensor, eps_hat: Tensor, *, alpha_t: Coefficient, sigma_t: Coefficient) -> tuple[Tensor, Tensor]:
    """Return x_hat clipped to [-1, 1] and the eps_hat that still explains z_t: eps + (alpha_t / sigma_t)(x - clipped).

    Where nothing is clipped eps_hat is untouched to the bit, unlike in (z_t - alpha_t x) / sigma_t, which loses all
    its digits at small t.  Needs sigma_t > 0; shapes, dtypes and errors as in `x_from_v`.
    """
    x, eps = lift(x_hat, "x_hat"), lift(eps_hat, "eps_hat", like=x_hat)
    clipped = x.clamp(-1.0, 1.0)
    ratio = noise_ratio(exact(alpha_t, "alpha_t", x), exact(sigma_t, "sigma_t", x))
    return clipped, eps + times(ratio, x - clipped)
