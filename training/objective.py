"""The training objective: diffusion, consistency training (CT) and consistency distillation (CD) by Algorithm 1.

Algorithm 1 walks from z_t one teacher step to z_s, from there with the student's own prediction to the segment's
boundary t_step, and asks which x at z_t would have led there.  With rho = alpha / sigma that walk is a convex
combination (docs/method.md; the literal walk is the tests' reference):

    lambda   = (rho_s - rho_t) / (rho_t_step - rho_t)
    x_target = (1 - lambda) x_ref + lambda x_teacher  [+ (kappa - 1) eps_hat / (rho_t_step - rho_t)  for aDDIM]

lambda = 1 next to the boundary: there the target is the teacher's x (CD) or the data (CT), which is the diffusion loss.
Every ambiguity of the paper is a field of `Objective`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from diffusion.schedule import CosineSchedule, alpha_sigma_from_logsnr
from diffusion.variance import analytic_variance
from kernels import addim
from kernels.rules import MEAN_SQUARE_FLOOR
from training.draws import normal, stratified_uniform

Network = Callable[[Tensor, Tensor, Tensor], Tensor]
"""f(z_t, logsnr_t, condition) -> v."""


class Objective(BaseModel):
    """What is learnt, with every choice the paper leaves open."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    method: Literal["diffusion", "ct", "cd"] = "cd"
    """diffusion trains a teacher; ct trains a student on data alone; cd distils a teacher."""
    student_steps: int = Field(default=1, ge=1, le=1024)
    """Number of segments, which is the number of sampling steps (ct, cd)."""
    teacher_steps_start: int = Field(default=64, ge=1)
    """N_teacher at iteration 0: teacher steps over the whole of [0, 1]."""
    teacher_steps_end: int = Field(default=1280, ge=1)
    """N_teacher when annealing ends."""
    anneal_iterations: int = Field(default=100_000, ge=0)
    """Iterations over which N_teacher goes, log-linearly, from start to end; 0 keeps it at the end value."""
    teacher_rule: Literal["addim", "ddim"] = "addim"
    """How the teacher steps from t to s (cd)."""
    x_var: Literal["sample", "analytic"] = "sample"
    """aDDIM's variance: eta * ||x_teacher - x||^2 / d of each sample (Algorithm 1), or 0.1 / (2 + SNR) (Algorithm 3)."""
    eta: float = Field(default=0.75, ge=0.0, le=1.0)
    """Fraction of the measured variance that aDDIM adds (xvar_frac); the analytic form has its own 0.1."""
    guidance: float = Field(default=0.0, ge=0.0)
    """Classifier-free guidance w baked into the student: x_cond + w (x_cond - x_uncond); x_var stays unguided (cd)."""
    distance: Literal["v_mean_huber", "snr1_x_huber", "v_mean_squared"] = "v_mean_huber"
    """v_mean_huber: sqrt(mean ||v_diff||^2 + epsilon^2) - epsilon, the weight SNR + 1 inside the norm; snr1_x_huber: the
    printed formula, (SNR + 1) times the same of x_diff; v_mean_squared: the plain v-loss."""
    huber_epsilon: float = Field(default=1e-4, gt=0.0)
    """epsilon of the pseudo-Huber distances."""


def teacher_steps(objective: Objective, iteration: int) -> int:
    """Return N_teacher(i) = exp(log start + clip(i / anneal, 0, 1) (log end - log start)), rounded (appendix A.1)."""
    done = 1.0 if objective.anneal_iterations == 0 else min(max(iteration / objective.anneal_iterations, 0.0), 1.0)
    start, end = math.log(objective.teacher_steps_start), math.log(objective.teacher_steps_end)
    return round(math.exp(start + done * (end - start)))


@dataclass(frozen=True)
class Times:
    """Where each sample of a batch stands: all float64 (B,), t_step <= s < t; s equals t_step exactly when n_rel is 1."""

    t: Tensor
    s: Tensor
    t_step: Tensor


def sample_times(batch: int, *, student_steps: int, n_teacher: int, generator: torch.Generator) -> Times:
    """Draw Algorithm 1's step ~ U{0, student_steps - 1} and n_rel ~ U{1, N_per_segment}, stratified over the batch.

    T, which the paper does not define, is N_per_segment * student_steps, so that every boundary is on the grid.  The
    pair is one flat grid index, so stratifying it is the same law with less noise.
    """
    per_segment = max(1, round(n_teacher / student_steps))
    total = per_segment * student_steps
    index = (stratified_uniform(batch, generator) * total).long().clamp_(max=total - 1)
    step, n_rel = index // per_segment, index % per_segment + 1
    grid = (step * per_segment + n_rel).double()
    return Times(t=grid / total, s=(grid - 1) / total, t_step=(step * per_segment).double() / total)


