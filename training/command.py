"""What the commands of training share: a settings class whose fields are flags and whose attribute docstrings are their help."""

from typing import Any, Literal, TypeVar

import torch
from pydantic import Field
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from diffusion import provenance
from diffusion.condition import PromptConditioning
from diffusion.family import Family, FamilyError
from training.datasets import DataError, DataSet
from training.decoding import Augmentation
from training.opening import open_data
from training.trainer import TrainingError

W = TypeVar("W", bound=str)
FAILURES = (FamilyError, DataError, TrainingError)
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


def choose_device(name: str) -> torch.device:
    """Return the torch device of a flag's value.  Exits with a sentence when it is unknown or not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError):
        raise SystemExit(
            f"device {name!r} cannot be used here; auto, cpu" + (", cuda" if torch.cuda.is_available() else "")
        ) from None


def integers(text: str, flag: str) -> list[int]:
    """Return the positive integers of "1,2,4", rising, without repeats.  Exits with a sentence for anything else."""
    try:
        values = sorted({int(part) for part in text.split(",")})
    except ValueError:
        values = []
    if not values or values[0] < 1 or values[-1] > 1024:
        raise SystemExit(f"--{flag} must be whole numbers from 1 to 1024 separated by commas, got {text!r}")
    return values


def words(text: str, known: tuple[W, ...], flag: str) -> tuple[W, ...]:
    """Return those of the known words that "a,b" names.  Exits with a sentence for anything else."""
    asked = {part.strip() for part in text.split(",")}
    if not asked <= set(known):
        raise SystemExit(f"--{flag} must be of {', '.join(known)}, separated by commas, got {text!r}")
    return tuple(word for word in known if word in asked)


def data_of(family: Family, name: str | None, augmentation: Augmentation | None = None) -> DataSet:
    """Open the data a family was trained on, or the data named; captions are read as the family reads prompts.

    Exits with a sentence when the data does not fit the family.
    """
    manifest = family.manifest
    wanted = name or manifest.members[0].training.data
    try:
        prompts = manifest.conditioning if isinstance(manifest.conditioning, PromptConditioning) else None
        data = open_data(wanted, manifest.resolution, augmentation, prompts)
    except DataError as error:
        raise SystemExit(f"{error}; name it with --data") from None
    if (data.resolution, data.channels, data.conditioning) != (
        manifest.resolution,
        manifest.channels,
        manifest.conditioning,
    ):
        raise SystemExit(f"data {wanted!r} does not have the images or the conditioning of family {family.name!r}")
    return data
