"""`stepdial train`: data -> diffusion teacher -> a new family."""

from pathlib import Path

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn

from diffusion.family import Family
from diffusion.schedule import CosineSchedule
from diffusion.uvit import PRESETS, UViT, UViTConfig
from training.datasets import DataError, DataSet
from training.distance import check_poolings
from training.draws import uniform
from training.loss import Network, diffusion_loss
from training.run import Run
from training.schedule import Schedule


class TeacherSettings(Schedule):
    """What defines a teacher's training besides its data."""

    preset: str = "small32"
    """Network, by its name in diffusion/uvit.py; its slots are filled in from the data. Where training/presets/ has a file
    of that name, the command takes every setting that no flag gives from it."""
    noise_resolution: int | None = Field(default=None, ge=1)
    """Noise resolution of the cosine schedule; by default the images' resolution, which is the unshifted schedule."""
    noise_resolution_end: int | None = Field(default=None, ge=1)
    """Noise resolution at t = 0 of an interpolated schedule, of which noise_resolution is the one at t = 1."""
    drop_condition: float = Field(default=0.1, ge=0, le=1)
    """Fraction of images whose whole condition is hidden, so that guidance has an unconditional network to leave from."""
    drop_slot: float = Field(default=0.05, ge=0, le=1)
    """Fraction at which each slot of the others is hidden, so that a prompt may leave a word open."""
    poolings: int = Field(default=0, ge=0, le=8)
    """Multiscale loss: how often differences are compared again at half the resolution; the paper's 128x128 models: 1."""

    @field_validator("preset")
    @classmethod
    def _is_known(cls, preset: str) -> str:
        if preset not in PRESETS:
            raise ValueError(f"must be one of {', '.join(PRESETS)}")
        return preset

    @field_validator("poolings")
    @classmethod
    def _can_be_pooled(cls, poolings: int, info: ValidationInfo) -> int:
        if preset := info.data.get("preset"):
            check_poolings(poolings, PRESETS[preset].resolution)
        return poolings

    @property
    def resolution(self) -> int:
        """Height and width of the images, in pixels: the preset's."""
        return PRESETS[self.preset].resolution

    def noise_schedule(self) -> CosineSchedule:
        """Return the cosine schedule of the family."""
        noise_resolution = self.noise_resolution or self.resolution
        return CosineSchedule(
            image_resolution=self.resolution,
            noise_resolution=noise_resolution,
            noise_resolution_end=self.noise_resolution_end,
        )

    def network(self, data: DataSet) -> UViTConfig:
        """Return the preset fitted to the data.  Raises DataError when resolution or channels do not fit."""
        preset = PRESETS[self.preset]
        if (preset.resolution, preset.channels) != (data.resolution, data.channels):
            raise DataError(
                f"preset {self.preset!r} is for {preset.resolution}x{preset.resolution} images of {preset.channels} "
                f"channel(s), the data has {data.resolution}x{data.resolution} of {data.channels}; "
                f"choose another --preset: {_fitting(data, scaled=data.resolution == preset.resolution)}"
            )
        return preset.model_copy(update={"slots": data.conditioning.sizes})


def _fitting(data: DataSet, *, scaled: bool) -> str:
    """Return the presets for such data, which is scaled to what is asked for or has a resolution of its own."""
    found = [
        name
        for name, preset in PRESETS.items()
        if preset.channels == data.channels and (scaled or preset.resolution == data.resolution)
    ]
    return ", ".join(found) or f"none has {data.channels} channels"


def new_teacher_run(
    settings: TeacherSettings, data: DataSet, folder: Path, device: torch.device, start: Family | None = None
) -> Run:
    """Build the network from the settings' seed and return its run, at iteration 0.

    start: the family whose teacher's weights it begins with instead.  Raises DataError where they are of another network.
    """
    torch.manual_seed(settings.seed)
    network = UViT(settings.network(data))
    recorded = {
        "data": data.name,
        "conditioning": data.conditioning.model_dump(mode="json"),
        **data.identity,
        **settings.model_dump(mode="json"),
    }
    if start:
        recorded["start_sha256"] = _begin(network, start)
    return Run(network.to(device), settings, folder, settings=recorded)


def _begin(network: UViT, start: Family) -> str:
    """Give a new network the weights of a family's teacher, and return their SHA-256."""
    teacher = start.manifest.teacher
    if teacher is None or teacher.network != network.config:
        whose = "has no teacher" if teacher is None else "has a teacher of another network, or of other conditions"
        raise DataError(f"--start: family {start.manifest.name!r} {whose}, so training cannot begin with its weights")
    network.load_state_dict(start.network(teacher.name).state_dict())
    return teacher.weights.sha256


def teacher_loss(
    settings: TeacherSettings, network: nn.Module, x: Tensor, condition: Tensor, generator: torch.Generator
) -> Tensor:
    """Return each image's diffusion loss (B,), parts of the condition hidden at the settings' rates."""
    hidden = hide(condition, whole=settings.drop_condition, each=settings.drop_slot, generator=generator)
    asked, schedule = in_precision(network, settings.precision), settings.noise_schedule()
    return diffusion_loss(asked, schedule, x, hidden, generator, poolings=settings.poolings)


def hide(condition: Tensor, *, whole: float, each: float, generator: torch.Generator) -> Tensor:
    """Return the condition (B, slots) with all slots set to 0 (none) at rate `whole`, and each one at rate `each`."""
    draw = uniform(len(condition), condition.shape[1] + 1, generator=generator)
    return torch.where((draw[:, :1] < whole) | (draw[:, 1:] < each), 0, condition)


def in_precision(network: nn.Module, precision: str) -> Network:
    """Return the network as a function computed under autocast ("bf16"), as it is ("fp32"), or as suits the device ("auto")."""

    def call(z_t: Tensor, logsnr_t: Tensor, condition: Tensor) -> Tensor:
        enabled = precision == "bf16" or (precision == "auto" and computes_bf16(z_t.device))
        with torch.autocast(z_t.device.type, torch.bfloat16, enabled=enabled):
            return network(z_t, logsnr_t, condition)

    return call


def computes_bf16(device: torch.device) -> bool:
    """Tell whether a device has bf16 arithmetic of its own; a CPU without it is twenty times slower in bf16 than in fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
