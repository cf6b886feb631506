"""`stepdial distill`: a family's teacher -> few-step students, one of each step count or one for all."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffusion.family import Family
from diffusion.manifest import Member, MemberNetwork
from training.distance import check_poolings
from training.failures import TrainingError
from training.loss import Network, mixed_loss
from training.objective import Objective, part_sizes
from training.run import Loss, Run
from training.self_teacher import COMPANION, SelfTeacher
from training.student_settings import StudentSettings, check_guidance, check_whole
from training.teacher import hide, in_precision


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
    if settings.teacher_steps:
        raise TrainingError(f"--teacher-steps: {source.name} teaches with its own {source.steps} steps; leave it out")
    wrong = [k for k in counts if not k or source.steps <= k or source.steps % k]
    if wrong or (settings.method == "pd" and source.steps != 2 * counts[0]):
        need = "exactly twice" if settings.method == "pd" else "a multiple of"
        told = ", ".join(map(str, wrong or counts))
        raise TrainingError(f"the steps of {source.name} are not {need} {told}, so their boundaries do not fit")
    low, high = source.guidance_interval
    theirs = source.guidance, source.guidance_range, source.guidance_interval
    if theirs != (settings.guidance, settings.guidance_range, settings.guidance_interval):
        raise TrainingError(
            f"{source.name} teaches its own guidance: --guidance {source.guidance:g}"
            + (" --guidance-range {:g},{:g}".format(*source.guidance_range) if source.guidance_range else "")
            + (f" --guidance-interval {low:g},{high:g}" if (low, high) != settings.guidance_interval else "")
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
    check_whole(settings)
    return _new_run(settings, segments, family, folder, device)


def _new_run(
    settings: StudentSettings,
    counts: int | tuple[int, ...],
    family: Family,
    folder: Path,
    device: torch.device,
) -> Run:
    """Start a run, with the self-teacher that tract needs beside the network."""
    try:
        check_poolings(settings.poolings, family.manifest.shape[-1])
    except ValueError as error:
        raise TrainingError(f"--poolings {settings.poolings}: {error}") from None
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
    check_guidance(settings)
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
        return student_loss(settings, objectives, family, teacher, network, *batch, segments=segments, average=average)

    return loss


def student_loss(
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
    """Return each image's loss (B,) of Algorithm 1, parts of the batch with an objective each.

    segments: the counts that a network for the whole dial is told, one of each objective.  average: tract's self-teacher.
    """
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
