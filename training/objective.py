"""The training objective: every method here is a setting of Algorithm 1's loss.

Algorithm 1 walks from z_t one teacher step to z_s, from there with the student's own prediction to the segment's
boundary t_step, and asks which x at z_t would have led there.  With rho = alpha / sigma that walk is a convex
combination (docs/method.md; the literal walk is the tests' reference):

    lambda   = (rho_s - rho_t) / (rho_t_step - rho_t)
    x_target = (1 - lambda) x_ref + lambda x_teacher  [+ (kappa - 1) eps_hat / (rho_t_step - rho_t)  for aDDIM]

lambda = 1 next to the boundary: there the target is the teacher's x (CD) or the data (CT), which is the diffusion loss.
The methods differ in who says x_teacher at z_t and x_ref at z_s, and in the law of t, s and t_step (training/times.py):

    method       x_teacher    x_ref              t, s
    diffusion    data         -                  s = t_step: lambda = 1
    ct           data         student            teacher steps of a segment
    ect          data         student            s from Easy Consistency Tuning's schedule
    cd           teacher      student            teacher steps of a segment
    tract        teacher      student's average  teacher steps of a segment
    pd           teacher      teacher            top and middle of a segment

Every ambiguity of the paper is a field of `Objective`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from diffusion.condition import GUIDANCE_PARTS
from diffusion.schedule import CosineSchedule, alpha_sigma_from_logsnr
from diffusion.variance import analytic_variance
from kernels import addim
from kernels.rules import MEAN_SQUARE_FLOOR
from training.draws import normal, stratified_uniform
from training.times import Times, clean_times, ect_times, halved_times, sample_times

Network = Callable[[Tensor, Tensor, Tensor], Tensor]
"""f(z_t, logsnr_t, condition) -> v."""
Method = Literal["diffusion", "ct", "ect", "cd", "tract", "pd"]
DISTILLING = ("cd", "tract", "pd")
"""Methods that learn from a teacher; the others learn from data alone."""


class Objective(BaseModel):
    """What is learnt, with every choice the paper leaves open."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    method: Method = "cd"
    """diffusion trains a teacher; ct and ect (Easy Consistency Tuning) train a student on data alone; cd, tract (transitive
    closure, the student's average says x_ref) and pd (progressive distillation, two teacher steps become one) distil a teacher."""
    student_steps: int = Field(default=1, ge=1, le=1024)
    """Number of segments, which is the number of sampling steps (all but diffusion)."""
    teacher_steps_start: int = Field(default=64, ge=1)
    """N_teacher at iteration 0: teacher steps over the whole of [0, 1] (ct, cd, tract)."""
    teacher_steps_end: int = Field(default=1280, ge=1)
    """N_teacher when annealing ends."""
    anneal_iterations: int = Field(default=100_000, ge=0)
    """Iterations over which N_teacher goes, log-linearly, from start to end, or over which ect passes its stages; 0 keeps it
    at the end."""
    ect_shrink: float = Field(default=2.0, gt=1.0)
    """ect's q: by what the distance from t to s is divided at each stage, relative to that to the boundary."""
    ect_stages: int = Field(default=8, ge=1, le=32)
    """Stages that ect passes, equally long."""
    self_teacher_decay: float = Field(default=0.5, ge=0.0, lt=1.0)
    """Decay of the average of the student's weights that says x_ref (tract); 0 is the student itself, as in cd."""
    teacher_rule: Literal["addim", "ddim"] = "addim"
    """How the teacher steps: from t to s, and with pd from s to t_step too."""
    x_var: Literal["sample", "analytic"] = "sample"
    """aDDIM's variance: eta * ||x_teacher - x||^2 / d of each sample (Algorithm 1), or 0.1 / (2 + SNR) (Algorithm 3)."""
    eta: float = Field(default=0.75, ge=0.0, le=1.0)
    """Fraction of the measured variance that aDDIM adds (xvar_frac); the analytic form has its own 0.1."""
    guidance: float = Field(default=0.0, ge=0.0)
    """Classifier-free guidance w baked into the student: x_cond + w (x_cond - x_uncond); x_var stays unguided."""
    guidance_range: tuple[float, float] | None = None
    """Range from which each image's w is drawn, of which the student is told; instead of one w that is baked in."""
    teacher_told: bool = False
    """Whether the network that is distilled is itself a student that is told w, and guided so."""
    distance: Literal["v_mean_huber", "snr1_x_huber", "v_mean_squared"] = "v_mean_huber"
    """v_mean_huber: sqrt(mean ||v_diff||^2 + epsilon^2) - epsilon, the weight SNR + 1 inside the norm; snr1_x_huber: the
    printed formula, (SNR + 1) times the same of x_diff; v_mean_squared: the plain v-loss."""
    huber_epsilon: float = Field(default=1e-4, gt=0.0)
    """epsilon of the pseudo-Huber distances."""
    poolings: int = Field(default=0, ge=0, le=8)
    """Multiscale loss: how many times differences are also compared after another 2x2 average pool; 0 is the plain loss."""
    weight: int = Field(default=1, ge=1)
    """Parts of a batch of several objectives that are this one's."""


def teacher_steps(objective: Objective, iteration: int) -> int:
    """Return N_teacher(i) = exp(log start + clip(i / anneal, 0, 1) (log end - log start)), rounded (appendix A.1)."""
    start, end = math.log(objective.teacher_steps_start), math.log(objective.teacher_steps_end)
    return round(math.exp(start + _annealed(objective, iteration) * (end - start)))


