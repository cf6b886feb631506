"""The probe of a student: losses by segment and place in it, and how far its latents are from the path that it is to follow."""

from typing import Any

import torch
from torch import Tensor, nn

from diffusion.family import Family
from diffusion.manifest import Member
from diffusion.plans import Plan, student_plan, teacher_plan
from diffusion.sampler import Network, follow
from diffusion.schedule import CosineSchedule
from kernels import noise
from training.datasets import DataSet, pixels_to_latents
from training.loss import loss_at, noised
from training.objective import Objective, ect_stage, teacher_steps
from training.probe import PLACES, ROWS, SEED, Probe, repeated
from training.student import taught_by
from training.student_settings import StudentSettings
from training.teacher import in_precision
from training.times import Times, ect_times_at

DRAWN = 16
"""Images whose trajectories are compared."""
FINE = 64
"""DDIM steps of the teacher, at least, that stand for its exact trajectory."""
BESIDE = 0.02
"""How far from its boundary, in parts of a segment, the first place is where there are no teacher steps (ect)."""


def student_probe(
    settings: StudentSettings, counts: int | tuple[int, ...], family: Family, data: DataSet, device: torch.device
) -> Probe:
    """Return a probe of a student of one step count, or of one for several; infinitely many steps are left out.

    It finds, for each count: the loss, lambda and x_var by segment and place in it, and how far the student's latents are from
    those of whoever teaches it, both from the same noise, at each boundary (root mean square over dimensions): from the
    teacher's DDIM trajectory, or from a teaching student's own steps.  With tract the network is its own average, and one
    that is told its guidance is told the default.
    """
    asked = [count for count in (counts if isinstance(counts, tuple) else (counts,)) if count]
    source = taught_by(settings, counts, family)
    teacher = in_precision(family.network(source.name, device), settings.precision)
    parts: list[_Part] = []

    @torch.no_grad()
    def look(network: nn.Module, iteration: int) -> dict[str, Any]:
        if not parts:  # made at the first look, which a short run may never have
            several = isinstance(counts, tuple)
            parts.extend(_Part(settings, count, several, family, source, teacher, data, device) for count in asked)
        student = in_precision(network, settings.precision)
        return {f"student-{part.steps}": part.look(student, iteration) for part in parts}

    return look


