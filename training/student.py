"""`stepdial distill`: a family's teacher -> multistep consistency students, one of each step count or one for all."""

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from diffusion.family import Family, MemberNetwork
from training.objective import Network, Objective, mixed_loss
from training.teacher import hide, in_precision
from training.trainer import Loss, Run, Schedule, TrainingError

SHORT_ANNEAL = {1: (4, 48), 2: (8, 64), 4: (16, 96), 8: (16, 128), 16: (32, 128)}
"""Teacher steps at the start and at the end of a short run's annealing, by student steps (docs/training.md)."""
MANY = 1024
"""Segments that stand for infinitely many: times are drawn on a grid so fine, each segment one teacher step."""


class StudentSettings(Schedule):
    """What defines the training of a set of students, besides their teacher and data."""

    recipe: Literal["short", "paper"] = "short"
    """short: annealing and distance for runs of some thousand iterations, by step count. paper: appendix A.1 for every
    step count, 64 to 1280 teacher steps over 100,000 iterations and a Huber epsilon of 1e-4."""
    method: Literal["cd", "ct"] = "cd"
    """cd distils the teacher; ct trains on data alone."""
    start: str = "teacher"
    """Whose weights to start from: a member of the family, or "none" for new ones."""
    guidance: float = Field(default=0.0, ge=0)
    """Guidance w baked into the students (cd)."""
    teacher_rule: Literal["addim", "ddim"] = "addim"
    """How the teacher steps (cd)."""
    x_var: Literal["sample", "analytic"] = "sample"
    """aDDIM's variance, measured on each sample or 0.1 / (2 + SNR)."""
    eta: float = Field(default=0.75, ge=0, le=1)
    """Fraction of the measured variance that aDDIM adds."""
    anneal: bool = True
    """Let the teacher's steps grow over the run as the recipe says; if not, they are from the start what they end at."""
    distance: Literal["v_mean_huber", "snr1_x_huber", "v_mean_squared"] | None = None
    """The distance (training/objective.py); by default the recipe's."""
    huber_epsilon: float | None = Field(default=None, gt=0)
    """Epsilon of the pseudo-Huber distances; by default the recipe's."""
    drop_slot: float = Field(default=0.05, ge=0, le=1)
    """Fraction at which each conditioning slot is hidden, so that a prompt may leave a word open."""

    def objective(self, steps: int) -> Objective:
        """Return the objective of the student of `steps` steps; 0 is the limit of many, the teacher's own part.

        In that limit every segment is one teacher step, and the target is what the teacher says, its guidance included.
        """
        if steps == 0:
            many = self.objective(MANY).model_dump() | {"teacher_steps_start": MANY, "teacher_steps_end": MANY}
            return Objective.model_validate(many)
        common: dict[str, Any] = {"method": self.method, "student_steps": steps, "guidance": self.guidance}
        common |= {"teacher_rule": self.teacher_rule, "x_var": self.x_var, "eta": self.eta}
        if self.recipe == "short":
            nearest = max((known for known in SHORT_ANNEAL if known <= steps), default=1)
            start, end = SHORT_ANNEAL[nearest]
            # one step learns nothing in a short run unless the noisy end weighs in fully; from two on Huber is better
            distance = "snr1_x_huber" if steps == 1 else "v_mean_huber"
            common |= {"teacher_steps_start": max(start, steps), "teacher_steps_end": max(end, 2 * steps)}
            common |= {"anneal_iterations": int(0.6 * self.iterations), "huber_epsilon": 1e-3, "distance": distance}
        common |= {name: value for name in ("distance", "huber_epsilon") if (value := getattr(self, name))}
        if not self.anneal:
            common["anneal_iterations"] = 0
        return Objective.model_validate(common)


def new_student_run(settings: StudentSettings, steps: int, family: Family, folder: Path, device: torch.device) -> Run:
    """Start the student of one step count.  Raises TrainingError when the weights to start from do not fit."""
    network = _started(settings, family, (), device)
    return Run(network, settings, folder, settings=recorded(settings, steps, family))


