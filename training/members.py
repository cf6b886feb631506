"""From a finished run to a member of a family on disk: weights, manifest, golden samples."""

import fcntl
import itertools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from tqdm import tqdm

from diffusion import provenance
from diffusion.backbone import Backbone
from diffusion.condition import Conditioning
from diffusion.family import Family, FamilyError, open_family
from diffusion.files import write_golden, write_json, write_tensors
from diffusion.manifest import FRONTIER, MANIFEST, TEACHER_STEPS, GoldenSample, Manifest, Member, Role, TrainingRecord
from diffusion.pictures import grid, save_picture
from diffusion.plans import ALL_TIMES, Plan, student_plan, teacher_plan
from diffusion.sampler import Decode, sample
from diffusion.schedule import CosineSchedule
from diffusion.uvit import UViT
from diffusion.variance import MeasuredVariance
from training.datasets import DataSet
from training.features import JUDGE
from training.objective import Objective
from training.run import Run
from training.schedule import Schedule

GOLDEN_SEEDS = (11, 12)
TOGETHER = 32
"""Images that the variance is measured on at a time: a network that could be trained has room for them."""


def training_record(run: Run, data: DataSet, command: str) -> TrainingRecord:
    """Return the record of a finished run."""
    return TrainingRecord(
        command=command,
        data=data.name,
        iterations=run.iteration,
        images=run.iteration * run.schedule.batch,
        seconds=round(run.seconds, 1),
        device=(f"{run.world.size} x " if run.world.size > 1 else "") + provenance.device_name(run.device),
        commit=provenance.commit(),
        versions=provenance.versions(),
        finished_at=provenance.now(),
        settings=run.settings,
    )


def is_trained(folder: Path, name: str, run: Run) -> bool:
    """Tell whether the family in the folder holds what this run would end in: the member, of the same settings."""
    if not (folder / MANIFEST).exists():
        return False
    found = [member.training for member in open_family(folder).manifest.members if member.name == name]
    return any(trained_alike(record, run.settings, run.schedule) for record in found)


def check_replaceable(folder: Path) -> None:
    """Raise FamilyError where a new teacher in this folder would be the end of students."""
    if not (folder / MANIFEST).exists():
        return
    students = [member.name for member in open_family(folder).manifest.members if member.role != "teacher"]
    if students:
        raise FamilyError(
            f"family {folder.resolve().name!r} has students of another teacher ({', '.join(students)}), which would be lost; "
            "name another folder, or remove that one"
        )


def trained_alike(record: TrainingRecord, settings: dict[str, Any], schedule: Schedule) -> bool:
    """Tell whether a record is of a whole run of these settings, which are the schedule's and more.

    A setting that came after the record was made must be at its default, which is what everything did before. A precision left
    to the hardware is that of the record, which was made on hardware of its own.
    """
    defaults = {name: field.default for name, field in type(schedule).model_fields.items()}
    if settings.get("precision") == "auto":
        settings = settings | {"precision": record.settings.get("precision", "auto")}
    before, now = (_complete(json.loads(json.dumps(defaults | known))) for known in (record.settings, settings))
    return (before, record.iterations) == (now, schedule.iterations)


def _complete(settings: dict[str, Any]) -> dict[str, Any]:
    """Return recorded settings with every field of objectives and conditioning, those that came later at their defaults."""
    filled = dict(settings)
    if "conditioning" in settings:
        asked: Conditioning = TypeAdapter(Conditioning).validate_python(settings["conditioning"])
        filled["conditioning"] = asked.model_dump(mode="json")
    if "objective" in settings:
        filled["objective"] = Objective.model_validate(settings["objective"]).model_dump(mode="json")
    if "objectives" in settings:
        filled["objectives"] = [Objective.model_validate(one).model_dump(mode="json") for one in settings["objectives"]]
    return filled


