"""`stepdial import`: a checkpoint that others trained -> a new family with its network as the teacher."""

from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field
from pydantic_settings import CliPositionalArg

from diffusion import provenance
from diffusion.autoencoder import AutoencoderConfig
from diffusion.backbone import BackboneConfig
from diffusion.condition import NoConditioning, TextConditioning, Tokenizer
from diffusion.family import Family, open_family
from diffusion.files import file_sha256, write_golden, write_json, write_tensors
from diffusion.manifest import MANIFEST, AutoencoderRecord, Manifest, Member, TextRecord, TrainingRecord
from diffusion.schedule import CosineSchedule
from diffusion.text import TextConfig
from training.checkpoint import Checkpoint, CheckpointError, Text, Weights
from training.command import Command, choose_device, made, named
from training.datasets import BEFORE_IMPORT
from training.members import check_replaceable, forget, golden_samples, locked

USUAL_GUIDANCE = {"UNet2DModel": 0.0, "DiTTransformer2DModel": 3.0, "UNet2DConditionModel": 6.5}
"""Guidance w of the teacher's positions: the guidance scale of diffusers' pipelines less 1, which that library counts from.
A UNet2DModel is never taught to do without its label, so it has nothing to be guided away from."""
NOISIEST = {"epsilon": -10.2, "sample": -15.0, "v_prediction": -15.0}
"""log SNR at which sampling begins at the latest: x_hat of a network that predicts noise has its errors times 1 / alpha.
DDPM's linear schedule ends at -10.12, just before."""


class Import(Command):
    """Make a family of a diffusers pipeline folder: its network becomes the teacher, to be served, distilled and exported.

    Reads configurations and safetensors files, runs no code of the folder's and fetches nothing. A family that is in the way
    is replaced.
    """

    folder: CliPositionalArg[Path]
    """Folder of the pipeline, with its model_index.json."""
    family: Annotated[Path, AfterValidator(named)]
    """Folder to write the family to; its name is the folder's."""
    teacher_guidance: float | None = Field(default=None, ge=0)
    """Guidance w that the teacher's dial positions use by default: a guidance scale of diffusers less 1. By default 0 for a
    UNet2DModel, 3 for a DiT, 6.5 for text."""
    description: str = ""
    """One sentence for people."""
    licence: str = "that of the imported checkpoint"
    """Licence of weights and pictures."""
    device: str = "auto"
    """Where the golden samples are drawn, two of 32 evaluations: cpu, cuda, cuda:1, or auto: the GPU if there is one."""

    def cli_cmd(self) -> None:
        """Import."""
        check_replaceable(self.family)
        made("--family", self.family)
        family = import_family(
            Checkpoint(self.folder.resolve()),
            self.family,
            guidance=self.teacher_guidance,
            description=self.description,
            licence=self.licence,
            device=choose_device(self.device),
        )
        teacher = family.manifest.teacher
        assert teacher is not None
        print(
            f"wrote family {family.name}: {teacher.parameters / 1e6:.1f} M parameters; "
            f"next: stepdial distill --family {self.family} --data DATA"
        )


def import_family(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    guidance: float | None = None,
    description: str = "",
    licence: str = "that of the imported checkpoint",
    device: torch.device | str = "cpu",
) -> Family:
    """Write a family of the checkpoint's parts and return it.  Raises CheckpointError when that cannot be done."""
    text, parts = checkpoint.text(), checkpoint.autoencoder()
    read = tuple((part.length, part.vocabulary) for part in text.tokenizers) if text else ()
    network, weights = checkpoint.backbone(read)
    factor, channels = (parts[0].factor, parts[0].channels[1]) if parts else (1, network.channels)
    if parts and parts[0].channels[0] != network.channels:
        raise CheckpointError(
            f"the vae has latents of {parts[0].channels[0]} channels, the network of {network.channels}"
        )
    empty = Manifest(
        name=folder.resolve().name,
        description=description,
        licence=licence,
        resolution=factor * network.resolution,
        channels=channels,
        schedule=sampling_schedule(network),
        conditioning=NoConditioning(),
        guidance=USUAL_GUIDANCE[network.architecture] if guidance is None else guidance,
    )
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        forget(folder, "teacher", None)
        members = (_teacher(folder, network, weights, checkpoint),)
        autoencoder = _autoencoder(folder, *parts) if parts else None
        asked = _text(folder, text) if text else {"conditioning": checkpoint.conditioning(network)}
        manifest = empty.model_copy(update={"members": members, "autoencoder": autoencoder, **asked})
        golden = golden_samples(Family(folder, manifest, None), members[0], device)
        manifest = manifest.model_copy(update={"golden": write_golden(folder, golden)})
        write_json(folder, MANIFEST, Manifest.model_validate(manifest.model_dump()))
    return open_family(folder)


def sampling_schedule(network: BackboneConfig) -> CosineSchedule:
    """Return the cosine schedule between the ends of the one that the network was trained with: it is asked no further."""
    levels = network.timesteps.logsnr
    return CosineSchedule(
        image_resolution=network.resolution,
        noise_resolution=network.resolution,
        logsnr_min=max(levels[-1].item(), NOISIEST[network.prediction]),
        logsnr_max=min(levels[0].item(), 15.0),
    )


def _teacher(folder: Path, network: BackboneConfig, weights: Weights, checkpoint: Checkpoint) -> Member:
    """Write the network's weights and return its record."""
    return Member(
        name="teacher",
        role="teacher",
        network=network,
        weights=write_tensors(
            folder, "teacher.safetensors", {f"network.{key}": value for key, value in weights.items()}
        ),
        parameters=_count(weights),
        training=TrainingRecord(
            command=provenance.command(),
            data=BEFORE_IMPORT,
            iterations=0,
            images=0,
            seconds=0.0,
            device="not recorded",
            commit=provenance.commit(),
            versions=provenance.versions(),
            finished_at=provenance.now(),
            settings={"imported": checkpoint.folder.name, "pipeline": checkpoint.index.get("_class_name")},
        ),
    )


def _autoencoder(folder: Path, network: AutoencoderConfig, weights: Weights) -> AutoencoderRecord:
    """Write the autoencoder's weights and return its record."""
    file = write_tensors(folder, "autoencoder.safetensors", weights)
    return AutoencoderRecord(network=network, weights=file, parameters=_count(weights))


def _text(folder: Path, text: Text) -> dict[str, Any]:
    """Write the text encoders and tokenizers and return the manifest's fields about them."""
    tokenizers = []
    for number, part in enumerate(text.tokenizers, start=1):
        file = folder / f"tokenizer-{number}.json"
        file.write_text(part.content)
        told = {"length": part.length, "vocabulary": part.vocabulary, "pad": part.pad}
        tokenizers.append(Tokenizer(file=file.name, sha256=file_sha256(file), **told))
    conditioning = TextConditioning(tokenizers=tuple(tokenizers))
    conditioning.open(folder)
    config = TextConfig(encoders=text.encoders, nothing=conditioning.encode(prompt=""), zeros=text.zeros)
    weights = write_tensors(folder, "text.safetensors", text.weights)
    record = TextRecord(network=config, weights=weights, parameters=_count(text.weights))
    return {"conditioning": conditioning, "text": record}


def _count(weights: Weights) -> int:
    return sum(value.numel() for value in weights.values())