def new_whole_run(
    settings: StudentSettings, segments: tuple[int, ...], family: Family, folder: Path, device: torch.device
) -> Run:
    """Start the student for the whole dial: at every count it is the network it starts from, to the bit.

    segments: the counts, rising, 0 for infinitely many; the settings' batch is a multiple of their number.
    Raises TrainingError when the weights to start from do not fit.
    """
    network = _started(settings, family, segments, device)
    return Run(network, settings, folder, settings=recorded(settings, segments, family))


def _started(
    settings: StudentSettings, family: Family, segments: tuple[int, ...], device: torch.device
) -> MemberNetwork:
    """Build the teacher's network, with a table of segment counts where there are any, and give it its first weights."""
    teacher = family.manifest.teacher
    assert teacher is not None
    torch.manual_seed(settings.seed)
    network = family.build(teacher.network.model_copy(update={"segments": segments}))
    if settings.start != "none":
        if settings.start not in {member.name for member in family.manifest.members}:
            raise TrainingError(f"there is no member {settings.start!r} in family {family.name!r} to start from")
        first = family.network(settings.start)
        if first.config not in (teacher.network, network.config):
            raise TrainingError(f"the network of {settings.start!r} is not of the kind that is to be trained")
        # what is missing where the kinds differ is the table of segment counts alone, and that begins as zeros
        network.load_state_dict(first.state_dict(), strict=first.config == network.config)
    return network.to(device).requires_grad_(True).train()


def recorded(settings: StudentSettings, counts: int | tuple[int, ...], family: Family) -> dict[str, Any]:
    """Return the settings that a run records: of one step count or of several, what is learnt, and from which weights."""
    assert family.manifest.teacher is not None
    if isinstance(counts, tuple):
        objectives = [settings.objective(count).model_dump(mode="json") for count in counts]
        learnt: dict[str, Any] = {"segments": list(counts), "objectives": objectives}
    else:
        learnt = {"objective": settings.objective(counts).model_dump(mode="json")}
    hashes = {member.name: member.weights.sha256 for member in family.manifest.members}
    origin = {"teacher_sha256": family.manifest.teacher.weights.sha256, "start_sha256": hashes.get(settings.start)}
    return learnt | origin | settings.model_dump(mode="json")


def distillation(
    settings: StudentSettings, counts: int | tuple[int, ...], family: Family, device: torch.device
) -> Loss:
    """Return what a run is fitted to: the loss of the student of one step count, or of one network for several."""
    teacher = in_precision(family.network("teacher", device), settings.precision)
    if isinstance(counts, tuple):
        return lambda *batch: whole_loss(settings, counts, family, teacher, *batch)
    objective = settings.objective(counts)
    return lambda *batch: student_loss(settings, objective, family, teacher, *batch)


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
    student = in_precision(network, settings.precision)
    return _loss(settings, (objective,), family, teacher, student, x, condition, iteration, generator)


def whole_loss(
    settings: StudentSettings,
    segments: tuple[int, ...],
    family: Family,
    teacher: Network,
    network: nn.Module,
    x: Tensor,
    condition: Tensor,
    iteration: int,
    generator: torch.Generator,
) -> Tensor:
    """Return each image's loss (B,) of Algorithm 1, equal parts of the batch with the objective of each segment count."""
    asked = in_precision(network, settings.precision)
    told = torch.tensor(segments, device=x.device).repeat_interleave(len(x) // len(segments))[:, None]

    def student(z_t: Tensor, logsnr_t: Tensor, condition: Tensor) -> Tensor:
        return asked(z_t, logsnr_t, torch.cat([condition, told], dim=1))

    objectives = tuple(settings.objective(count) for count in segments)
    return _loss(settings, objectives, family, teacher, student, x, condition, iteration, generator)


def _loss(
    settings: StudentSettings,
    objectives: tuple[Objective, ...],
    family: Family,
    teacher: Network,
    student: Network,
    x: Tensor,
    condition: Tensor,
    iteration: int,
    generator: torch.Generator,
) -> Tensor:
    # a token alone is no word that a prompt could leave open
    each = 0.0 if family.manifest.text else settings.drop_slot
    hidden = hide(condition, whole=0.0, each=each, generator=generator)
    schedule = family.manifest.schedule
    return mixed_loss(student, teacher, objectives, schedule, x, hidden, iteration=iteration, generator=generator)
