"""Plans: which network takes an image from where to where, and by which rule.

A plan is data.  Its hops become rows of the coefficient table that `kernels.hop` takes, so every rule below is a row of
numbers and a wave may hold any mix of them.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from diffusion.schedule import CosineSchedule
from kernels import Column

Rule = Literal["ddim", "addim", "ancestral", "noise_ddim", "heun"]
"""ddim: equation 4.  addim: equation 14.  ancestral: a draw from q(z_s | z_t, x_hat), equation 1.  noise_ddim: DDIM of
x_hat plus noise of the posterior's variance (appendix A.4).  heun: second order, two evaluations a hop but the last."""
ALL_TIMES = (0.0, 1.0)
"""The interval of guidance that acts all the way."""
Variance = Callable[[Tensor], Tensor]
"""logsnr (any shape) -> per-dimension variance x_var of x given z_t, eta inside."""


class Hop(BaseModel):
    """One network evaluation and the update after it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    member: str
    """Name of the family's member that is evaluated."""
    t: float = Field(gt=0, le=1)
    """Time of the latent."""
    s: float = Field(ge=0, lt=1)
    """Time it is taken to; 0 is the image, which is x_hat itself whatever the rule."""
    rule: Rule = "ddim"
    """How."""
    clip: bool = False
    """Clip x_hat to [-1, 1].  Right for a teacher, whose x_hat is an expected image; a student's is a point to aim at."""
    segments: int | None = Field(default=None, ge=0)
    """Segment count that a network for the whole dial is told, 0 for infinitely many; None for every other network."""
    guided: bool = True
    """Whether guidance acts here, where an image is drawn with any; without, the network is evaluated but once."""

    @property
    def visit(self) -> tuple[str, bool]:
        """Who is evaluated, and whether guided where an image is drawn with guidance."""
        return self.member, self.guided

    @property
    def random(self) -> bool:
        """Whether the hop adds fresh noise."""
        return self.rule in ("ancestral", "noise_ddim") and self.s > 0


class Evaluation(NamedTuple):
    """One network evaluation of a plan: a hop, or one of the two that a heun hop takes."""

    hop: Hop
    """The hop it belongs to."""
    corrects: bool = False
    """Whether it is the second of a heun hop, at the time the first one led to."""

    @property
    def t(self) -> float:
        """Time of the latent that is evaluated."""
        return self.hop.s if self.corrects else self.hop.t


class Plan(BaseModel):
    """The hops of one image, t falling from 1 to 0 without a gap."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hops: tuple[Hop, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _is_connected(self) -> "Plan":
        times = [1.0, *(hop.s for hop in self.hops)]
        if (
            any(hop.t != before or hop.s >= hop.t for hop, before in zip(self.hops, times, strict=False))
            or times[-1] != 0.0
        ):
            raise ValueError(f"hops must fall from 1 to 0 without a gap, got {[(hop.t, hop.s) for hop in self.hops]}")
        return self

    @cached_property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """The network evaluations of one image, in order: one a hop, two a heun hop but the last."""
        return tuple(
            Evaluation(hop, corrects)
            for hop in self.hops
            for corrects in ((False, True) if hop.rule == "heun" and hop.s > 0 else (False,))
        )

    @cached_property
    def visits(self) -> Counter[tuple[str, bool]]:
        """How many evaluations each member takes where guidance acts and where it does not: (member, guided) -> number."""
        return Counter(hop.visit for hop, _ in self.evaluations)

    @property
    def steps(self) -> int:
        """Network evaluations of one image, a guided evaluation counting once; what the dial shows."""
        return len(self.evaluations)

    def runs(self, guidance: float) -> int:
        """Return how often a network runs for one image drawn with this guidance: twice where that acts."""
        return self.steps + sum(hop.guided for hop, _ in self.evaluations if guidance)

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the members the plan visits, without repeats."""
        return tuple(dict.fromkeys(member for member, _ in self.visits))


def plan(
    member: str,
    times: Iterable[float],
    *,
    rule: Rule = "ddim",
    clip: bool = False,
    segments: int | None = None,
    guided: tuple[float, float] = ALL_TIMES,
) -> Plan:
    """Return the plan of one member and one rule through `times`, falling from 1 to 0; guided: the times at which guidance acts."""
    times = [float(time) for time in times]
    low, high = guided
    hops = (
        Hop(member=member, t=t, s=s, rule=rule, clip=clip, segments=segments, guided=low <= t <= high)
        for t, s in zip(times, times[1:], strict=False)
    )
    return Plan(hops=tuple(hops))


def student_plan(member: str, steps: int, segments: int | None = None) -> Plan:
    """Return Algorithm 2's plan: `steps` DDIM hops from boundary to boundary of a multistep consistency student.

    segments: the count that a student for the whole dial is told, which is `steps`; None for a student of one count.
    """
    return plan(member, uniform_times(steps), segments=segments)


