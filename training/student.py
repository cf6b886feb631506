"""`stepdial distill`: a family's teacher -> few-step students, one of each step count or one for all."""

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from diffusion.condition import GUIDANCE_PARTS
from diffusion.family import Family
from diffusion.manifest import Member, MemberNetwork
from training.failures import TrainingError
from training.objective import DISTILLING, Network, Objective, mixed_loss, part_sizes
from training.run import Loss, Run
from training.schedule import Schedule
from training.self_teacher import COMPANION, SelfTeacher
from training.teacher import hide, in_precision

SHORT_ANNEAL = {1: (4, 48), 2: (8, 64), 4: (16, 96), 8: (16, 128), 16: (32, 128)}
"""Teacher steps at the start and at the end of a short run's annealing, by student steps (docs/training.md)."""
MANY = 1024
"""Segments that stand for infinitely many: times are drawn on a grid so fine, each segment one teacher step."""


class StudentSettings(Schedule):
    """What defines the training of a set of students, besides their teacher and data."""

    recipe: Literal["short", "paper"] = "short"
    """short: annealing and distance for runs of some thousand iterations, by step count. paper: appendix A.1 for every
    step count, 64 to 1280 teacher steps over 100,000 iterations and a Huber epsilon of 1e-4."""
    method: Literal["cd", "ct", "ect", "tract", "pd"] = "cd"
    """cd distils the teacher, tract does so with an average of the student as its own second teacher, pd (progressive
    distillation) makes two steps of what it distils into one; ct and ect (Easy Consistency Tuning) train on data alone."""
    taught_by: str | None = None
    """Member that is distilled. By default the teacher, or with pd the student of twice as many steps where there is one.
    A student teaches with its own steps and its own guidance."""
    start: str = "teacher"
    """Whose weights to start from: "teacher" for those of what is distilled, a member of the family, or "none" for new ones."""
    guidance: float = Field(default=0.0, ge=0)
    """Guidance w baked into the students (cd, tract, pd); with a range, the one that they draw with unless told another."""
    guidance_range: tuple[float, float] | None = None
    """Range of guidance that the students learn, "0,3": each image's w is drawn from it, and the network is told it."""
    teacher_rule: Literal["addim", "ddim"] = "addim"
    """How the teacher steps (cd, tract, pd); a student that teaches steps by ddim."""
    x_var: Literal["sample", "analytic"] = "sample"
    """aDDIM's variance, measured on each sample or 0.1 / (2 + SNR)."""
    eta: float = Field(default=0.75, ge=0, le=1)
    """Fraction of the measured variance that aDDIM adds."""
    anneal: bool = True
    """Let the teacher's steps grow over the run as the recipe says; if not, they are from the start what they end at."""
    teacher_steps: str = ""
    """Teacher steps from the start to the end of annealing instead of the recipe's: "64-1280" for every step count,
    "1:4-48,2:8-64" for some."""
    distance: Literal["v_mean_huber", "snr1_x_huber", "v_mean_squared"] | None = None
    """The distance (training/objective.py); by default the recipe's."""
    huber_epsilon: float | None = Field(default=None, gt=0)
    """Epsilon of the pseudo-Huber distances; by default the recipe's."""
    poolings: int = Field(default=0, ge=0, le=8)
    """Multiscale loss: how often differences are compared again at half the resolution; the paper's 128x128 models: 1."""
    weights: str = ""
    """With one network for the whole dial: parts of a batch by step count, "1:2,2:2"; those not named have one part each."""
    drop_slot: float = Field(default=0.05, ge=0, le=1)
    """Fraction at which each conditioning slot is hidden, so that a prompt may leave a word open."""

    @field_validator("weights", "teacher_steps")
    @classmethod
    def _is_a_list(cls, text: str, info: Any) -> str:
        entry, example = {
            "weights": (r"\d+:[1-9]\d*", "1:2,2:1"),
            "teacher_steps": (r"([1-9]\d*:)?[1-9]\d*-[1-9]\d*", "64-1280 or 1:4-48,2:8-64"),
        }[info.field_name]
        if text and not all(re.fullmatch(entry, part) for part in text.split(",")):
            raise ValueError(f"must be like {example}, got {text!r}")
        return text

    @property
    def distils(self) -> bool:
        """Whether there is a teacher; else data alone teaches, which cannot be guided."""
        return self.method in DISTILLING

    @property
    def told(self) -> tuple[int, ...]:
        """What the trained network finds in the condition after the slots when nobody asks for another guidance."""
        return () if self.guidance_range is None else (round(GUIDANCE_PARTS * self.guidance),)

    def weight(self, steps: int) -> int:
        """Return how many parts of a batch are of this step count."""
        return int(_by_count(self.weights).get(steps, "1"))

    def objective(self, steps: int, source: Member | None = None) -> Objective:
        """Return the objective of the student of `steps` steps; 0 is the limit of many, the teacher's own part.

        In that limit every segment is one teacher step, and the target is what the teacher says, its guidance included.
        source: the student that is distilled, where it is one; None for the teacher.
        """
        if steps == 0:
            many = {"teacher_steps_start": MANY, "teacher_steps_end": MANY, "weight": self.weight(0)}
            return Objective.model_validate(self.objective(MANY, source).model_dump() | many)
        common: dict[str, Any] = {"method": self.method, "student_steps": steps, "guidance": self.guidance}
        common |= {"teacher_rule": self.teacher_rule, "x_var": self.x_var, "eta": self.eta}
        common |= {"poolings": self.poolings, "weight": self.weight(steps)}
        if self.guidance_range:
            common |= {"guidance": 0.0, "guidance_range": self.guidance_range}
        common |= self._recipe(steps) | self._asked_schedule(steps)
        common |= {name: value for name in ("distance", "huber_epsilon") if (value := getattr(self, name))}
        # a path in few fixed steps has no finer one to anneal to
        if not self.anneal or source or self.method in ("tract", "pd"):
            common["anneal_iterations"] = 0
        if self.method == "pd":
            common |= {"teacher_steps_start": 2 * steps, "teacher_steps_end": 2 * steps}
        if source:
            assert source.steps is not None
            common |= {"teacher_steps_start": source.steps, "teacher_steps_end": source.steps, "teacher_rule": "ddim"}
            common |= {"guidance": 0.0, "teacher_told": source.guidance_range is not None}
        return Objective.model_validate(common)

    def _recipe(self, steps: int) -> dict[str, Any]:
        """What the recipe says of annealing and distance."""
        # Easy Consistency Tuning's own loss is the printed formula, (SNR + 1) outside of the norm
        ect = {"distance": "snr1_x_huber"} if self.method == "ect" else {}
        if self.recipe == "paper":
            return ect
        nearest = max((known for known in SHORT_ANNEAL if known <= steps), default=1)
        start, end = SHORT_ANNEAL[nearest]
        # one step learns nothing in a short run unless the noisy end weighs in fully; from two on Huber is better
        distance = "snr1_x_huber" if steps == 1 else "v_mean_huber"
        said: dict[str, Any] = {"teacher_steps_start": max(start, steps), "teacher_steps_end": max(end, 2 * steps)}
        said |= {"anneal_iterations": int(0.6 * self.iterations), "huber_epsilon": 1e-3, "distance": distance}
        # six halvings are about as many teacher steps as annealing ends at here
        return said | (ect | {"ect_stages": 6} if ect else {})

    def _asked_schedule(self, steps: int) -> dict[str, int]:
        """What `teacher_steps` says of a step count."""
        schedules = _by_count(self.teacher_steps)
        asked = schedules.get(steps, schedules.get(None))
        if asked is None:
            return {}
        start, end = map(int, asked.split("-"))
        return {"teacher_steps_start": start, "teacher_steps_end": end}


