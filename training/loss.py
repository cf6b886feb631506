"""The loss of every method: Algorithm 1 on a batch, whose parts may have an objective each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.condition import GUIDANCE_PARTS
from diffusion.schedule import CosineSchedule, alpha_sigma_from_logsnr
from diffusion.variance import analytic_variance
from kernels import addim
from training.distance import distance, mean_square
from training.draws import normal, stratified_uniform
from training.objective import DISTILLING, Objective, ect_stage, part_sizes, teacher_steps
from training.target import columns, consistency_target
from training.times import Times, clean_times, ect_times, halved_times, sample_times

Network = Callable[[Tensor, Tensor, Tensor], Tensor]
"""f(z_t, logsnr_t, condition) -> v."""


def diffusion_loss(
    network: Network,
    schedule: CosineSchedule,
    x: Tensor,
    condition: Tensor,
    generator: torch.Generator,
    *,
    poolings: int = 0,
) -> Tensor:
    """Return each sample's v-loss (B,) at t ~ U(0, 1), stratified: mean squared error of v, at several scales if asked."""
    t = stratified_uniform(len(x), generator)
    eps = normal(x.shape, generator)
    z_t, logsnr, alpha, sigma = noised(schedule, t, x, eps)
    v = network(z_t, logsnr, condition).float()
    return mean_square(v - (alpha * eps - sigma * x), poolings)


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
    self_teacher: Network | None = None,
) -> Tensor:
    """Return each sample's loss (B,) of Algorithm 1 in a batch whose parts, in order, have an objective each.

    The parts are as large as the objectives' weights say.  Every network is evaluated on the whole batch at once; times,
    teacher steps and distances are each part's own.  `teacher` is needed by the methods that distil, self_teacher by tract.
    Raises ValueError when the batch cannot be parted so or the objectives ask the teacher for different things.
    """
    times = mixed_times(objectives, len(x), schedule=schedule, iteration=iteration, generator=generator)
    eps = normal(x.shape, generator)
    told = draw_guidance(objectives[0], len(x), generator)
    return loss_at(
        network,
        teacher,
        objectives,
        schedule,
        x,
        condition,
        times=times,
        eps=eps,
        told=told,
        self_teacher=self_teacher,
    )


def draw_guidance(objective: Objective, batch: int, generator: torch.Generator) -> Tensor | None:
    """Draw each image's w (B,), uniform in the objective's range, in thousandths; None where the objective has no range."""
    if objective.guidance_range is None:
        return None
    low, high = objective.guidance_range
    return ((low + (high - low) * stratified_uniform(batch, generator)) * GUIDANCE_PARTS).round().long()


def draw_times(
    objective: Objective, batch: int, *, schedule: CosineSchedule, iteration: int, generator: torch.Generator
) -> Times:
    """Draw the times of a batch of one objective: its method's law, stratified over the batch."""
    steps = objective.student_steps
    if objective.method == "diffusion":
        return clean_times(batch, generator)
    if objective.method == "pd":
        return halved_times(batch, student_steps=steps, generator=generator)
    if objective.method == "ect":
        shrink, stage = objective.ect_shrink, ect_stage(objective, iteration)
        return ect_times(batch, schedule=schedule, student_steps=steps, shrink=shrink, stage=stage, generator=generator)
    n_teacher = teacher_steps(objective, iteration)
    return sample_times(batch, student_steps=steps, n_teacher=n_teacher, generator=generator)


def mixed_times(
    objectives: Sequence[Objective],
    batch: int,
    *,
    schedule: CosineSchedule,
    iteration: int,
    generator: torch.Generator,
) -> Times:
    """Draw the times of a batch whose parts have an objective each.  Raises ValueError where it cannot be parted so."""
    parts = [
        draw_times(objective, size, schedule=schedule, iteration=iteration, generator=generator)
        for objective, size in zip(objectives, part_sizes(objectives, batch), strict=True)
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
    told: Tensor | None = None,
    self_teacher: Network | None = None,
) -> Tensor:
    """Return each sample's loss (B,) at these times with this noise, as `mixed_loss` does.

    told: the w (B,) that the student is told and the teacher guided by, in thousandths, where w is sampled.
    """
    asked = {
        (o.method, o.teacher_rule, o.x_var, o.eta, o.guidance, o.guidance_interval, o.guidance_range, o.teacher_told)
        for o in objectives
    }
    if len(asked) > 1:
        raise ValueError("objectives of one batch must agree in what they ask of the teacher")
    sizes = part_sizes(objectives, len(x))
    batch = _Batch(objectives[0], schedule, times, x, condition, told)
    logsnr_t, alpha, sigma = batch.at(times.t)
    z_t = alpha * x + sigma * eps
    with torch.no_grad():
        x_target = batch.target(z_t, network, teacher, self_teacher)
        v_target = (alpha * z_t - x_target) / sigma
    v_diff = network(z_t, logsnr_t, batch.condition_of_student).float() - v_target
    parts = zip(objectives, v_diff.split(sizes), sigma.flatten().split(sizes), strict=True)
    return torch.cat([distance(*part) for part in parts])


