"""What the commands of training share: a settings class whose fields are flags and whose attribute docstrings are their help."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from pydantic import Field
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from diffusion import provenance
from diffusion.condition import Prompts
from diffusion.family import Family, FamilyError
from diffusion.manifest import NAME
from training.checkpoint import CheckpointError
from training.datasets import BEFORE_IMPORT, DataError, DataSet
from training.decoding import Augmentation
from training.estimate import GPUS, Work, describe
from training.failures import CommandError, TrainingError
from training.opening import NotAugmented, open_data
from training.preset import PresetSource
from training.relabelled import Relabelled
from training.run import Run
from training.schedule import Schedule
from training.share import nearest_multiples
from training.world import World

W = TypeVar("W", bound=str)
FAILURES = (FamilyError, CheckpointError, DataError, TrainingError, CommandError)
"""What stops a command with one sentence instead of a traceback."""


class Command(BaseSettings):
    """What every command shares: flags alone set it, no environment variable does."""

    model_config = SettingsConfigDict(
        cli_kebab_case=True,
        cli_implicit_flags=True,
        use_attribute_docstrings=True,
        extra="forbid",
        cli_hide_none_type=True,
    )

    def model_post_init(self, context: Any, /) -> None:
        """Note the code that runs, before it changes under a long run."""
        provenance.commit()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Leave environment, .env and secrets out."""
        return (init_settings,)


class Reading(Command):
    """What the commands that train on data share."""

    flip: bool = False
    """Mirror images at random, left to right; for data where that makes no other picture of them. Of files only."""
    crop: Literal["centre", "random"] = "centre"
    """Which square of an image: its middle, or a random one of at least four fifths of its shorter side. Of files only."""
    workers: int | None = Field(default=None, ge=0)
    """Processes that read and decode images ahead, 0 for none. By default, for images in files, one for each core but one,
    8 at most. Their number changes nothing but the speed."""
    probes: int = Field(default=20, ge=0)
    """How often in a run, at most every 10 iterations, a probe looks at losses and the distance from the teacher's trajectory;
    0 for never."""
    tracker: Literal["auto", "tensorboard", "wandb", "none"] = "auto"
    """Where curves go besides log.jsonl and probe.jsonl: TensorBoard in the run's folder, Weights & Biases; auto is TensorBoard if
    it is installed."""

    @property
    def augmentation(self) -> Augmentation:
        """What is done to images."""
        return Augmentation(flip=self.flip, crop=self.crop)