def consistency_target(
    schedule: CosineSchedule,
    times: Times,
    *,
    z_t: Tensor,
    x_ref: Tensor,
    x_teacher: Tensor,
    x_var: Tensor | float = 0.0,
) -> Tensor:
    """Return x_target (B, C, H, W) in float32 or better: Algorithm 1's invDDIM of DDIM, in closed form.

    x_ref: the student's x at z_s; x_teacher: the teacher's x at z_t (CD) or the data (CT); x_var: the per-dimension
    variance, eta inside, floats or (B,), 0 for a DDIM teacher.
    """
    rho_t, rho_s, rho_step = (torch.exp(0.5 * schedule.logsnr(time)) for time in (times.t, times.s, times.t_step))
    target = torch.lerp(x_ref, x_teacher, _columns((rho_s - rho_t) / (rho_step - rho_t), x_ref))
    # the part of aDDIM's z_s that plain DDIM lacks, (c - sigma_s) eps_hat with c^2 = sigma_s^2 + added, carried through
    # DDIM to the boundary and back; c - sigma_s is written without the cancellation, so it is exactly 0 without x_var
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.alpha_sigma(times.t), schedule.alpha_sigma(times.s)
    eps_hat = (z_t - _columns(alpha_t, z_t) * x_teacher) / _columns(sigma_t, z_t)
    energy = eps_hat.double().square().flatten(1).mean(1).clamp(min=MEAN_SQUARE_FLOOR)
    added = (alpha_s - alpha_t * sigma_s / sigma_t) ** 2 * x_var / energy
    excess = added / ((sigma_s**2 + added).sqrt() + sigma_s)
    return target + _columns(excess / (sigma_s * (rho_step - rho_t)), z_t) * eps_hat


def distance(objective: Objective, v_diff: Tensor, sigma_t: Tensor) -> Tensor:
    """Return each sample's loss (B,) from v_diff = v_hat - v_target; x_diff is sigma_t * v_diff, SNR + 1 is 1 / sigma_t^2.

    Norms are means over dimensions: only so is "a Huber epsilon of 1" the scaled squared loss that the paper says it is.
    """
    squared = v_diff.square().flatten(1).mean(1)
    if objective.distance == "v_mean_squared":
        return squared
    epsilon = objective.huber_epsilon
    if objective.distance == "snr1_x_huber":
        squared = squared * sigma_t**2
        return ((squared + epsilon**2).sqrt() - epsilon) / sigma_t**2
    return (squared + epsilon**2).sqrt() - epsilon


def diffusion_loss(
    network: Network, schedule: CosineSchedule, x: Tensor, condition: Tensor, generator: torch.Generator
) -> Tensor:
    """Return each sample's v-loss (B,) at t ~ U(0, 1), stratified: mean squared error of v."""
    t = stratified_uniform(len(x), generator)
    eps = normal(x.shape, generator)
    z_t, logsnr, alpha, sigma = _noised(schedule, t, x, eps)
    v = network(z_t, logsnr, condition).float()
    return (v - (alpha * eps - sigma * x)).square().flatten(1).mean(1)


def consistency_loss(
    network: Network,
    teacher: Network | None,
    objective: Objective,
    schedule: CosineSchedule,
    x: Tensor,
    condition: Tensor,
    *,
    iteration: int,
    generator: torch.Generator,
) -> Tensor:
    """Return each sample's loss (B,) of Algorithm 1.  `teacher` is needed for cd and unused for ct."""
    return mixed_loss(network, teacher, (objective,), schedule, x, condition, iteration=iteration, generator=generator)


def mixed_loss(
    network: Network,
    teacher: Network | None,
    objectives: Sequence[Objective],
    schedule: CosineSchedule,
    x: Tensor,
    condition: Tensor,
    *,
    iteration: int,
    generator: torch.Generator,
) -> Tensor:
    """Return each sample's loss (B,) of Algorithm 1 in a batch whose equal parts, in order, have an objective each.

    Every network is evaluated on the whole batch at once; times, teacher steps and distances are each part's own.
    Raises ValueError when the batch cannot be parted equally or the objectives ask the teacher for different things.
    """
    times = mixed_times(objectives, len(x), iteration=iteration, generator=generator)
    eps = normal(x.shape, generator)
    return loss_at(network, teacher, objectives, schedule, x, condition, times=times, eps=eps)


