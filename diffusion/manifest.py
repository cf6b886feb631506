"""family.json: the records that say how a family may be sampled and where it comes from."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from diffusion.autoencoder import AutoencoderConfig
from diffusion.backbone import Backbone, BackboneConfig
from diffusion.condition import Conditioning, TextConditioning, Tokenizer
from diffusion.plans import ALL_TIMES, Hop, Plan, student_plan, teacher_plan
from diffusion.schedule import CosineSchedule
from diffusion.text import TextConfig
from diffusion.uvit import UViT, UViTConfig
from diffusion.variance import MeasuredVariance

TEACHER_STEPS = (32, 64, 128, 256, 512)
"""Dial positions that run on the teacher, with aDDIM."""
Role = Literal["teacher", "student", "whole"]
"""A member's part: the teacher, a student of one step count, or a student for the whole dial, told the segment count."""
MANIFEST, FRONTIER = "family.json", "frontier.json"
NAME = "^[a-z0-9][a-z0-9-]{0,63}$"
"""What families and members may be called."""
MemberNetwork = UViT | Backbone
"""A member's network."""
NetworkConfig = Annotated[
    Annotated[UViTConfig, Tag("uvit")] | Annotated[BackboneConfig, Tag("diffusers")],
    Discriminator(lambda given: "diffusers" if _is_backbone(given) else "uvit"),
]
"""All that is needed to build a member's network: ours, or one that comes from diffusers."""


def _is_backbone(given: Any) -> bool:
    return isinstance(given, BackboneConfig) or (isinstance(given, dict) and "architecture" in given)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class FileRecord(_Record):
    """A file of the family, pinned."""

    file: str = Field(pattern=r"^[A-Za-z0-9._-]+\.safetensors$")
    """Name inside the family's folder."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of its bytes, in hexadecimal."""


class TrainingRecord(_Record):
    """How a member came to be."""

    command: str
    """The command that trains it."""
    data: str
    """What it was trained on."""
    iterations: int
    """Optimiser steps."""
    images: int
    """Images seen."""
    seconds: float
    """Time spent in training steps, in seconds."""
    device: str
    """What it was trained on."""
    commit: str
    """Version of the code, as git names it."""
    versions: dict[str, str]
    """Versions of Python and of the libraries that matter."""
    finished_at: str
    """When, in UTC, ISO 8601."""
    settings: dict[str, Any]
    """Every setting of the run, seed included."""


class Member(_Record):
    """One network of a family."""

    name: str = Field(pattern=NAME)
    """Name inside the family: "teacher", "student-4", "whole"."""
    role: Role
    steps: int | None = Field(default=None, ge=1)
    """A student's number of segments; None for the teacher, and for a whole-dial student, whose counts are its network's."""
    guidance: float = Field(default=0.0, ge=0)
    """Guidance w baked into a student, or, of a student that is told it, its default; 0 for the teacher, which is guided while
    sampling."""
    guidance_interval: tuple[float, float] = ALL_TIMES
    """Times t at which guidance acts, 1 the noisiest: the teacher's while sampling, a student's in what was baked in."""
    network: NetworkConfig
    """All that is needed to build the network."""
    weights: FileRecord
    parameters: int
    """Number of parameters."""
    training: TrainingRecord

    @model_validator(mode="after")
    def _steps_fit_role(self) -> "Member":
        if (self.role == "student") != (self.steps is not None):
            raise ValueError("a student has steps, a teacher and a student for the whole dial have none")
        if (self.role == "whole") != bool(self.network.segments):
            raise ValueError("the network of a student for the whole dial has segments, no other has")
        allowed = self.guidance_range
        if allowed and not allowed[0] <= self.guidance <= allowed[1]:
            raise ValueError(
                f"guidance {self.guidance:g} is outside of {_range(allowed)}, what the network was trained for"
            )
        return self

    @property
    def guidance_range(self) -> tuple[float, float] | None:
        """Range of the w that the member was trained for and is told while sampling; None for every other member."""
        return self.network.guidance

    @property
    def positions(self) -> tuple[int, ...]:
        """Dial positions that the member can draw alone, rising."""
        if self.steps:
            return (self.steps,)
        counts = tuple(count for count in self.network.segments if count)
        as_teacher = self.role == "teacher" or 0 in self.network.segments
        return counts + tuple(steps for steps in TEACHER_STEPS if as_teacher and steps not in counts)

    def plan(self, steps: int) -> Plan:
        """Return how the member draws one of its positions alone."""
        if self.role == "student":
            return student_plan(self.name, steps)
        if self.role == "whole" and steps in self.network.segments:
            return student_plan(self.name, steps, steps)
        if self.role == "whole":  # its guidance is baked in
            return teacher_plan(self.name, steps, segments=0, clip=self.clips)
        return teacher_plan(self.name, steps, clip=self.clips, guided=self.guidance_interval)

    @property
    def clips(self) -> bool:
        """Whether x_hat has the range of images where the member draws as a teacher; latents have none."""
        return not isinstance(self.network, BackboneConfig) or self.network.clip

    def check_guidance(self, asked: float) -> None:
        """Raise ValueError if a student does not draw with this guidance."""
        allowed = self.guidance_range
        if allowed and not allowed[0] <= asked <= allowed[1]:
            raise ValueError(f"{self.name} was trained for guidance {_range(allowed)}")
        if not allowed and asked != self.guidance:
            raise ValueError(
                f"guidance is baked into {self.name} at {self.guidance:g}; only the teacher's positions take another"
            )


