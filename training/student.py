"""`stepdial distill`: a family's teacher -> multistep consistency students."""

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from diffusion.family import Family
from diffusion.uvit import UViT
from training.objective import Network, Objective, consistency_loss
from training.teacher import hide, in_precision
from training.trainer import Run, Schedule

SHORT_ANNEAL = {1: (4, 48), 2: (8, 64), 4: (16, 96), 8: (16, 128), 16: (32, 128)}
"""Teacher steps at the start and at the end of a short run's annealing, by student steps (docs/training.md)."""


class StudentSettings(Schedule):
    """What defines the training of a set of students, besides their teacher and data."""

    recipe: Literal["short", "paper"] = "short"
    """short: annealing and distance for runs of some thousand iterations, by step count. paper: appendix A.1 for every
    step count, 64 to 1280 teacher steps over 100,000 iterations and a Huber epsilon of 1e-4."""
    method: Literal["cd", "ct"] = "cd"
    """cd distils the teacher; ct trains on data alone. Both start from the teacher's weights."""
    guidance: float = Field(default=0.0, ge=0)
    """Guidance w baked into the students (cd)."""
    teacher_rule: Literal["addim", "ddim"] = "addim"
    """How the teacher steps (cd)."""
    x_var: Literal["sample", "analytic"] = "sample"
    """aDDIM's variance, measured on each sample or 0.1 / (2 + SNR)."""
    eta: float = Field(default=0.75, ge=0, le=1)
    """Fraction of the measured variance that aDDIM adds."""
    distance: Literal["v_mean_huber", "snr1_x_huber", "v_mean_squared"] | None = None
    """The distance (training/objective.py); by default the recipe's."""
    drop_slot: float = Field(default=0.05, ge=0, le=1)
    """Fraction at which each conditioning slot is hidden, so that a prompt may leave a word open."""

    def objective(self, steps: int) -> Objective:
        """Return the objective of the student of `steps` steps."""
        common: dict[str, Any] = {"method": self.method, "student_steps": steps, "guidance": self.guidance}
        common |= {"teacher_rule": self.teacher_rule, "x_var": self.x_var, "eta": self.eta}
        if self.recipe == "short":
            nearest = max((known for known in SHORT_ANNEAL if known <= steps), default=1)
            start, end = SHORT_ANNEAL[nearest]
            # one step learns nothing in a short run unless the noisy end weighs in fully; from two on Huber is better
            distance = "snr1_x_huber" if steps == 1 else "v_mean_huber"
            common |= {"teacher_steps_start": max(start, steps), "teacher_steps_end": max(end, 2 * steps)}
            common |= {"anneal_iterations": int(0.6 * self.iterations), "huber_epsilon": 1e-3, "distance": distance}
        if self.distance:
            common["distance"] = self.distance
        return Objective.model_validate(common)


def new_student_run(settings: StudentSettings, steps: int, family: Family, folder: Path, device: torch.device) -> Run:
    """Start a student from the teacher's weights."""
    teacher = family.manifest.teacher
    assert teacher is not None
    network = UViT(teacher.network).to(device)
    network.load_state_dict(family.network(teacher.name, device).state_dict())
    network.requires_grad_(True).train()
    recorded = {
        "objective": settings.objective(steps).model_dump(mode="json"),
        "teacher_sha256": teacher.weights.sha256,
    }
    return Run(network, settings, folder, settings=recorded | settings.model_dump(mode="json"))


def student_loss(
    settings: StudentSettings,
    objective: Objective,
    family: Family,
    teacher: Network,
    network: nn.Module,
    x: Tensor,
    condition: Tensor,
    iteration: int,
    generator: torch.Generator,
) -> Tensor:
    """Return each image's loss (B,) of Algorithm 1."""
    hidden = hide(condition, whole=0.0, each=settings.drop_slot, generator=generator)
    student = in_precision(network, settings.precision)
    schedule = family.manifest.schedule
    return consistency_loss(student, teacher, objective, schedule, x, hidden, iteration=iteration, generator=generator)
