"""What a UViT is built from: its architecture, and the paper's four beside smaller ones."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Level(BaseModel):
    """One resolution of the network: `blocks` blocks of one kind on the way down, and as many on the way up."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["res", "transformer"]
    """ResNet blocks with skip connections across the U, or transformer blocks without."""
    channels: int = Field(gt=0)
    """Width."""
    blocks: int = Field(default=3, gt=0)
    """Blocks each way; in the middle, blocks in all."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout inside each block, as a fraction."""


class UViTConfig(BaseModel):
    """Everything needed to build a UViT; it is stored in the family and alone rebuilds the network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    resolution: int = Field(gt=0)
    """Height and width of the latent, in pixels."""
    channels: int = Field(default=3, gt=0)
    """Channels of the latent."""
    patch: int = Field(default=1, gt=0)
    """Space-to-depth factor at the input; 1 is the paper's network, 2 quarters the cost of the first level."""
    levels: tuple[Level, ...] = Field(min_length=1)
    """Levels from fine to coarse; each ends in a 2x2 average pool."""
    mid: Level
    """The blocks between down and up (transformer)."""
    embedding: int = Field(default=1024, gt=0)
    """Width of the conditioning embedding; the same in the paper's small and large networks."""
    head_dim: int = Field(default=128, gt=0)
    """Width of one attention head."""
    slots: tuple[int, ...] = ()
    """Number of values of each conditioning slot (one slot of 1,000 classes for ImageNet); value 0 means none."""
    segments: tuple[int, ...] = ()
    """Segment counts that one network for the whole dial was trained for, rising; 0 stands for the limit of infinitely
    many, the teacher's own part.  Empty for teachers and for students of one step count."""
    guidance: tuple[float, float] | None = None
    """Range of the guidance w that the network is told and was trained for; None for networks that are not told it."""
    norm: Literal["group", "layer"] = "group"
    """Norm of the ResNet blocks: GroupNorm of 32 groups (the paper's lineage) or LayerNorm over channels (faster on a CPU)."""

    @model_validator(mode="after")
    def _shapes_fit(self) -> "UViTConfig":
        down = self.patch * 2 ** len(self.levels)
        if self.resolution % down:
            raise ValueError(f"resolution {self.resolution} is not a multiple of patch * 2^levels = {down}")
        if self.mid.kind != "transformer":
            raise ValueError("mid must be a transformer level")
        counts = self.segments
        if counts and (counts != tuple(sorted(set(counts))) or counts[0] < 0 or counts[-1] == 0):
            raise ValueError(f"segments must be rising counts, got {counts}")
        if self.guidance and not 0.0 <= self.guidance[0] < self.guidance[1]:
            raise ValueError(f"guidance must be a range that rises from 0 or more, got {self.guidance}")
        for level in (*self.levels, self.mid):
            if level.kind == "transformer" and level.channels % self.head_dim:
                raise ValueError(
                    f"a transformer level's channels ({level.channels}) must be a multiple of head_dim {self.head_dim}"
                )
            if level.kind == "res" and self.norm == "group" and level.channels % 32:
                raise ValueError(
                    f"with norm 'group' a res level's channels ({level.channels}) must be a multiple of 32"
                )
        return self


def _imagenet(*, resolution: int, width: int, dropout: float, everywhere: bool) -> UViTConfig:
    """The paper's A.1: `width` 1 is small, 2 is large; `everywhere` drops out in all blocks it names, not only the middle."""
    outer = dropout if everywhere else 0.0
    levels: tuple[Level, ...] = (
        # at 128 pixels the large model drops out in the ResNet blocks at 64x64 too, at 64 pixels in transformers alone
        Level(kind="res", channels=256 * width, dropout=outer if resolution == 128 else 0.0),
        Level(kind="transformer", channels=512 * width, dropout=outer),
    )
    if resolution == 128:
        levels = (Level(kind="res", channels=128 * width), *levels)
    mid = Level(kind="transformer", channels=1024 * width, blocks=16, dropout=dropout)
    return UViTConfig(resolution=resolution, levels=levels, mid=mid, slots=(1000,))


PRESETS: dict[str, UViTConfig] = {
    "imagenet64-small": _imagenet(resolution=64, width=1, dropout=0.2, everywhere=False),
    "imagenet64-large": _imagenet(resolution=64, width=2, dropout=0.1, everywhere=True),
    "imagenet128-small": _imagenet(resolution=128, width=1, dropout=0.1, everywhere=False),
    "imagenet128-large": _imagenet(resolution=128, width=2, dropout=0.1, everywhere=True),
    # the paper's third one, without what reads text; the patch is inferred from its speed (training/presets/text-to-image.toml)
    "text-to-image": UViTConfig(
        resolution=512,
        patch=2,
        levels=(
            Level(kind="res", channels=128),
            Level(kind="res", channels=256),
            Level(kind="res", channels=1024),
            Level(kind="transformer", channels=2048),
        ),
        mid=Level(kind="transformer", channels=4096, blocks=16, dropout=0.1),
    ),
    # for CIFAR-10: 22 M, about an hour on one GPU for a teacher and its students
    "cifar10": UViTConfig(
        resolution=32,
        levels=(Level(kind="res", channels=128, blocks=2), Level(kind="transformer", channels=256, blocks=2)),
        mid=Level(kind="transformer", channels=384, blocks=6, dropout=0.1),
        embedding=256,
        head_dim=64,
        slots=(10,),
    ),
    # for the bundled 32x32 family: 3.9 M parameters, made for a CPU
    "small32": UViTConfig(
        resolution=32,
        patch=2,
        levels=(Level(kind="res", channels=64, blocks=2),),
        mid=Level(kind="transformer", channels=192, blocks=4),
        embedding=256,
        head_dim=64,
        norm="layer",
    ),
    # a lighter one, 2.2 M: on a slow CPU it learns more in equal time
    "tiny32": UViTConfig(
        resolution=32,
        patch=2,
        levels=(Level(kind="res", channels=48, blocks=2),),
        mid=Level(kind="transformer", channels=160, blocks=4),
        embedding=128,
        head_dim=32,
        norm="layer",
    ),
    # the same for 64x64 images: about 10 M parameters, for one's own folder of images on a GPU or a patient CPU
    "small64": UViTConfig(
        resolution=64,
        patch=2,
        levels=(Level(kind="res", channels=64, blocks=2), Level(kind="res", channels=128, blocks=2)),
        mid=Level(kind="transformer", channels=256, blocks=6),
        embedding=256,
        head_dim=64,
        norm="layer",
    ),
    # the smallest: everything once, in less than a minute on one core
    "debug": UViTConfig(
        resolution=8,
        channels=1,
        levels=(Level(kind="res", channels=32, blocks=1),),
        mid=Level(kind="transformer", channels=64, blocks=1),
        embedding=64,
        head_dim=32,
        norm="layer",
    ),
    # for 8x8 digits and tests: seconds on a CPU
    "tiny8": UViTConfig(
        resolution=8,
        channels=1,
        levels=(Level(kind="res", channels=32, blocks=2),),
        mid=Level(kind="transformer", channels=128, blocks=2),
        embedding=128,
        head_dim=64,
        norm="layer",
    ),
}
"""The paper's networks (ImageNet: 394,130,435; 1,243,353,091; 397,407,235; 1,253,576,707 parameters) and small ones. In a
family the slots are those of its data."""