def ect_stage(objective: Objective, iteration: int) -> int:
    """Return the stage of Easy Consistency Tuning at an iteration, from 1 to the last."""
    return min(objective.ect_stages, 1 + int(_annealed(objective, iteration) * objective.ect_stages))


def _annealed(objective: Objective, iteration: int) -> float:
    """How much of the annealing is done, from 0 to 1."""
    return 1.0 if objective.anneal_iterations == 0 else min(max(iteration / objective.anneal_iterations, 0.0), 1.0)


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
    target = torch.lerp(x_ref, x_teacher, _columns((rho_s - rho_t) / (rho_step - rho_t), x_ref))
    excess, eps_hat = _addim_excess(schedule, times.t, times.s, z_t, x_teacher, x_var)
    target = target + _columns(excess / (rho_step - rho_t), z_t) * eps_hat
    if x_var_ref is None:
        return target
    assert z_s is not None
    excess, eps_hat = _addim_excess(schedule, times.s, times.t_step, z_s, x_ref, x_var_ref)
    excess = torch.where(times.t_step > 0, excess, 0.0)
    return target + _columns(excess / (rho_step - rho_t), z_t) * eps_hat


def _addim_excess(
    schedule: CosineSchedule, t: Tensor, s: Tensor, z_t: Tensor, x_hat: Tensor, x_var: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Return what an aDDIM step's z_s / sigma_s has that DDIM's lacks: the factor (c - sigma_s) / sigma_s (B,), and eps_hat.

    c^2 = sigma_s^2 + added.  c - sigma_s is written without the cancellation, so it is exactly 0 without x_var.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
    eps_hat = (z_t - _columns(alpha_t, z_t) * x_hat) / _columns(sigma_t, z_t)
    energy = eps_hat.double().square().flatten(1).mean(1).clamp(min=MEAN_SQUARE_FLOOR)
    added = (alpha_s - alpha_t * sigma_s / sigma_t) ** 2 * x_var / energy
    return added / ((sigma_s**2 + added).sqrt() + sigma_s) / sigma_s, eps_hat


def distance(objective: Objective, v_diff: Tensor, sigma_t: Tensor) -> Tensor:
    """Return each sample's loss (B,) from v_diff = v_hat - v_target; x_diff is sigma_t * v_diff, SNR + 1 is 1 / sigma_t^2.

    Norms are means over dimensions: only so is "a Huber epsilon of 1" the scaled squared loss that the paper says it is.
    """
    squared = mean_square(v_diff, objective.poolings)
    if objective.distance == "v_mean_squared":
        return squared
    epsilon = objective.huber_epsilon
    if objective.distance == "snr1_x_huber":
        squared = squared * sigma_t**2
        return ((squared + epsilon**2).sqrt() - epsilon) / sigma_t**2
    return (squared + epsilon**2).sqrt() - epsilon


def mean_square(difference: Tensor, poolings: int = 0) -> Tensor:
    """Return the mean square (B,) of (B, C, H, W), or of `poolings` halvings of its resolution too: simple diffusion's

        sum over s in d, d / 2, ... of (1 / s) mean ||D_s difference||^2,

    D_s pooling averages down to s x s; here over the sum of 1 / s, so that it stays a mean.  Raises ValueError where
    the resolution cannot be halved so often.
    """
    if poolings and min(difference.shape[2:]) % 2**poolings:
        raise ValueError(f"images of {tuple(difference.shape[2:])} cannot be pooled {poolings} times")
    total = difference.square().flatten(1).mean(1)
    for level in range(1, poolings + 1):
        difference = F.avg_pool2d(difference, 2)
        total = total + 2**level * difference.square().flatten(1).mean(1)
    return total / (2 ** (poolings + 1) - 1)


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
    z_t, logsnr, alpha, sigma = _noised(schedule, t, x, eps)
    v = network(z_t, logsnr, condition).float()
    return mean_square(v - (alpha * eps - sigma * x), poolings)


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
    self_teacher: Network | None = None,
) -> Tensor:
    """Return each sample's loss (B,) of Algorithm 1.  `teacher` is needed by the methods that distil, self_teacher by tract."""
    return mixed_loss(
        network,
        teacher,
        (objective,),
        schedule,
        x,
        condition,
        iteration=iteration,
        generator=generator,
        self_teacher=self_teacher,
    )


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
    teacher steps and distances are each part's own.  Raises ValueError when the batch cannot be parted so or the
    objectives ask the teacher for different things.
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


def part_sizes(objectives: Sequence[Objective], batch: int) -> list[int]:
    """Return how many samples of a batch are each objective's, by weight.  Raises ValueError where they are not whole."""
    weights = [objective.weight for objective in objectives]
    if batch % sum(weights):
        shares = "equally" if len(set(weights)) == 1 else f"in the proportions {':'.join(map(str, weights))}"
        raise ValueError(f"a batch of {batch} cannot be parted {shares} among {len(objectives)} objectives")
    return [batch // sum(weights) * weight for weight in weights]


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
        (o.method, o.teacher_rule, o.x_var, o.eta, o.guidance, o.guidance_range, o.teacher_told) for o in objectives
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
        alpha, sigma = (_columns(value, self.x) for value in alpha_sigma_from_logsnr(logsnr))
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
        w = objective.guidance if self.told is None else _columns(self.told.double() / GUIDANCE_PARTS, z)
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
