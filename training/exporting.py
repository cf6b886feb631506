"""`stepdial export`: a student whose network comes from diffusers -> a pipeline folder that loads in diffusers."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from diffusion.backbone import Backbone, BackboneConfig, LibraryMissing, library_class
from diffusion.condition import GUIDANCE_PARTS, LabelConditioning, TextConditioning, Tokenizer
from diffusion.family import Family, FamilyError, open_family
from diffusion.manifest import Member
from diffusion.plans import uniform_times
from diffusion.timesteps import timesteps_at
from training.checkpoint import INDEX
from training.command import Command

PIPELINES = {
    "UNet2DModel": ("DDPMPipeline", "unet"),
    "DiTTransformer2DModel": ("DiTPipeline", "transformer"),
    "UNet2DConditionModel": ("StableDiffusionPipeline", "unet"),
}
"""The pipeline of each architecture, and what its network is called there; with two text encoders it is XL."""
NOT_THERE = [None, None]
"""How an index says that a part of a pipeline is left out."""
SCHEDULER = "multistep_scheduler"
"""Name of the module that an exported folder brings along."""


class Export(Command):
    """Write a student as a diffusers pipeline folder, with a scheduler that draws it as it was trained and no other way.

    Only networks that came from diffusers can go back; those of stepdial train are no class of that library.
    """

    family: Path
    """Folder of the family."""
    member: str
    """Name of the student: student-4, or whole with --steps."""
    steps: int | None = Field(default=None, ge=1)
    """Step count to write the student for the whole dial for."""
    out: Path
    """Folder to write; it must not exist yet."""

    def cli_cmd(self) -> None:
        """Export."""
        family = open_family(self.family)
        steps = export(family, self.member, self.out, self.steps)
        print(f"wrote {self.out}; it draws in {steps} steps, README.md there says how")


def export(family: Family, name: str, out: Path, steps: int | None = None) -> int:
    """Write a student's pipeline folder and return the steps it draws in.  Raises FamilyError when that cannot be done."""
    member = _exported(family, name)
    count = _steps(member, steps)
    if out.exists():
        raise FamilyError(f"{out.name} exists already; name a folder to make")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    network = family.network(name)
    assert isinstance(network, Backbone)
    pipeline, part = PIPELINES[network.config.architecture]
    if len(network.config.tokens) == 2:
        pipeline = "StableDiffusionXLPipeline"
    plain_network(network, count, member.guidance).save_pretrained(partial / part)
    index: dict[str, Any] = {"_class_name": pipeline, "_diffusers_version": _version()}
    index |= {part: ["diffusers", network.config.architecture], "scheduler": [SCHEDULER, "MultistepScheduler"]}
    _write_scheduler(family, network.config, count, partial / "scheduler")
    autoencoder = family.autoencoder()
    if autoencoder:
        autoencoder.network.save_pretrained(partial / "vae")
        index["vae"] = ["diffusers", "AutoencoderKL"]
    index |= _conditions(family, partial)
    (partial / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    (partial / "README.md").write_text(_readme(family, member, pipeline, count))
    partial.rename(out)
    return count


def _conditions(family: Family, folder: Path) -> dict[str, Any]:
    """Write what reads prompts, and return the index's entries about what may be asked for."""
    conditioning, text = family.manifest.conditioning, family.text
    if isinstance(conditioning, LabelConditioning):
        return {"id2label": dict(enumerate(conditioning.labels))}
    if not isinstance(conditioning, TextConditioning) or text is None:
        return {}
    index: dict[str, Any] = {"feature_extractor": NOT_THERE, "image_encoder": NOT_THERE}
    for number, tokenizer, config, encoder in zip(
        ("", "_2"), conditioning.tokenizers, text.config.encoders, text.encoders, strict=False
    ):
        encoder.save_pretrained(folder / f"text_encoder{number}")
        index[f"text_encoder{number}"] = ["transformers", config.architecture]
        _write_tokenizer(family.folder / tokenizer.file, tokenizer, folder / f"tokenizer{number}")
        index[f"tokenizer{number}"] = ["transformers", "CLIPTokenizer"]
    if len(text.encoders) == 2:
        return index | {"force_zeros_for_empty_prompt": text.config.zeros}
    return index | {"safety_checker": NOT_THERE, "requires_safety_checker": False}


def _write_tokenizer(file: Path, tokenizer: Tokenizer, folder: Path) -> None:
    """Write a tokenizer as transformers reads it."""
    folder.mkdir(parents=True)
    shutil.copyfile(file, folder / "tokenizer.json")
    words = {number: word for word, number in json.loads(file.read_text())["model"]["vocab"].items()}
    end = "<|endoftext|>"
    settings = {"bos_token": "<|startoftext|>", "eos_token": end, "unk_token": end, "pad_token": words[tokenizer.pad]}
    settings |= {"tokenizer_class": "CLIPTokenizer", "model_max_length": tokenizer.length}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def plain_network(network: Backbone, steps: int, guidance: float = 0.0) -> Any:
    """Return a student's network as diffusers knows it, no longer told anything but time.

    What it is told of its segment count and of its guidance w is one vector, added to every embedding of time: so it becomes
    part of the bias that ends that embedding.
    """
    weights = dict(network.network.state_dict())
    settings = dict(network.config.settings)
    columns = [round(GUIDANCE_PARTS * guidance)] if network.config.guidance else []
    columns += [steps] if network.config.segments else []
    if columns:
        added = network.told(torch.tensor([columns]))[0]
        ends = ("time_embedding.linear_2.bias", "timestep_embedder.linear_2.bias")
        weights |= {key: value + added for key, value in weights.items() if key.endswith(ends)}
    if network.config.architecture == "UNet2DModel" and network.config.slots:  # the row that means none is ours
        settings["num_class_embeds"] = network.config.slots[0]
        weights["class_embedding.weight"] = weights["class_embedding.weight"][1:].contiguous()
    plain = library_class(network.config.architecture).from_config(settings)
    plain.load_state_dict(weights)
    return plain.eval()


def _exported(family: Family, name: str) -> Member:
    try:
        member = family.manifest.member(name)
    except KeyError:
        known = ", ".join(member.name for member in family.manifest.members)
        raise FamilyError(f"there is no member {name!r} in family {family.name!r}; it has {known}") from None
    if not isinstance(member.network, BackboneConfig):
        raise FamilyError(
            f"{name} of family {family.name!r} is a UViT, which is no class of diffusers; only what was imported from "
            "there can be exported, stepdial serve and stepdial sample draw the others"
        )
    if member.role == "teacher":
        raise FamilyError("the teacher is the checkpoint that was imported; students can be exported")
    return member


def _steps(member: Member, steps: int | None) -> int:
    """The steps to export a student for."""
    counts = (member.steps,) if member.steps else tuple(count for count in member.network.segments if count)
    known = ", ".join(map(str, counts))
    if steps is None and len(counts) > 1:
        raise FamilyError(f"{member.name} draws in {known} steps; name one with --steps")
    if steps not in (None, *counts):
        raise FamilyError(f"{member.name} does not draw in {steps} steps but in {known}")
    return steps or int(counts[0] or 0)


def _write_scheduler(family: Family, network: BackboneConfig, steps: int, folder: Path) -> None:
    """Write the scheduler's settings and its source."""
    from training import multistep_scheduler

    times = torch.tensor(uniform_times(steps)[:-1], dtype=torch.float64)
    logsnr = family.manifest.schedule.logsnr(times)
    timesteps = timesteps_at(logsnr.float(), network.timesteps.logsnr).float()
    scheduler = multistep_scheduler.MultistepScheduler(timesteps.tolist(), logsnr.tolist(), network.prediction)
    scheduler.save_pretrained(folder)
    shutil.copyfile(multistep_scheduler.__file__, folder / f"{SCHEDULER}.py")


def _readme(family: Family, member: Member, pipeline: str, steps: int) -> str:
    """What the folder is and how it is used."""
    arguments = {"DDPMPipeline": "", "DiTPipeline": "class_labels=[0], guidance_scale=1, "}.get(
        pipeline, '"a cat on a mat", guidance_scale=1, '
    )
    baked = f"Guidance {member.guidance:g} is baked in; ask for none. " if member.guidance else ""
    return f"""# {family.name}: {member.name}, {steps} steps

A multistep consistency student, exported by stepdial. It draws in {steps} steps and no other number: its scheduler refuses
them. {baked}The scheduler is not part of diffusers: it lies in `scheduler/{SCHEDULER}.py`, which you may read first.

    from diffusers import {pipeline}

    pipeline = {pipeline}.from_pretrained("PATH OF THIS FOLDER", trust_remote_code=True)
    pipeline({arguments}num_inference_steps={steps}).images[0].save("image.png")

Licence: {family.manifest.licence}.
"""


def _version() -> str:
    try:
        return str(library_class("__version__"))
    except LibraryMissing as error:
        raise FamilyError(str(error)) from None