class GoldenRecord(FileRecord):
    """Samples as training drew them, to be drawn again by whoever serves the family."""

    tolerance: float = Field(default=2.0, gt=0)
    """Largest mean absolute difference of an image, in levels of 255: rounding moves it by hundredths, a fault by tens."""


class AutoencoderRecord(_Record):
    """What makes pixels of a family's latents."""

    network: AutoencoderConfig
    """All that is needed to build it."""
    weights: FileRecord
    parameters: int
    """Number of parameters."""


class TextRecord(_Record):
    """What reads the prompts of a family that takes any words."""

    network: TextConfig
    """All that is needed to build the encoders."""
    weights: FileRecord
    parameters: int
    """Number of parameters."""


class Manifest(_Record):
    """family.json: everything about how a family may be sampled, and where it comes from."""

    format: Literal[1] = 1
    name: str = Field(pattern=NAME)
    description: str = ""
    """One sentence for people."""
    licence: str = "Apache-2.0"
    """Licence of weights and pictures."""
    resolution: int = Field(ge=1, le=4096)
    """Height and width of the images, in pixels."""
    channels: int = Field(ge=1, le=4)
    """1 is grey, 3 is RGB."""
    schedule: CosineSchedule
    """Noise schedule of every member."""
    prediction: Literal["v"] = "v"
    """What the networks predict."""
    conditioning: Conditioning
    """What may be asked for."""
    guidance: float = Field(default=0.0, ge=0)
    """Guidance w of the teacher's positions unless a request says otherwise."""
    variance: MeasuredVariance | None = None
    """aDDIM's x_var for sampling, measured; None for 0.1 / (2 + SNR)."""
    autoencoder: AutoencoderRecord | None = None
    """Of a family that diffuses in latents; None where the networks see pixels."""
    text: TextRecord | None = None
    """Of a family that takes prompts of any words."""
    members: tuple[Member, ...] = ()
    golden: GoldenRecord | None = None
    """Missing until a member exists."""

    @model_validator(mode="after")
    def _members_fit(self) -> "Manifest":
        names = [member.name for member in self.members]
        parts = [(member.role, member.steps) for member in self.members]
        if len(set(names)) != len(names) or len(set(parts)) != len(parts):
            raise ValueError(
                "two members have the same name or the same steps, or both are teachers or for the whole dial"
            )
        if (self.text is None) == (self.conditioning.kind == "text"):
            raise ValueError("conditioning by text and text encoders go together")
        for member in self.members:
            network = member.network
            latent = network.channels, network.resolution, network.resolution
            if (latent, network.slots) != (self.shape, self.conditioning.sizes):
                raise ValueError(f"the network of {member.name} does not fit the family's images or conditioning")
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what the networks see: a latent, which without an autoencoder has the image's shape."""
        if self.autoencoder is None:
            return self.channels, self.resolution, self.resolution
        side = self.resolution // self.autoencoder.network.factor
        return self.autoencoder.network.channels[0], side, side

    @property
    def files(self) -> tuple[FileRecord | Tokenizer, ...]:
        """Every pinned file."""
        tokenizers = self.conditioning.tokenizers if isinstance(self.conditioning, TextConditioning) else ()
        parts = [part.weights for part in (*self.members, self.autoencoder, self.text) if part]
        return (*parts, *filter(None, (self.golden,)), *tokenizers)

    @property
    def teacher(self) -> Member | None:
        """The teacher, if the family has one."""
        return next((member for member in self.members if member.role == "teacher"), None)

    @property
    def students(self) -> tuple[Member, ...]:
        """The students by rising steps."""
        return tuple(sorted((m for m in self.members if m.role == "student"), key=lambda member: member.steps or 0))

    @property
    def whole(self) -> Member | None:
        """The student for the whole dial, if the family has one."""
        return next((member for member in self.members if member.role == "whole"), None)

    def member(self, name: str) -> Member:
        """Return a member by name.  Raises KeyError for an unknown one."""
        return {member.name: member for member in self.members}[name]

    def check(self, hops: Iterable[Hop]) -> None:
        """Raise ValueError if a hop names a member, or a segment count of one, that the family does not have.

        Also if some of the members are told their guidance and others not, or another range of it.
        """
        members, hops = {member.name: member for member in self.members}, list(hops)
        for hop in hops:
            if hop.member not in members:
                raise ValueError("names a member that the family does not have")
            known = members[hop.member].network.segments
            if hop.segments not in (known or (None,)):
                counts = ", ".join(map(str, known)) or "none"
                raise ValueError(f"asks {hop.member} for segment count {hop.segments}; it was trained for {counts}")
        if len({members[hop.member].guidance_range for hop in hops}) > 1:
            raise ValueError("combines members that are told different ranges of guidance, or none")


class GoldenSample(_Record):
    """One recorded sample; its image is beside it in golden.safetensors."""

    steps: int
    condition: tuple[int, ...]
    seed: int
    index: int = 0
    member: str | None = None
    """Who drew it; None in older families: the student of `steps`, else the teacher."""


def _range(allowed: tuple[float, float]) -> str:
    return f"{allowed[0]:g} to {allowed[1]:g}"
