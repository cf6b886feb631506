"""The target in closed form: Algorithm 1's way to the segment's boundary and back."""

import torch
from torch import Tensor

from diffusion.schedule import CosineSchedule
from kernels.rules import MEAN_SQUARE_FLOOR
from training.times import Times


def consistency_target(
    schedule: CosineSchedule,
    times: Times,
    *,
    z_t: Tensor,
    x_ref: Tensor,
    x_teacher: Tensor,
    x_var: Tensor | float = 0.0,
    z_s: Tensor | None = None,
    x_var_ref: Tensor | None = None,
) -> Tensor:
    """Return x_target (B, C, H, W) in float32 or better: Algorithm 1's invDDIM of DDIM, in closed form.

    x_ref: the student's x at z_s; x_teacher: the teacher's x at z_t (CD) or the data (CT); x_var: the per-dimension
    variance, eta inside, floats or (B,), 0 for a DDIM teacher.  x_var_ref with z_s: the same of a second step that is
    aDDIM too, from s to t_step (progressive distillation); one that ends at 0 returns x_ref, as in sampling.
    """
    rho_t, rho_s, rho_step = (torch.exp(0.5 * schedule.logsnr(time)) for time in (times.t, times.s, times.t_step))
    target = torch.lerp(x_ref, x_teacher, columns((rho_s - rho_t) / (rho_step - rho_t), x_ref))
    excess, eps_hat = _addim_excess(schedule, times.t, times.s, z_t, x_teacher, x_var)
    target = target + columns(excess / (rho_step - rho_t), z_t) * eps_hat
    if x_var_ref is None:
        return target
    assert z_s is not None
    excess, eps_hat = _addim_excess(schedule, times.s, times.t_step, z_s, x_ref, x_var_ref)
    excess = torch.where(times.t_step > 0, excess, 0.0)
    return target + columns(excess / (rho_step - rho_t), z_t) * eps_hat


def _addim_excess(
    schedule: CosineSchedule, t: Tensor, s: Tensor, z_t: Tensor, x_hat: Tensor, x_var: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Return what an aDDIM step's z_s / sigma_s has that DDIM's lacks: the factor (c - sigma_s) / sigma_s (B,), and eps_hat.

    c^2 = sigma_s^2 + added.  c - sigma_s is written without the cancellation, so it is exactly 0 without x_var.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
    eps_hat = (z_t - columns(alpha_t, z_t) * x_hat) / columns(sigma_t, z_t)
    energy = eps_hat.double().square().flatten(1).mean(1).clamp(min=MEAN_SQUARE_FLOOR)
    added = (alpha_s - alpha_t * sigma_s / sigma_t) ** 2 * x_var / energy
    return added / ((sigma_s**2 + added).sqrt() + sigma_s) / sigma_s, eps_hat


def columns(values: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, ..., 1) to multiply `like`, in its dtype and on its device."""
    return values.to(like).view(-1, *[1] * (like.dim() - 1))