def _by_count(text: str) -> dict[int | None, str]:
    """Return what "1:a,2:b,c" says by step count, under None what it says of all."""
    parts = [part.rpartition(":") for part in text.split(",") if part]
    return {int(count) if count else None: said for count, _, said in parts}


def taught_by(settings: StudentSettings, counts: int | tuple[int, ...], family: Family) -> Member:
    """Return the member that a student of these counts is distilled from.  Raises TrainingError where it does not exist."""
    manifest = family.manifest
    assert manifest.teacher is not None
    name = settings.taught_by or manifest.teacher.name
    if settings.method == "pd" and settings.taught_by is None and isinstance(counts, int):
        name = next((student.name for student in manifest.students if student.steps == 2 * counts), name)
    if name not in {member.name for member in manifest.members}:
        raise TrainingError(f"there is no member {name!r} in family {family.name!r} to be taught by")
    return manifest.member(name)


def _check_student_teaches(settings: StudentSettings, counts: Sequence[int], source: Member) -> None:
    """Raise TrainingError unless a student's own steps are the teacher steps of students of these counts."""
    if source.steps is None:
        raise TrainingError(f"{source.name} is no student of one step count, whose steps could be learnt")
    if not settings.distils:
        raise TrainingError(f"method {settings.method} trains on data alone; it is not taught by {source.name}")
    wrong = [k for k in counts if not k or source.steps <= k or source.steps % k]
    if wrong or (settings.method == "pd" and source.steps != 2 * counts[0]):
        need = "exactly twice" if settings.method == "pd" else "a multiple of"
        told = ", ".join(map(str, wrong or counts))
        raise TrainingError(f"the steps of {source.name} are not {need} {told}, so their boundaries do not fit")
    if (source.guidance, source.guidance_range) != (settings.guidance, settings.guidance_range):
        raise TrainingError(
            f"{source.name} teaches its own guidance: --guidance {source.guidance:g}"
            + (" --guidance-range {:g},{:g}".format(*source.guidance_range) if source.guidance_range else "")
        )