def add_member(
    folder: Path,
    empty: Manifest,
    run: Run,
    *,
    name: str,
    steps: int | None,
    guidance: float,
    record: TrainingRecord,
    data: DataSet,
    interval: tuple[float, float] = ALL_TIMES,
) -> Family:
    """Write the run's EMA weights as a member, of our own networks in half precision, with golden samples, and return the family.

    empty: the manifest to start from where the folder holds no family yet.  steps: of a student; None for the teacher and
    for a student for the whole dial, which is told from a teacher by its network.  A member of the same name is replaced;
    a new teacher replaces the whole family, whose students were distilled from the old one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = _weights(run, name)
    assert isinstance(run.network, UViT | Backbone)
    role: Role = "student" if steps else "whole" if run.network.config.segments else "teacher"
    with locked(folder):
        old = open_family(folder) if (folder / MANIFEST).exists() and role != "teacher" else None
        forget(folder, name, old)
        manifest = old.manifest if old else empty
        member = Member(
            name=name,
            role=role,
            steps=steps,
            guidance=guidance,
            guidance_interval=interval,
            network=run.network.config,
            weights=write_tensors(folder, f"{name}.safetensors", weights),
            parameters=sum(value.numel() for value in weights.values()),
            training=record,
        )
        members = [other for other in manifest.members if other.name != name] + [member]
        manifest = manifest.model_copy(update={"members": tuple(members)})
        family = Family(folder, manifest, None)
        if role == "teacher":
            manifest = manifest.model_copy(update={"variance": measure_variance(family, data, run.device)})
            family = Family(folder, manifest, None)
        _write(family, member, run.device)
    return open_family(folder)


def guide_teacher(
    folder: Path, guidance: float | None, interval: tuple[float, float] | None, device: torch.device
) -> None:
    """Have a family's teacher guided so from now on, None for as before, and say so where that is new.

    What was measured of it is forgotten, its golden samples are drawn anew; students keep what they learnt.
    """
    with locked(folder):
        family = open_family(folder)
        manifest, teacher = family.manifest, family.manifest.teacher
        assert teacher is not None
        guidance = manifest.guidance if guidance is None else guidance
        interval = interval or teacher.guidance_interval
        if (manifest.guidance, teacher.guidance_interval) == (guidance, interval):
            return
        forget(folder, teacher.name, family)
        told = teacher.model_copy(update={"guidance_interval": interval})
        members = tuple(told if member == teacher else member for member in manifest.members)
        manifest = manifest.model_copy(update={"guidance": guidance, "members": members})
        _write(Family(folder, manifest, None), told, device)
    low, high = interval
    print(
        f"its teacher is guided with w = {guidance:g} at times from {low:g} to {high:g} now; its students learnt it as it was"
    )


def _write(family: Family, member: Member, device: torch.device) -> None:
    """Write the manifest of a family, and the golden samples, those of this member drawn anew."""
    golden = write_golden(family.folder, golden_samples(family, member, device))
    manifest = family.manifest.model_copy(update={"golden": golden})
    write_json(family.folder, MANIFEST, Manifest.model_validate(manifest.model_dump()))


def _weights(run: Run, name: str) -> dict[str, Tensor]:
    """Return the run's average as it is written.  Raises FamilyError where it is not made of numbers."""
    # what comes from diffusers keeps its precision: where it predicts noise, x_hat has its rounding times 1 / alpha
    halved = isinstance(run.network, UViT)
    weights = {key: value.half() if halved else value for key, value in run.ema.items()}
    if not all(bool(torch.isfinite(value).all()) for value in weights.values()):
        raise FamilyError(f"the weights of {name} are not numbers" + (" in half precision" if halved else ""))
    return weights


def forget(folder: Path, name: str, old: Family | None) -> None:
    """Remove what a member that is about to change makes untrue: a teacher everything, a student what was measured of it."""
    if old is None:
        others = (
            "student-*.safetensors",
            "whole.safetensors",
            "autoencoder.safetensors",
            "text.safetensors",
            "tokenizer-*.json",
        )
        for file in (MANIFEST, FRONTIER, JUDGE, *(path.name for pattern in others for path in folder.glob(pattern))):
            (folder / file).unlink(missing_ok=True)
    elif old.frontier:
        kept = tuple(position for position in old.frontier.positions if name not in position.plan.members)
        rescues = tuple(rescue for rescue in old.frontier.rescues if name not in rescue.plan.members)
        if kept:
            write_json(folder, FRONTIER, old.frontier.model_copy(update={"positions": kept, "rescues": rescues}))
        else:
            (folder / FRONTIER).unlink()


def new_manifest(name: str, data: DataSet, schedule: CosineSchedule, *, guidance: float) -> Manifest:
    """Return the manifest of a family that has no member yet."""
    conditioning: Conditioning = data.conditioning
    return Manifest(
        name=name,
        description=data.description,
        resolution=data.resolution,
        channels=data.channels,
        schedule=schedule,
        conditioning=conditioning,
        guidance=guidance,
    )