@dataclass(frozen=True)
class _Batch:
    """What the networks are asked about: images, conditions and times, and what is to be learnt of them."""

    objective: Objective
    schedule: CosineSchedule
    times: Times
    x: Tensor
    condition: Tensor
    told: Tensor | None

    @property
    def condition_of_student(self) -> Tensor:
        """The condition, and w where the student is told it."""
        return self.condition if self.told is None else torch.cat([self.condition, self.told[:, None]], dim=1)

    def at(self, time: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logsnr (B,), and alpha and sigma as (B, 1, 1, 1), in x's dtype and on its device."""
        logsnr = self.schedule.logsnr(time)
        alpha, sigma = (columns(value, self.x) for value in alpha_sigma_from_logsnr(logsnr))
        return logsnr.to(self.x), alpha, sigma

    def target(self, z_t: Tensor, network: Network, teacher: Network | None, self_teacher: Network | None) -> Tensor:
        """Return x_target: what the teacher, or the data, says at z_t, and at z_s whoever the method asks there."""
        method, times, x_teacher = self.objective.method, self.times, self.x
        x_var = torch.zeros(len(z_t), device=z_t.device)
        if method in DISTILLING:
            assert teacher is not None, "distillation needs a teacher"
            x_teacher, x_var = self._taught(teacher, z_t, times.t)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = (
            _like(self.schedule.alpha_sigma(at), z_t) for at in (times.t, times.s)
        )
        z_s = addim(x_teacher, z_t, x_var, alpha_t=alpha_t, sigma_t=sigma_t, alpha_s=alpha_s, sigma_s=sigma_s)
        x_var_ref = None
        if method == "diffusion":  # x_ref would have no weight
            x_ref = x_teacher
        elif method == "pd":
            assert teacher is not None
            x_ref, x_var_ref = self._taught(teacher, z_s, times.s)
        else:
            x_ref = self._said(self_teacher if method == "tract" and self_teacher else network, z_s)
        return consistency_target(
            self.schedule,
            times,
            z_t=z_t,
            x_ref=x_ref,
            x_teacher=x_teacher,
            x_var=x_var,
            z_s=z_s,
            x_var_ref=x_var_ref,
        )

    def _said(self, network: Network, z_s: Tensor) -> Tensor:
        """Return the student's, or its average's, x at z_s, with the dropout masks that it will have at z_t."""
        logsnr_s, alpha_s, sigma_s = self.at(self.times.s)
        # both evaluations draw their masks from one state of every device's generator
        with torch.random.fork_rng(devices=[z_s.device] if z_s.is_cuda else []):
            v_s = network(z_s, logsnr_s, self.condition_of_student).float()
        return alpha_s * z_s - sigma_s * v_s

    def _taught(self, teacher: Network, z: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """Return the teacher's x, guided, and aDDIM's x_var (B,), from the unguided conditional output (appendix A.1)."""
        objective, (logsnr, alpha, sigma) = self.objective, self.at(time)
        low, high = objective.guidance_interval
        w = torch.full_like(time, objective.guidance) if self.told is None else self.told.to(time) / GUIDANCE_PARTS
        w = columns(torch.where((low <= time) & (time <= high), w, 0.0), z)
        if objective.teacher_told:
            v = guided = teacher(z, logsnr, self.condition_of_student).float()
        elif objective.guidance or self.told is not None:
            both = torch.cat([self.condition, torch.zeros_like(self.condition)])
            v, v_uncond = teacher(z.repeat(2, 1, 1, 1), logsnr.repeat(2), both).float().chunk(2)
            guided = v + w * (v - v_uncond)
        else:
            v = guided = teacher(z, logsnr, self.condition).float()
        if objective.teacher_rule == "ddim":
            x_var = torch.zeros(len(z), device=z.device)
        elif objective.x_var == "analytic":
            x_var = analytic_variance(logsnr)
        else:
            x_var = objective.eta * (alpha * z - sigma * v - self.x).square().flatten(1).mean(1)
        return alpha * z - sigma * guided, x_var


def noised(schedule: CosineSchedule, t: Tensor, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return z_t, logsnr_t (B,), and alpha_t, sigma_t as (B, 1, 1, 1), in x's dtype and on its device."""
    logsnr = schedule.logsnr(t)
    alpha, sigma = (columns(value, x) for value in alpha_sigma_from_logsnr(logsnr))
    return alpha * x + sigma * eps, logsnr.to(x), alpha, sigma


def _like(values: tuple[Tensor, Tensor], like: Tensor) -> tuple[Tensor, Tensor]:
    return values[0].to(like), values[1].to(like)