def mixed_times(objectives: Sequence[Objective], batch: int, *, iteration: int, generator: torch.Generator) -> Times:
    """Draw the times of a batch whose equal parts have an objective each.  Raises ValueError for unequal parts."""
    if batch % len(objectives):
        raise ValueError(f"a batch of {batch} cannot be parted equally among {len(objectives)} objectives")
    parts = [
        sample_times(
            batch // len(objectives),
            student_steps=objective.student_steps,
            n_teacher=teacher_steps(objective, iteration),
            generator=generator,
        )
        for objective in objectives
    ]
    return Times(*(torch.cat([getattr(part, name) for part in parts]) for name in ("t", "s", "t_step")))


def loss_at(
    network: Network,
    teacher: Network | None,
    objectives: Sequence[Objective],
    schedule: CosineSchedule,
    x: Tensor,
    condition: Tensor,
    *,
    times: Times,
    eps: Tensor,
) -> Tensor:
    """Return each sample's loss (B,) at these times with this noise, as `mixed_loss` does."""
    objective = objectives[0]
    if len({(o.method, o.teacher_rule, o.x_var, o.eta, o.guidance) for o in objectives}) > 1:
        raise ValueError("objectives of one batch must agree in what they ask of the teacher")
    z_t, logsnr_t, alpha, sigma = _noised(schedule, times.t, x, eps)
    with torch.no_grad():
        x_teacher, x_var = x, torch.zeros(len(x), device=x.device)
        if objective.method == "cd":
            assert teacher is not None, "distillation needs a teacher"
            x_teacher, x_var = _ask_teacher(teacher, objective, z_t, logsnr_t, condition, x, alpha, sigma)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = (_like(schedule.alpha_sigma(time), x) for time in (times.t, times.s))
        z_s = addim(x_teacher, z_t, x_var, alpha_t=alpha_t, sigma_t=sigma_t, alpha_s=alpha_s, sigma_s=sigma_s)
        logsnr_s = schedule.logsnr(times.s).to(x)
        # the same dropout masks for f(z_s, s) and f(z_t, t): both draw from one state of every device's generator
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            v_s = network(z_s, logsnr_s, condition).float()
        x_ref = _columns(alpha_s, z_s) * z_s - _columns(sigma_s, z_s) * v_s
        x_target = consistency_target(schedule, times, z_t=z_t, x_ref=x_ref, x_teacher=x_teacher, x_var=x_var)
        v_target = (alpha * z_t - x_target) / sigma
    v_diff = network(z_t, logsnr_t, condition).float() - v_target
    parts = zip(objectives, v_diff.chunk(len(objectives)), sigma.flatten().chunk(len(objectives)), strict=True)
    return torch.cat([distance(*part) for part in parts])


def _ask_teacher(
    teacher: Network,
    objective: Objective,
    z_t: Tensor,
    logsnr_t: Tensor,
    condition: Tensor,
    x: Tensor,
    alpha: Tensor,
    sigma: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the teacher's x, guided, and aDDIM's x_var (B,), from the unguided conditional output (appendix A.1)."""
    if objective.guidance:
        both = torch.cat([condition, torch.zeros_like(condition)])
        v, v_uncond = teacher(z_t.repeat(2, 1, 1, 1), logsnr_t.repeat(2), both).float().chunk(2)
        guided = v + objective.guidance * (v - v_uncond)
    else:
        v = guided = teacher(z_t, logsnr_t, condition).float()
    if objective.teacher_rule == "ddim":
        x_var = torch.zeros(len(x), device=x.device)
    elif objective.x_var == "analytic":
        x_var = analytic_variance(logsnr_t)
    else:
        x_var = objective.eta * (alpha * z_t - sigma * v - x).square().flatten(1).mean(1)
    return alpha * z_t - sigma * guided, x_var


def _noised(schedule: CosineSchedule, t: Tensor, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return z_t, logsnr_t (B,), and alpha_t, sigma_t as (B, 1, 1, 1), in x's dtype and on its device."""
    logsnr = schedule.logsnr(t)
    alpha, sigma = (_columns(value, x) for value in alpha_sigma_from_logsnr(logsnr))
    return alpha * x + sigma * eps, logsnr.to(x), alpha, sigma


def _columns(values: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, ..., 1) to multiply `like`, in its dtype and on its device."""
    return values.to(like).view(-1, *[1] * (like.dim() - 1))


def _like(values: tuple[Tensor, Tensor], like: Tensor) -> tuple[Tensor, Tensor]:
    return values[0].to(like), values[1].to(like)
