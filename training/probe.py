"""The probe: what a network in training gives at the same images, times and noise every so often, so that curves are not noisy.

It looks at the averaged weights, which are what is shipped, and changes nothing in the training.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffusion.family import Family
from diffusion.plans import Plan, student_plan, teacher_plan
from diffusion.sampler import Network, follow
from diffusion.schedule import CosineSchedule, alpha_sigma_from_logsnr
from kernels import noise
from training.datasets import DataSet, pixels_to_latents
from training.objective import Objective, Times, loss_at, teacher_steps
from training.student_settings import StudentSettings
from training.teacher import TeacherSettings, in_precision

PLACES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Where in a segment losses are taken: n_rel over N_per_segment, the first being n_rel = 1, next to the boundary."""
TEACHER_TIMES = 8
"""Times at which a teacher's loss is taken, in the middles of as many equal parts of [0, 1]."""
ROWS = 128
"""About how many (image, time) pairs losses are taken at, for each step count."""
DRAWN = 16
"""Images whose trajectories are compared."""
FINE = 64
"""DDIM steps of the teacher, at least, that stand for its exact trajectory."""
SEED = 77
"""Of the probe's images, noise and starting points."""

Probe = Callable[[nn.Module, int], dict[str, Any]]
"""(network, iteration) -> what is found, fit for JSON."""