def teacher_plan(
    member: str,
    steps: int,
    *,
    rule: Rule = "addim",
    times: Iterable[float] | None = None,
    segments: int | None = None,
    clip: bool = True,
    guided: tuple[float, float] = ALL_TIMES,
) -> Plan:
    """Return a teacher's plan of about `steps` evaluations, by default Algorithm 3 (aDDIM) through uniform times.

    Heun takes two evaluations a hop but the last, so `steps` evaluations are (steps + 1) // 2 hops.  segments: 0 for a
    student for the whole dial in the teacher's part, None for a teacher.  clip: whether x_hat has the range of images.
    guided: times at which guidance acts.
    """
    hops = (steps + 1) // 2 if rule == "heun" else steps
    times = uniform_times(hops) if times is None else times
    return plan(member, times, rule=rule, clip=clip, segments=segments, guided=guided)


def uniform_times(steps: int) -> list[float]:
    """Return steps + 1 times from 1 to 0; exact quotients, so that boundaries of different plans are equal floats."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    return [(steps - index) / steps for index in range(steps + 1)]


def coefficient_row(
    hop: Hop, schedule: CosineSchedule, *, guidance: float = 0.0, variance: Variance | None = None
) -> Tensor:
    """Return the hop's row of the coefficient table, float64 (8,), columns as in `kernels.Column`.

    guidance: w of this sample, 0 for none.  variance: needed by addim and noise_ddim (ValueError without it).  The row
    of a heun hop is its first, Euler, half.
    """
    alpha_t, sigma_t = schedule.alpha_sigma(hop.t)
    row = torch.zeros(len(Column), dtype=torch.float64)
    row[Column.ALPHA_T], row[Column.SIGMA_T] = alpha_t, sigma_t
    row[Column.GUIDANCE], row[Column.CLIP] = guidance, float(hop.clip)
    if hop.s == 0:  # the image is x_hat itself: what the schedule's clipped end would leave of noise is not wanted
        row[Column.OUT_X] = 1.0
        return row
    alpha_s, sigma_s = schedule.alpha_sigma(hop.s)
    row[Column.OUT_X], row[Column.OUT_EPS] = alpha_s, sigma_s
    if hop.rule in ("addim", "noise_ddim"):
        if variance is None:
            raise ValueError(f"rule {hop.rule!r} needs the variance of x given z_t")
        z_var = (alpha_s - alpha_t * sigma_s / sigma_t) ** 2 * variance(schedule.logsnr(hop.t))
        if hop.rule == "addim":
            row[Column.Z_VAR] = z_var
        else:
            row[Column.OUT_NOISE] = z_var.sqrt()
    if hop.rule == "ancestral":  # mean and variance of q(z_s | z_t, x), with z_t = alpha_t x_hat + sigma_t eps_hat
        row[Column.OUT_EPS] = (alpha_t / alpha_s) * sigma_s**2 / sigma_t
        row[Column.OUT_NOISE] = (sigma_s**2 - row[Column.OUT_EPS] ** 2).clamp(min=0.0).sqrt()
    return row


def correction_row(hop: Hop, schedule: CosineSchedule, *, guidance: float = 0.0) -> Tensor:
    """Return the row of a heun hop's second evaluation, float64 (8,), for `kernels.hop` at (z_s, v_s).

    With r = sigma_s / sigma_t and z_s what the first half led to, the trapezoid rule is

        DDIM of (x_t + x_s) / 2 from z_t  =  (alpha_s - alpha_t r) / 2 * x_s  +  (z_s + r z_t) / 2,

    a row whose "noise", with weight 1, is the second term (`halfway`).  It is the rule of d(z / sigma) = x_hat d(alpha / sigma).
    Karras et al. integrate the same flow in d(z / alpha) = eps_hat d(sigma / alpha), which at this schedule's noisy end
    (sigma / alpha = 1808) multiplies the network's errors by a thousand.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.alpha_sigma(hop.t), schedule.alpha_sigma(hop.s)
    row = torch.zeros(len(Column), dtype=torch.float64)
    row[Column.ALPHA_T], row[Column.SIGMA_T] = alpha_s, sigma_s
    row[Column.GUIDANCE], row[Column.CLIP] = guidance, float(hop.clip)
    row[Column.OUT_X] = 0.5 * (alpha_s - alpha_t * sigma_s / sigma_t)
    row[Column.OUT_NOISE] = 1.0
    return row


def halfway(hop: Hop, schedule: CosineSchedule, z_t: Tensor, z_s: Tensor) -> Tensor:
    """Return (z_s + sigma_s / sigma_t z_t) / 2: what a heun hop keeps of its first half for `correction_row`."""
    return 0.5 * (z_s + float(schedule.alpha_sigma(hop.s)[1] / schedule.alpha_sigma(hop.t)[1]) * z_t)