def measure_variance(
    family: Family, data: DataSet, device: torch.device | str = "cpu", *, levels: int = 33, count: int = 128
) -> MeasuredVariance:
    """Measure the teacher's ||x - x_hat||^2 / d, unguided, over `levels` times and `count` images each (Algorithm 3)."""
    teacher = family.manifest.teacher
    assert teacher is not None
    network, schedule = family.network(teacher.name, device), family.manifest.schedule
    x, condition = (values.to(device) for values in data.batch(0, count, seed=len(data.name)))
    eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(device)
    logsnr = schedule.logsnr(torch.linspace(1.0, 0.0, levels, dtype=torch.float64))
    errors = []
    with torch.no_grad():
        for level in tqdm(logsnr, desc="measuring the teacher's variance", unit="level", mininterval=1, leave=False):
            alpha, sigma = torch.sigmoid(level).sqrt().float().item(), torch.sigmoid(-level).sqrt().float().item()
            z_t = alpha * x + sigma * eps
            parts = zip(z_t.split(TOGETHER), condition.split(TOGETHER), strict=True)
            v = torch.cat([network(z, level.to(z).expand(len(z)), asked) for z, asked in parts])
            errors.append((alpha * z_t - sigma * v - x).square().mean().item())
    return MeasuredVariance(logsnr=tuple(logsnr.tolist()), error=tuple(errors))


def golden_samples(
    family: Family, member: Member, device: torch.device | str = "cpu"
) -> list[tuple[GoldenSample, Tensor]]:
    """Return the golden samples: those recorded of other members, and new ones of this member, drawn on the device."""
    kept = [entry for entry in family.golden() if family.golden_plan(entry[0]).members != (member.name,)]
    sizes = family.manifest.conditioning.sizes
    # a few evaluations each: of the teacher, and of whoever takes its part, the first position alone
    positions = [steps for steps in member.positions if steps <= TEACHER_STEPS[0]] or member.positions[:1]
    for steps, seed in itertools.product(positions, GOLDEN_SEEDS):
        condition = tuple(1 + (seed * (slot + 3)) % size for slot, size in enumerate(sizes))
        wanted = GoldenSample(steps=steps, condition=condition, seed=seed, member=member.name)
        asked = torch.tensor([condition], dtype=torch.int64)
        image = draw(family, member.plan(steps), asked, seeds=[seed], indices=[0], device=device)[0].cpu()
        kept.append((wanted, image))
    return sorted(kept, key=lambda entry: (entry[0].steps, entry[0].member or "", entry[0].seed))


def draw(
    family: Family,
    plan: Plan,
    condition: Tensor,
    *,
    seeds: list[int],
    indices: list[int],
    guidance: float | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw images of a family by a plan, uint8 (B, H, W, C), in float32."""
    networks = {name: family.network(name, device) for name in plan.members}
    manifest = family.manifest
    return sample(
        networks,  # type: ignore[arg-type]
        plan,
        manifest.schedule,
        condition.reshape(len(seeds), len(manifest.conditioning.sizes)),
        seeds=seeds,
        indices=indices,
        shape=manifest.shape,
        guidance=family.guidance(plan, guidance),
        told=family.told(plan.members[0], guidance),
        variance=family.variance,
        decode=family.decoder(device),
        device=device,
    )


def progress_grid(
    manifest: Manifest,
    data: DataSet,
    *,
    steps: int | None = None,
    segments: tuple[int, ...] = (),
    told: tuple[int, ...] = (),
    guided: tuple[float, float] = ALL_TIMES,
    decode: Decode | None = None,
) -> Callable[[nn.Module, Path], None]:
    """Return a function (network, file) that draws fixed samples on the way.

    32 of a student at its steps, or of a teacher (no steps, no segments) at 16; 8 at each count of a student for the
    whole dial, a row each, infinitely many being 16.  told: what the network finds in the condition after the slots.
    guided: times at which a teacher's guidance acts.
    """
    guidance = 0.0 if steps or segments else manifest.guidance
    plans = [student_plan("member", count or 16, count) for count in segments]
    if not plans:
        plans = [student_plan("member", steps) if steps else teacher_plan("member", 16, rule="ddim", guided=guided)]
    count = 8 if segments else 32
    _, condition = data.batch(0, count, seed=0)

    def write(network: nn.Module, file: Path) -> None:
        device = next(network.parameters()).device
        rows = [
            sample(
                {"member": network},
                plan,
                manifest.schedule,
                condition,
                seeds=[0] * count,
                indices=list(range(count)),
                shape=manifest.shape,
                guidance=guidance,
                told=told,
                decode=decode,
                device=device,
            )
            for plan in plans
        ]
        save_picture(grid(torch.cat(rows), 8, zoom=3), file)

    return write


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder for one writer: students of one family may be trained by several processes side by side."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