def new_student_run(settings: StudentSettings, steps: int, family: Family, folder: Path, device: torch.device) -> Run:
    """Start the student of one step count.  Raises TrainingError when settings and family do not fit."""
    return _new_run(settings, steps, family, folder, device)


def new_whole_run(
    settings: StudentSettings, segments: tuple[int, ...], family: Family, folder: Path, device: torch.device
) -> Run:
    """Start the student for the whole dial: at every count it is the network it starts from, to the bit.

    segments: the counts, rising, 0 for infinitely many; the settings' batch is a multiple of the sum of their weights.
    Raises TrainingError when settings and family do not fit.
    """
    check_whole(settings, segments)
    return _new_run(settings, segments, family, folder, device)


def check_whole(settings: StudentSettings, segments: tuple[int, ...]) -> None:
    """Raise TrainingError where one network cannot learn these segment counts by these settings."""
    if settings.method == "pd":
        raise TrainingError(
            "method pd halves the steps of one student after another; one network for all takes another"
        )
    named = [count for count in _by_count(settings.weights) if count is not None]
    unknown = sorted(set(named) - set(segments))
    if unknown:
        raise TrainingError(f"weights name the step counts {', '.join(map(str, unknown))}, which are not trained")


def _new_run(
    settings: StudentSettings,
    counts: int | tuple[int, ...],
    family: Family,
    folder: Path,
    device: torch.device,
) -> Run:
    """Start a run, with the self-teacher that tract needs beside the network."""
    network = _started(settings, counts, family, device)
    run = Run(network, settings, folder, settings=recorded(settings, counts, family))
    if settings.method == "tract":
        run.companions[COMPANION] = copy.deepcopy(network).requires_grad_(False)
    return run


def _started(
    settings: StudentSettings, counts: int | tuple[int, ...], family: Family, device: torch.device
) -> MemberNetwork:
    """Build the teacher's network, with what it is told besides where there is any, and give it its first weights."""
    source = taught_by(settings, counts, family)
    if source.role != "teacher":
        _check_student_teaches(settings, (counts,) if isinstance(counts, int) else counts, source)
    _check_guidance(settings)
    teacher = family.manifest.teacher
    assert teacher is not None
    torch.manual_seed(settings.seed)
    told = {"segments": counts if isinstance(counts, tuple) else (), "guidance": settings.guidance_range}
    network = family.build(teacher.network.model_copy(update=told))
    if settings.start != "none":
        start = source.name if settings.start == "teacher" else settings.start
        if start not in {member.name for member in family.manifest.members}:
            raise TrainingError(f"there is no member {start!r} in family {family.name!r} to start from")
        first = family.network(start)
        if first.config not in (teacher.network, network.config):
            raise TrainingError(f"the network of {start!r} is not of the kind that is to be trained")
        # what is missing where the kinds differ is what it is told besides, and that begins as zeros
        network.load_state_dict(first.state_dict(), strict=first.config == network.config)
    return network.to(device).requires_grad_(True).train()


