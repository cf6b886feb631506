"""Builds a real family of tiny networks with random weights: everything a family has, in a fraction of a second."""

from pathlib import Path

import torch

from diffusion.condition import Conditioning, LabelConditioning, NoConditioning, PromptConditioning
from diffusion.family import Family
from diffusion.files import write_golden, write_json, write_tensors
from diffusion.frontier import Frontier, Measure, Position, Provenance
from diffusion.manifest import FRONTIER, MANIFEST, GoldenSample, Manifest, Member, TrainingRecord
from diffusion.sampler import sample
from diffusion.schedule import CosineSchedule
from diffusion.uvit import PRESETS, UViT

PROMPTS = PromptConditioning(
    template="a {colour} {shape} on {background}",
    slots={"colour": ("red", "green", "blue"), "shape": ("star", "ring"), "background": ("mint", "navy")},
)
LABELS = LabelConditioning(labels=("zero", "one", "two"))
UNCONDITIONAL = NoConditioning()

RECORD = TrainingRecord(
    command="none", data="none", iterations=0, images=0, seconds=0.0, device="cpu", commit="", versions={},
    finished_at="2026-01-01T00:00:00Z", settings={},
)  # fmt: skip


def write_tiny_family(
    folder: Path,
    conditioning: Conditioning = PROMPTS,
    *,
    steps: tuple[int, ...] = (1, 2, 4),
    whole: tuple[int, ...] = (),
    guidance: tuple[float, float] | None = None,
) -> Path:
    """Write a family of an 8x8 RGB teacher and students of these steps, golden samples and a frontier; return its folder.

    whole: segment counts of a student for the whole dial; none without.  guidance: the range that students are told, if any.
    """
    torch.manual_seed(0)
    config = PRESETS["tiny8"].model_copy(update={"channels": 3, "slots": conditioning.sizes})
    members = []
    for name in ("teacher", *(f"student-{count}" for count in steps), *(["whole"] if whole else [])):
        told = {"segments": whole if name == "whole" else (), "guidance": None if name == "teacher" else guidance}
        network = UViT(config.model_copy(update=told))
        for parameter in network.parameters():  # the zero-initialised layers would hide the condition
            torch.nn.init.normal_(parameter, std=0.05) if parameter.abs().max() == 0 else None
        weights = {key: value.half() for key, value in network.state_dict().items()}
        record = write_tensors(folder, f"{name}.safetensors", weights)
        parameters = sum(value.numel() for value in weights.values())
        members.append(
            Member(
                name=name,
                role=name.split("-")[0],
                steps=int(name.split("-")[1]) if "-" in name else None,
                guidance=0.0 if name == "teacher" else 1.0,
                network=network.config,
                weights=record,
                parameters=parameters,
                training=RECORD,
            )  # fmt: skip
        )
    manifest = Manifest(
        name="tiny", description="Random networks for tests.", resolution=8, channels=3, guidance=1.0,
        schedule=CosineSchedule(image_resolution=8, noise_resolution=8), conditioning=conditioning, members=tuple(members),
    )  # fmt: skip
    write_json(folder, MANIFEST, manifest)
    family = Family(folder, manifest, None)
    golden = [_golden(family, count) for count in (*steps, 32)] + [_golden(family, n, "whole") for n in whole if n]
    golden = write_golden(folder, golden)
    write_json(folder, MANIFEST, manifest.model_copy(update={"golden": golden}))
    write_json(folder, FRONTIER, _frontier(family))
    return folder


def draw_alone(family: Family, entry: GoldenSample, *, guidance: float | None = None) -> torch.Tensor:
    """Draw one image with the sampling loop that training uses, uint8 (H, W, C)."""
    plan = family.golden_plan(entry)
    return sample(
        {name: family.network(name) for name in plan.members},
        plan,
        family.manifest.schedule,
        torch.tensor([entry.condition], dtype=torch.int64),
        seeds=[entry.seed],
        indices=[entry.index],
        shape=family.manifest.shape,
        guidance=family.guidance(plan, guidance),
        told=family.told(plan.members[0], guidance),
        variance=family.variance,
        decode=family.decoder(),
    )[0]


def _golden(family: Family, steps: int, member: str | None = None) -> tuple[GoldenSample, torch.Tensor]:
    condition = tuple(1 for _ in family.manifest.conditioning.sizes)
    entry = GoldenSample(steps=steps, condition=condition, seed=7, member=member)
    return entry, draw_alone(family, entry)


def _frontier(family: Family) -> Frontier:
    measured = Provenance(
        command="none", commit="", device="none", precision="fp32", versions={}, measured_at="2026-01-01T00:00:00Z"
    )
    positions = tuple(
        Position(
            steps=steps,
            plan=plan,
            source=family.source(plan),
            samples=100,
            seeds=(0, 1),
            frechet=Measure(mean=40.0 / steps + 2.0 + (plan.members == ("whole",)), spread=0.1),
            floor=Measure(mean=1.0, spread=0.0),
            agreement=Measure(mean=1 - 0.3 / steps, spread=0.01),
            latency_ms=Measure(mean=3.0 * steps, spread=0.2),
            images_per_second=900.0 / steps,
            batch=64,
            measured=measured,
            timed=measured,
        )  # fmt: skip
        for steps in family.positions
        for plan in family.plans(steps)
    )
    return Frontier(family=family.name, reference="nothing real", judge="none", positions=positions)
