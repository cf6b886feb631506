"""Random training targets, with distance and gradient by training's own objective in float64."""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.schedule import CosineSchedule
from kernels.target import TargetColumn
from training.distance import distance
from training.objective import Objective
from training.target import consistency_target
from training.times import Times

EPSILON = 1e-3
SCHEDULE = CosineSchedule(image_resolution=32, noise_resolution=32)


@dataclass
class Target:
    """Arguments of `target_distance`, the gradient that comes down, and what should come of them."""

    given: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
    gradient: Tensor
    distance: Tensor
    d_v: Tensor


def make_target(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Target:
    """Eight samples at times of their own, half of them with an aDDIM teacher; v is exact in dtype."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=rng)

    batch = 8
    t_step = torch.linspace(0.0, 0.7, batch, dtype=torch.float64)
    t = t_step + 0.29
    s = t_step + 0.29 * torch.linspace(0.1, 0.9, batch, dtype=torch.float64)
    times = Times(t, s, t_step)
    x_var = torch.where(torch.arange(batch) % 2 == 1, 0.03, 0.0).double()
    v, z, x_ref, x_teacher = (normal(batch, *shape) for _ in range(4))
    v, gradient = v.to(dtype), normal(batch)

    (alpha_t, sigma_t), (alpha_s, sigma_s) = SCHEDULE.alpha_sigma(t), SCHEDULE.alpha_sigma(s)
    rho_t, rho_s, rho_step = (torch.exp(0.5 * SCHEDULE.logsnr(time)) for time in (t, s, t_step))
    table = torch.empty(batch, len(TargetColumn), dtype=torch.float64)
    table[:, TargetColumn.ALPHA_T], table[:, TargetColumn.SIGMA_T] = alpha_t, sigma_t
    table[:, TargetColumn.LAMBDA] = (rho_s - rho_t) / (rho_step - rho_t)
    table[:, TargetColumn.SLOPE], table[:, TargetColumn.SIGMA_S] = 1 / (rho_step - rho_t), sigma_s
    table[:, TargetColumn.Z_VAR] = (alpha_s - alpha_t * sigma_s / sigma_t) ** 2 * x_var

    leaf = v.double().requires_grad_()
    wide = [tensor.double() for tensor in (z, x_ref, x_teacher)]
    x_target = consistency_target(SCHEDULE, times, z_t=wide[0], x_ref=wide[1], x_teacher=wide[2], x_var=x_var)
    column = (-1, *[1] * len(shape))
    v_target = (alpha_t.view(column) * wide[0] - x_target) / sigma_t.view(column)
    found = distance(Objective(huber_epsilon=EPSILON), leaf - v_target, sigma_t)
    found.backward(gradient.double())
    return Target((v, z, x_ref, x_teacher, table.float()), gradient, found.detach(), leaf.grad)