def _check_guidance(settings: StudentSettings) -> None:
    """Raise TrainingError where a range of guidance cannot be learnt."""
    if settings.guidance_range is None:
        return
    low, high = settings.guidance_range
    if not settings.distils:
        raise TrainingError(f"method {settings.method} trains on data alone, which has no guidance to sample")
    if not 0 <= low < high:
        raise TrainingError(f"guidance_range must rise from 0 or more, got {low:g} to {high:g}")
    if not low <= settings.guidance <= high:
        raise TrainingError(f"guidance {settings.guidance:g} is outside of guidance_range {low:g} to {high:g}")


def recorded(settings: StudentSettings, counts: int | tuple[int, ...], family: Family) -> dict[str, Any]:
    """Return the settings that a run records: of one step count or of several, what is learnt, and from which weights."""
    source = taught_by(settings, counts, family)
    if isinstance(counts, tuple):
        objectives = [objective.model_dump(mode="json") for objective in objectives_of(settings, counts, source)]
        learnt: dict[str, Any] = {"segments": list(counts), "objectives": objectives}
    else:
        (objective,) = objectives_of(settings, (counts,), source)
        learnt = {"objective": objective.model_dump(mode="json")}
    hashes = {member.name: member.weights.sha256 for member in family.manifest.members}
    start = source.name if settings.start == "teacher" else settings.start
    origin = {"teacher_sha256": source.weights.sha256, "start_sha256": hashes.get(start)}
    return learnt | origin | settings.model_dump(mode="json")


def objectives_of(settings: StudentSettings, counts: Sequence[int], source: Member) -> tuple[Objective, ...]:
    """Return the objective of each count, distilled from this member."""
    student = None if source.role == "teacher" else source
    return tuple(settings.objective(count, student) for count in counts)


def distillation(
    settings: StudentSettings, counts: int | tuple[int, ...], family: Family, device: torch.device, run: Run
) -> Loss:
    """Return what a run is fitted to: the loss of the student of one step count, or of one network for several."""
    source = taught_by(settings, counts, family)
    teacher = in_precision(family.network(source.name, device), settings.precision)
    objectives = objectives_of(settings, counts if isinstance(counts, tuple) else (counts,), source)
    average = run.companions.get(COMPANION)
    self_teacher = None if average is None else SelfTeacher(average, objectives[0].self_teacher_decay)
    segments = counts if isinstance(counts, tuple) else None

    def loss(network: nn.Module, x: Tensor, condition: Tensor, iteration: int, generator: torch.Generator) -> Tensor:
        if self_teacher is not None:
            self_teacher.follow(network, iteration)
        batch = x, condition, iteration, generator
        return _loss(settings, objectives, family, teacher, network, *batch, segments=segments, average=average)

    return loss


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
    return _loss(settings, (objective,), family, teacher, network, x, condition, iteration, generator)


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
    """Return each image's loss (B,) of Algorithm 1, parts of the batch with the objective of each segment count."""
    objectives = tuple(settings.objective(count) for count in segments)
    batch = x, condition, iteration, generator
    return _loss(settings, objectives, family, teacher, network, *batch, segments=segments)


def _loss(
    settings: StudentSettings,
    objectives: Sequence[Objective],
    family: Family,
    teacher: Network,
    network: nn.Module,
    x: Tensor,
    condition: Tensor,
    iteration: int,
    generator: torch.Generator,
    *,
    segments: tuple[int, ...] | None = None,
    average: nn.Module | None = None,
) -> Tensor:
    """segments: the counts that a network for the whole dial is told, one of each objective.  average: tract's self-teacher."""
    counts = None
    if segments is not None:
        sizes = torch.tensor(part_sizes(objectives, len(x)), device=x.device)
        counts = torch.tensor(segments, device=x.device).repeat_interleave(sizes)[:, None]

    def telling(network: nn.Module) -> Network:
        asked = in_precision(network, settings.precision)
        if counts is None:
            return asked
        return lambda z_t, logsnr_t, condition: asked(z_t, logsnr_t, torch.cat([condition, counts], dim=1))

    # a token alone is no word that a prompt could leave open
    each = 0.0 if family.manifest.text else settings.drop_slot
    hidden = hide(condition, whole=0.0, each=each, generator=generator)
    return mixed_loss(
        telling(network),
        teacher,
        objectives,
        family.manifest.schedule,
        x,
        hidden,
        iteration=iteration,
        generator=generator,
        self_teacher=None if average is None else telling(average),
    )