class _Part:
    """One step count of a student: its fixed images, noise and the path that it is to follow."""

    def __init__(
        self,
        settings: StudentSettings,
        steps: int,
        several: bool,
        family: Family,
        source: Member,
        teacher: Network,
        data: DataSet,
        device: torch.device,
    ):
        """several: whether the network is told its step count, being one for several."""
        self.steps, self.several, self.teacher, self.told = steps, several, teacher, settings.told
        self.objective = settings.objective(steps, None if source.role == "teacher" else source)
        self.schedule, autoencoder = family.manifest.schedule, family.autoencoder(device)
        self.places, self.in_latents = places_of(self.objective), autoencoder is not None
        self.x, self.condition, self.eps = repeated(
            data, steps * len(self.places), device, encode=autoencoder.encode if autoencoder else None
        )
        self.w = torch.full((len(self.x),), self.told[0], device=device) if self.told else None
        self.z = noise([SEED] * DRAWN, range(DRAWN), family.manifest.shape, device=device)
        self.asked = data.batch(ROWS, DRAWN, seed=SEED)[1].to(device)
        self.exact = self._exact(settings, source)

    def _exact(self, settings: StudentSettings, source: Member) -> list[Tensor]:
        """Return the latents at the student's boundaries on the path that it is to follow."""
        hops = source.steps or self.steps * -(-FINE // self.steps)
        if source.steps:
            plan, guidance, told = student_plan("teacher", hops), 0.0, self.told
        else:
            within = settings.guidance_interval
            plan, told = teacher_plan("teacher", hops, rule="ddim", clip=source.clips, guided=within), ()
            guidance = settings.guidance if settings.distils else 0.0
        fine = self._path(self.teacher, plan, guidance, told)
        return fine[hops // self.steps - 1 :: hops // self.steps]

    def look(self, student: Network, iteration: int) -> dict[str, Any]:
        """Return what is found at this iteration's place in the annealing."""
        times = probe_times(self.objective, self.schedule, iteration)
        every = Times(*(getattr(times, name).repeat_interleave(self.each) for name in ("t", "s", "t_step")))

        def network(z_t: Tensor, logsnr_t: Tensor, condition: Tensor) -> Tensor:
            if self.several:
                condition = torch.cat([condition, condition.new_full((len(condition), 1), self.steps)], dim=1)
            return student(z_t, logsnr_t, condition)

        losses = loss_at(
            network, self.teacher, (self.objective,), self.schedule, self.x, self.condition,
            times=every, eps=self.eps, told=self.w,
        )  # fmt: skip
        path = self._path(
            student, student_plan("student", self.steps, self.steps if self.several else None), 0.0, self.told
        )
        return annealed(self.objective, iteration) | {
            "places": list(self.places),
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
        return len(self.x) // (self.steps * len(self.places))

    def _x_var(self, times: Times) -> Tensor:
        """Return eta ||x_teacher - x||^2 / d of each pair, the teacher unguided: aDDIM's measured variance."""
        z_t, logsnr, alpha, sigma = noised(self.schedule, times.t, self.x, self.eps)
        condition = self.condition
        if self.objective.teacher_told and self.w is not None:
            condition = torch.cat([condition, self.w[:, None]], dim=1)
        x_teacher = alpha * z_t - sigma * self.teacher(z_t, logsnr, condition).float()
        return self.objective.eta * (x_teacher - self.x).square().flatten(1).mean(1)

    def _path(self, network: Network, plan: Plan, guidance: float, told: tuple[int, ...]) -> list[Tensor]:
        """Return the latents after each hop of one network's plan, the last being the image, or latent, in [-1, 1]."""
        z, path = self.z, []
        for taken, hop in enumerate(plan.hops):
            z = follow(
                {hop.member: network}, [hop], self.schedule, z, self.asked, seeds=[SEED] * DRAWN, indices=range(DRAWN),
                taken=taken, guidance=guidance, told=told, decode=_as_it_is if self.in_latents else None,
            )  # fmt: skip
            path.append(z)
        if not self.in_latents:
            path[-1] = pixels_to_latents(z.cpu().numpy(), z.device)
        return path

    def _by_segment(self, values: Tensor) -> list[list[float]]:
        return values.view(self.steps, len(self.places)).tolist()


def _as_it_is(x_hat: Tensor) -> Tensor:
    return x_hat


def places_of(objective: Objective) -> tuple[float, ...]:
    """Return where in a segment losses are taken: progressive distillation learns at its noisy end alone."""
    return PLACES[-1:] if objective.method == "pd" else PLACES


def annealed(objective: Objective, iteration: int) -> dict[str, int]:
    """Return how far the annealing has come: the teacher steps, or the stage of Easy Consistency Tuning."""
    if objective.method == "ect":
        return {"stage": ect_stage(objective, iteration)}
    return {"teacher_steps": _per_segment(objective, iteration) * objective.student_steps}


def probe_times(objective: Objective, schedule: CosineSchedule, iteration: int) -> Times:
    """Return the times of every segment's places, segment after segment, as the method's own law has them."""
    steps, places = objective.student_steps, torch.tensor(places_of(objective), dtype=torch.float64)
    segment = torch.arange(steps, dtype=torch.float64)[:, None]
    t_step = (segment / steps).expand(-1, len(places)).flatten()
    if objective.method == "pd":
        return Times(t_step + 1 / steps, t_step + 0.5 / steps, t_step)
    if objective.method == "ect":
        t = ((segment + places.clamp(min=BESIDE)) / steps).flatten()
        stage = ect_stage(objective, iteration)
        return ect_times_at(t, schedule=schedule, student_steps=steps, shrink=objective.ect_shrink, stage=stage)
    per_segment = _per_segment(objective, iteration)
    n_rel = (places * per_segment).round().clamp(min=1)
    grid, total = (segment * per_segment + n_rel).flatten(), per_segment * steps
    return Times(grid / total, (grid - 1) / total, t_step)


def _per_segment(objective: Objective, iteration: int) -> int:
    return max(1, round(teacher_steps(objective, iteration) / objective.student_steps))


def share(schedule: CosineSchedule, times: Times) -> Tensor:
    """Return lambda, the teacher's share of the target (docs/method.md), float64 (B,)."""
    rho_t, rho_s, rho_step = (torch.exp(0.5 * schedule.logsnr(time)) for time in (times.t, times.s, times.t_step))
    return (rho_s - rho_t) / (rho_step - rho_t)
