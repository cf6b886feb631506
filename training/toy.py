"""A world small enough to know everything about: a mixture of two normals, whose teacher and flow are closed formulas."""

import copy
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.condition import GUIDANCE_PARTS
from diffusion.plans import Plan, coefficient_row
from diffusion.sampler import Network
from diffusion.schedule import CosineSchedule, alpha_sigma_from_logsnr
from kernels import hop as take_hop
from training.loss import mixed_loss
from training.objective import Objective
from training.self_teacher import SelfTeacher

SCHEDULE = CosineSchedule(image_resolution=1, noise_resolution=1)
"""The plain cosine schedule: a point has no resolution to shift to."""


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Two normals of equal weight with means at +mean and -mean on the first axis, and one spread in every direction.

    mean = 0 makes it a single normal.  Calling it as a network gives the teacher that no training can beat.  Its modes are
    the classes 1 (at -mean) and 2 (at +mean) of a condition of one slot; 0 and a condition without slots are both together.
    """

    mean: float = 1.0
    """Distance of each mode from the origin, along the first axis."""
    spread: float = 0.25
    """Standard deviation of a mode, in every direction."""

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw x of this shape, (B, ...), the first element of each sample being the first axis."""
        x = self.spread * torch.randn(shape, generator=generator)
        x.view(shape[0], -1)[:, 0] += self.mean * (2.0 * torch.randint(0, 2, shape[:1], generator=generator) - 1.0)
        return x

    def __call__(self, z_t: Tensor, logsnr_t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return v of the exact E[x | z_t, class], in z_t's dtype; z_t (B, ...), logsnr_t (B,), condition (B, 1) or (B, 0).

        With c = alpha_t^2 spread^2 + sigma_t^2, a mode's share of z_t, E[x | z_t] is
        (alpha_t spread^2 z_t + sigma_t^2 mean tanh(alpha_t mean z_t,1 / c) e_1) / c, and v = (alpha_t z_t - x) / sigma_t.
        For one class tanh is -1 or 1.  Here the division by sigma_t is carried out on paper, so that nothing is lost at the
        clean end.
        """
        alpha, sigma = (value.view(-1, 1) for value in alpha_sigma_from_logsnr(logsnr_t.to(z_t.dtype)))
        z = z_t.flatten(1)
        c = alpha**2 * self.spread**2 + sigma**2
        v = alpha * (1.0 - self.spread**2) * z
        sign = torch.tanh(alpha * self.mean * z[:, :1] / c)
        if condition is not None and condition.shape[1]:
            sign = torch.where(condition[:, :1] > 0, 2.0 * condition[:, :1] - 3.0, sign)
        v[:, :1] -= self.mean * sign
        return (sigma / c * v).view_as(z_t)

    def density(self, points: Tensor, t: float, schedule: CosineSchedule = SCHEDULE) -> Tensor:
        """Return the density of z_t along the first axis at these points."""
        alpha, sigma = (float(value) for value in schedule.alpha_sigma(t))
        width = math.hypot(alpha * self.spread, sigma)
        parts = [torch.exp(-0.5 * ((points - sign * alpha * self.mean) / width) ** 2) for sign in (-1, 1)]
        return (parts[0] + parts[1]) / (2 * width * math.sqrt(2 * math.pi))

    def guided(self, w: float) -> Network:
        """Return the teacher under classifier-free guidance: v + w (v - v of no class)."""
        if w == 0:
            return self

        def network(z_t: Tensor, logsnr_t: Tensor, condition: Tensor) -> Tensor:
            v = self(z_t, logsnr_t, condition)
            return v + w * (v - self(z_t, logsnr_t, torch.zeros_like(condition)))

        return network

    def flow(
        self,
        z: Tensor,
        *,
        t: float = 1.0,
        s: float = 0.0,
        steps: int = 400,
        schedule: CosineSchedule,
        condition: Tensor | None = None,
        guidance: float = 0.0,
    ) -> Tensor:
        """Return where the exact probability flow, guided if asked, takes z_t by time s, in float64.

        In the angle phi with alpha = cos phi, sigma = sin phi the flow is dz / dphi = v; Runge and Kutta's fourth order.
        """
        z = z.double()
        start, end = (math.atan(math.exp(-0.5 * float(schedule.logsnr(time)))) for time in (t, s))
        width = (end - start) / steps

        asked = torch.zeros(len(z), 0, dtype=torch.int64) if condition is None else condition
        teacher = self.guided(guidance)

        def v(z: Tensor, angle: float) -> Tensor:
            return teacher(z, torch.full((len(z),), -2.0 * math.log(math.tan(angle)), dtype=torch.float64), asked)

        for step in range(steps):
            angle = start + step * width
            k1 = v(z, angle)
            k2 = v(z + 0.5 * width * k1, angle + 0.5 * width)
            k3 = v(z + 0.5 * width * k2, angle + 0.5 * width)
            k4 = v(z + width * k3, angle + width)
            z = z + width / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return z


class Student(nn.Module):
    """A multilayer perceptron with a network's interface, f(z_t, logsnr_t, condition) -> v; `told` columns are its inputs too.

    It is told the segment besides the time: what it has to predict jumps from one segment to the next.
    """

    def __init__(self, dimensions: int = 1, *, segments: int = 1, width: int = 96, told: int = 0):
        """told: columns of the condition that it reads, as numbers; the last of two is guidance, in thousandths."""
        super().__init__()
        self.segments, self.told = segments, told
        self.layers = nn.Sequential(
            nn.Linear(dimensions + 5 + told + segments, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, dimensions),
        )

    def forward(self, z_t: Tensor, logsnr_t: Tensor, condition: Tensor | None = None) -> Tensor:
        """z_t: (B, ...) of `dimensions` elements each; logsnr_t: (B,)."""
        angle = torch.atan(torch.exp(-0.5 * logsnr_t))[:, None]
        # a boundary belongs to the segment below it; the clipped schedule puts it up to 0.00035 away from k / segments
        segment = torch.ceil(self.segments * (angle[:, 0] / (0.5 * math.pi) - 1e-3)).long() - 1
        where = F.one_hot(segment.clamp(0, self.segments - 1), self.segments)
        clock = [angle, angle.sin(), angle.cos(), (4 * angle).sin(), (4 * angle).cos()]
        read = torch.zeros(len(z_t), 0) if condition is None else condition[:, : self.told].float()
        if self.told == 2:
            read = read / torch.tensor([1.0, GUIDANCE_PARTS])
        return self.layers(torch.cat([z_t.flatten(1), *clock, read, where], dim=1)).view_as(z_t)


def distil(
    mixture: Mixture,
    objective: Objective,
    *,
    dimensions: int = 1,
    iterations: int = 2000,
    batch: int = 512,
    seed: int = 0,
    teacher: Network | None = None,
    classes: bool = False,
) -> Student:
    """Train a student with `mixed_loss` and return it.

    teacher: what is distilled, by default the mixture's exact teacher.  classes: ask for one mode at a time.
    """
    torch.manual_seed(seed)
    told = classes + (objective.guidance_range is not None)
    student = Student(dimensions, segments=objective.student_steps, told=told)
    self_teacher = SelfTeacher(copy.deepcopy(student).requires_grad_(False), objective.self_teacher_decay)
    optimizer = torch.optim.Adam(student.parameters(), lr=2e-3, betas=(0.9, 0.99))
    generator = torch.Generator().manual_seed(seed)
    condition = torch.zeros(batch, 0, dtype=torch.int64)
    for iteration in range(iterations):
        self_teacher.follow(student, iteration)
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1.0, 1.6 * (1 - iteration / iterations))
        x = mixture.draw((batch, dimensions, 1, 1), generator)
        if classes:
            condition = (x.view(batch, -1)[:, :1] > 0).long() + 1
        losses = mixed_loss(
            student,
            teacher or mixture,
            (objective,),
            SCHEDULE,
            x,
            condition,
            iteration=iteration,
            generator=generator,
            self_teacher=self_teacher.network,
        )
        optimizer.zero_grad()
        losses.mean().backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
    return student.eval()


@torch.no_grad()
def trajectory(
    network: Network, plan: Plan, z: Tensor, schedule: CosineSchedule = SCHEDULE, condition: Tensor | None = None
) -> Tensor:
    """Return the latents of a plan of deterministic hops from z, (hops + 1, B, ...), the last being the image's x_hat."""
    path = [z.float()]
    condition = torch.zeros(len(z), 0, dtype=torch.int64) if condition is None else condition
    for step in plan.hops:
        logsnr = schedule.logsnr(step.t).float().expand(len(z))
        row = coefficient_row(step, schedule).float().expand(len(z), -1).contiguous()
        path.append(take_hop(path[-1], network(path[-1], logsnr, condition), row))
    return torch.stack(path)


def normal_quantiles(count: int) -> Tensor:
    """Return `count` starting points spread as evenly as a standard normal allows, (count, 1, 1, 1)."""
    ranks = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return (math.sqrt(2.0) * torch.erfinv(2.0 * ranks - 1.0)).float().view(-1, 1, 1, 1)


def endpoint_error(mixture: Mixture, network: Network, plan: Plan, *, count: int = 2000) -> float:
    """Return the median distance of a plan's end points from the exact flow's, from the same noise."""
    z = normal_quantiles(count)
    return float((trajectory(network, plan, z)[-1] - mixture.flow(z, schedule=SCHEDULE)).abs().median())
