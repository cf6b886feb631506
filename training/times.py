"""Where a training batch stands in time: for each method the law of t, of the teacher's target s, and of the boundary t_step."""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.schedule import CosineSchedule
from training.draws import stratified_uniform

ECT_K, ECT_B = 8.0, 1.0
"""k and b of Easy Consistency Tuning's n(sigma) = 1 + k / (1 + exp(b sigma)): wider steps where there is little noise."""


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


def halved_times(batch: int, *, student_steps: int, generator: torch.Generator) -> Times:
    """Draw progressive distillation's times: t the top of a segment, s its middle, t_step its lower boundary."""
    step = (stratified_uniform(batch, generator) * student_steps).long().clamp_(max=student_steps - 1).double()
    return Times(t=(step + 1) / student_steps, s=(2 * step + 1) / (2 * student_steps), t_step=step / student_steps)


def clean_times(batch: int, generator: torch.Generator) -> Times:
    """Draw t ~ U(0, 1] with the data itself as the next boundary: times at which Algorithm 1 is diffusion training."""
    t = 1.0 - stratified_uniform(batch, generator)
    return Times(t=t, s=torch.zeros_like(t), t_step=torch.zeros_like(t))


def ect_times(
    batch: int, *, schedule: CosineSchedule, student_steps: int, shrink: float, stage: int, generator: torch.Generator
) -> Times:
    """Draw t ~ U(0, 1] and the s of Easy Consistency Tuning (arXiv 2406.14548, its mapping function).

    With sigma the noise-to-signal ratio sigma_t / alpha_t and n(sigma) as in `ECT_K`, stage a of q = `shrink` has

        sigma_s = sigma_t (1 - n(sigma_t) / q^a),  or the data where that is negative.

    Theirs is one segment.  In a segment that ends at t_step it is sigma_t - sigma_step that shrinks, which is the same where
    sigma_step is 0.  The stage counts from 1; in the first one with q = 2 most targets are the data, as in diffusion.
    """
    t = 1.0 - stratified_uniform(batch, generator)
    return ect_times_at(t, schedule=schedule, student_steps=student_steps, shrink=shrink, stage=stage)


def ect_times_at(t: Tensor, *, schedule: CosineSchedule, student_steps: int, shrink: float, stage: int) -> Times:
    """Return s and the boundary of these t (B,), float64 in (0, 1], as `ect_times` has them."""
    t_step = ((t * student_steps).ceil() - 1.0).clamp(min=0.0) / student_steps
    sigma_t, sigma_step = (torch.exp(-0.5 * schedule.logsnr(time)) for time in (t, t_step))
    share = (1.0 + ECT_K * torch.sigmoid(-ECT_B * sigma_t)) / shrink**stage
    sigma_s = sigma_step + (sigma_t - sigma_step) * (1.0 - share).clamp(min=0.0)
    s = torch.maximum(schedule.time(-2.0 * sigma_s.log()), t_step)
    return Times(t=t, s=torch.where(share < 1.0, s, t_step), t_step=t_step)