class Spreading(Command):
    """How a training is spread over processes, turns and memory. None of it changes what is learnt."""

    micro_batch: int | None = Field(default=None, ge=1)
    """Images that a process computes at a time; its part of the batch takes as many turns as it needs. By default, all at once."""
    shard: bool = False
    """Among several processes, keep a part of weights, gradients, moments and average in each (FSDP2), not all in each (DDP)."""
    activation_checkpointing: bool = False
    """Keep only what goes into the network's blocks for the backward pass and compute the rest again: less memory, a third
    more work."""
    compile: bool = False
    """Compile the network's blocks by torch.compile. The first iterations take minutes."""
    dry_run: bool = False
    """Print all settings, and an estimate of parameters, memory, arithmetic and hours, and end. Nothing is read but the preset and
    the family's description."""
    gpu: Literal[tuple(GPUS)] = "h100"  # type: ignore[valid-type]
    """The GPU of a dry run's hours."""
    gpus: int | None = Field(default=None, ge=1)
    """How many of them; by default as many as there are processes."""
    utilisation: float = Field(default=0.4, gt=0, le=1)
    """The fraction of the GPUs' peak in a dry run. The paper's runs had 0.38 to 0.46 of their TPUs'; small networks have less."""

    @contextmanager
    def naming_preset(self, preset: str | None) -> Iterator[None]:
        """Say of data that are not augmented, that the preset asks for it where it does."""
        try:
            yield
        except NotAugmented as error:
            asked = self.settings_of_preset(preset) if preset else {}
            flip, crop = bool(asked.get("flip")), asked.get("crop", "centre") != "centre"
            whose = [f"--{flag}" for flag, there in (("flip", flip), ("crop", crop)) if there]
            raise DataError(f"{error}" + (f": preset {preset} has {' and '.join(whose)}" if whose else "")) from None

    @staticmethod
    def settings_of_preset(name: str) -> dict[str, Any]:
        """Return a preset's settings of this command."""
        raise NotImplementedError

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take from the preset what no flag says."""
        return (init_settings, PresetSource(settings_cls, cls.settings_of_preset))

    def turns(self, batch: int, processes: int) -> int:
        """Return in how many turns a process takes its part of a batch.  Raises TrainingError where it does not divide."""
        mine, left = divmod(batch, processes)
        if left:
            raise TrainingError(
                f"--batch {batch} cannot be divided equally among {processes} processes; {nearest_multiples(batch, processes)} can"
            )
        if self.micro_batch and mine % self.micro_batch:
            turns = -(-mine // self.micro_batch)
            fitting = next(mine // more for more in range(turns, mine + 1) if mine % more == 0)
            raise TrainingError(
                f"--micro-batch {self.micro_batch} does not divide the {mine} images that each of {processes} process(es) has "
                f"of a batch of {batch}; the next smaller that does is {fitting}"
            )
        return mine // self.micro_batch if self.micro_batch else 1

    def estimated(self, settings: Schedule, work: Work, runs: int = 1) -> str:
        """Return the settings of a training and what it takes, as text."""
        processes = self.gpus or int(os.environ.get("WORLD_SIZE", 1))
        work = replace(
            work,
            processes=processes,
            turns=self.turns(work.batch, processes),
            shard=self.shard and processes > 1,
            checkpointing=self.activation_checkpointing,
        )
        asked = self.model_dump(mode="json", exclude={"dry_run", "gpu", "gpus", "utilisation"})
        return describe(asked | settings.model_dump(mode="json"), work, GPUS[self.gpu], self.utilisation, runs)

    def world(self, device: str) -> World:
        """Join the processes that train together.  Of several, all but the first are silent from here on, but for errors."""
        world = World(choose_device(device), shard=self.shard)
        if not world.main:
            sys.stdout = open(os.devnull, "w")
        return world

    def spread(self, run: Run, world: World, *, parts: tuple[int, ...] = (1,)) -> None:
        """Spread a new run as the flags say; every turn has as much of each of the parts of a batch."""
        run.spread(
            world,
            turns=self.turns(run.schedule.batch, world.size),
            parts=parts,
            checkpointing=self.activation_checkpointing,
            compiled=self.compile,
        )


def named(folder: Path) -> Path:
    """Return a family's folder.  Raises ValueError where its name cannot be the family's."""
    if not re.fullmatch(NAME, folder.resolve().name):
        raise ValueError("the folder's name is the family's: up to 64 of a-z, 0-9 and -, a letter or digit first")
    return folder


def made(flag: str, folder: Path) -> None:
    """Make a folder that is written to in the end, if it is not there.  Raises CommandError naming the flag if it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"{flag} {folder} cannot be written to: {error.strerror}") from None


def choose_device(name: str) -> torch.device:
    """Return the torch device of a flag's value.  Raises CommandError when it is unknown or not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError):
        raise CommandError(
            f"--device {name} cannot be used here; auto, cpu" + (", cuda" if torch.cuda.is_available() else "") + " can"
        ) from None


def integers(text: str, flag: str) -> list[int]:
    """Return the positive integers of "1,2,4", rising, without repeats.  Raises CommandError for anything else."""
    try:
        values = sorted({int(part) for part in text.split(",")})
    except ValueError:
        values = []
    if not values or values[0] < 1 or values[-1] > 1024:
        raise CommandError(f"--{flag} must be whole numbers from 1 to 1024 separated by commas, got {text!r}")
    return values


def words(text: str, known: tuple[W, ...], flag: str) -> tuple[W, ...]:
    """Return those of the known words that "a,b" names.  Raises CommandError for anything else."""
    asked = {part.strip() for part in text.split(",")}
    if not asked <= set(known):
        raise CommandError(f"--{flag} must be of {', '.join(known)}, separated by commas, got {text!r}")
    return tuple(word for word in known if word in asked)


def data_of(family: Family, name: str | None, augmentation: Augmentation | None = None) -> DataSet:
    """Open the data a family was trained on, or the data named; captions are read as the family reads prompts.

    Labels are read as the family's.  Raises CommandError when the data does not fit the family.
    """
    manifest = family.manifest
    wanted = manifest.members[0].training.data if name is None else name
    if name is None and wanted == BEFORE_IMPORT:
        raise CommandError(
            f"--data is missing: family {family.name!r} was imported, and does not say what it was trained on"
        )
    try:
        prompts = manifest.conditioning if isinstance(manifest.conditioning, Prompts) else None
        data = open_data(wanted, manifest.resolution, augmentation, prompts)
    except NotAugmented:
        raise
    except DataError as error:
        raise CommandError(str(error) if name is not None else f"{error}; name it with --data") from None
    if (data.resolution, data.channels) != (manifest.resolution, manifest.channels):
        raise CommandError(f"data {wanted!r} does not have the images of family {family.name!r}")
    if data.conditioning == manifest.conditioning:
        return data
    try:
        return Relabelled(data, manifest.conditioning)
    except DataError as error:
        raise CommandError(f"{error}; family {family.name!r} cannot be trained on it") from None