def teacher_probe(settings: TeacherSettings, data: DataSet, device: torch.device) -> Probe:
    """Return a probe of a teacher's v-loss over t."""
    schedule = settings.noise_schedule()
    times = (torch.arange(TEACHER_TIMES, dtype=torch.float64) + 0.5) / TEACHER_TIMES
    x, condition, eps = _repeated(data, TEACHER_TIMES, device)
    z_t, logsnr = _noised(schedule, times.repeat_interleave(len(x) // TEACHER_TIMES), x, eps)
    alpha, sigma = (value.view(-1, 1, 1, 1) for value in alpha_sigma_from_logsnr(logsnr))

    @torch.no_grad()
    def look(network: nn.Module, iteration: int) -> dict[str, Any]:
        v = in_precision(network, settings.precision)(z_t, logsnr, condition).float()
        loss = (v - (alpha * eps - sigma * x)).square().flatten(1).mean(1).view(TEACHER_TIMES, -1).mean(1)
        return {"teacher": {"t": times.tolist(), "loss": loss.tolist()}}

    return look


def student_probe(
    settings: StudentSettings, counts: int | tuple[int, ...], family: Family, data: DataSet, device: torch.device
) -> Probe:
    """Return a probe of a student of one step count, or of one for several; infinitely many steps are left out.

    It finds, for each count: the loss, lambda and x_var by segment and place in it, and how far the student's latents are from the
    teacher's DDIM trajectory, both from the same noise, at each boundary (root mean square over dimensions).
    """
    told = isinstance(counts, tuple)
    asked = [count for count in (counts if isinstance(counts, tuple) else (counts,)) if count]
    teacher = in_precision(family.network("teacher", device), settings.precision)
    parts: list[_Part] = []

    @torch.no_grad()
    def look(network: nn.Module, iteration: int) -> dict[str, Any]:
        if not parts:  # made at the first look, which a short run may never have
            parts.extend(_Part(settings, count, told, family, teacher, data, device) for count in asked)
        student = in_precision(network, settings.precision)
        return {f"student-{part.steps}": part.look(student, iteration) for part in parts}

    return look


class _Part:
    """One step count of a student: its fixed images, noise and teacher's trajectory."""

    def __init__(
        self,
        settings: StudentSettings,
        steps: int,
        told: bool,
        family: Family,
        teacher: Network,
        data: DataSet,
        device: torch.device,
    ):
        self.steps, self.told, self.teacher = steps, told, teacher
        self.objective, self.schedule = settings.objective(steps), family.manifest.schedule
        self.x, self.condition, self.eps = _repeated(data, steps * len(PLACES), device)
        self.z = noise([SEED] * DRAWN, range(DRAWN), family.manifest.shape, device=device)
        self.asked = data.batch(ROWS, DRAWN, seed=SEED)[1].to(device)
        hops = steps * -(-FINE // steps)
        fine = _path({"teacher": teacher}, teacher_plan("teacher", hops, rule="ddim"), self, settings.guidance)
        self.exact = fine[hops // steps - 1 :: hops // steps]

    def look(self, student: Network, iteration: int) -> dict[str, Any]:
        """Return what is found at this iteration's number of teacher steps."""
        times, per_segment = probe_times(self.objective, iteration)
        every = Times(*(getattr(times, name).repeat_interleave(self.each) for name in ("t", "s", "t_step")))

        def network(z_t: Tensor, logsnr_t: Tensor, condition: Tensor) -> Tensor:
            if self.told:
                condition = torch.cat([condition, condition.new_full((len(condition), 1), self.steps)], dim=1)
            return student(z_t, logsnr_t, condition)

        losses = loss_at(
            network, self.teacher, (self.objective,), self.schedule, self.x, self.condition, times=every, eps=self.eps
        )
        plan = student_plan("student", self.steps, self.steps if self.told else None)
        path = _path({"student": student}, plan, self, 0.0)
        return {
            "teacher_steps": per_segment * self.steps,
            "t": self._by_segment(times.t),
            "lambda": self._by_segment(share(self.schedule, times)),
            "loss": self._by_segment(losses.view(-1, self.each).mean(1)),
            "x_var": self._by_segment(self._x_var(every).view(-1, self.each).mean(1)),
            "trajectory": [
                float((ours - exact).square().mean().sqrt()) for ours, exact in zip(path, self.exact, strict=True)
            ],
        }

    @property
    def each(self) -> int:
        """Images at each time."""
        return len(self.x) // (self.steps * len(PLACES))

    def _x_var(self, times: Times) -> Tensor:
        """Return eta ||x_teacher - x||^2 / d of each pair, the teacher unguided: aDDIM's measured variance."""
        z_t, logsnr = _noised(self.schedule, times.t, self.x, self.eps)
        alpha, sigma = (value.view(-1, 1, 1, 1) for value in alpha_sigma_from_logsnr(logsnr))
        x_teacher = alpha * z_t - sigma * self.teacher(z_t, logsnr, self.condition).float()
        return self.objective.eta * (x_teacher - self.x).square().flatten(1).mean(1)

    def _by_segment(self, values: Tensor) -> list[list[float]]:
        return values.view(self.steps, len(PLACES)).tolist()


def probe_times(objective: Objective, iteration: int) -> tuple[Times, int]:
    """Return the times of every segment's PLACES, segment after segment, and N_per_segment, as Algorithm 1's grid has them."""
    per_segment = max(1, round(teacher_steps(objective, iteration) / objective.student_steps))
    n_rel = torch.tensor([max(1, round(place * per_segment)) for place in PLACES])
    start = per_segment * torch.arange(objective.student_steps)[:, None]
    total = per_segment * objective.student_steps
    grid = (start + n_rel).flatten().double()
    return Times(
        grid / total, (grid - 1) / total, start.expand(-1, len(PLACES)).flatten().double() / total
    ), per_segment


def share(schedule: CosineSchedule, times: Times) -> Tensor:
    """Return lambda, the teacher's share of the target (docs/method.md), float64 (B,)."""
    rho_t, rho_s, rho_step = (torch.exp(0.5 * schedule.logsnr(time)) for time in (times.t, times.s, times.t_step))
    return (rho_s - rho_t) / (rho_step - rho_t)


def _path(networks: dict[str, Network], plan: Plan, part: _Part, guidance: float) -> list[Tensor]:
    """Return the latents after each hop of a plan from the part's starting points, the last being the image in [-1, 1]."""
    z, path = part.z, []
    for taken, hop in enumerate(plan.hops):
        z = follow(
            networks, [hop], part.schedule, z, part.asked, seeds=[SEED] * DRAWN, indices=range(DRAWN), taken=taken,
            guidance=guidance,
        )  # fmt: skip
        path.append(z)
    path[-1] = pixels_to_latents(z.cpu().numpy(), z.device)
    return path


def _repeated(data: DataSet, times: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return images, conditions and noise for so many times, the same few at each, one time after another."""
    each = max(1, ROWS // times)
    x, condition = (value.to(device) for value in data.batch(0, each, seed=SEED))
    eps = noise([SEED] * each, range(each), tuple(x.shape[1:]), device=device)
    return tuple(value.repeat(times, *[1] * (value.dim() - 1)) for value in (x, condition, eps))  # type: ignore[return-value]


def _noised(schedule: CosineSchedule, t: Tensor, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """Return z_t and logsnr_t (B,) in float32."""
    logsnr = schedule.logsnr(t).to(x)
    alpha, sigma = (value.view(-1, 1, 1, 1) for value in alpha_sigma_from_logsnr(logsnr))
    return alpha * x + sigma * eps, logsnr


def flat(found: dict[str, Any]) -> dict[str, float]:
    """Return what a probe found as named numbers for a tracker: means by segment and by place, and the trajectory's distances."""
    numbers: dict[str, float] = {}
    for part, values in found.items():
        if part == "teacher":
            numbers |= {f"{part}/loss at t {t:.2f}": loss for t, loss in zip(values["t"], values["loss"], strict=True)}
            continue
        for name in ("loss", "x_var"):
            rows = values[name]
            numbers |= {f"{part}/{name} in segment {at}": _mean(row) for at, row in enumerate(rows)}
            numbers |= {
                f"{part}/{name} at n_rel {place:.0%}": _mean([row[at] for row in rows])
                for at, place in enumerate(PLACES)
            }
        steps = len(values["trajectory"])
        numbers |= {
            f"{part}/trajectory at t {(steps - 1 - at) / steps:.2f}": far for at, far in enumerate(values["trajectory"])
        }
    return numbers


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
