"""A family on disk: a teacher and its students, and everything that says how they may be sampled.

    family.json            the manifest
    <member>.safetensors   weights, half precision
    golden.safetensors     a few samples as training drew them
    frontier.json          what each dial position gives and costs (diffusion/frontier.py)
    judge.safetensors      the network that measured it (training/features.py); never served

Nothing is ever unpickled.  Every file that is served is pinned by its SHA-256 in the manifest; files are written to a
temporary name and renamed, the manifest last, so that a reader sees a family whole or not at all.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffusion.autoencoder import Autoencoder, AutoencoderConfig
from diffusion.backbone import Backbone, BackboneConfig, LibraryMissing
from diffusion.condition import GUIDANCE_PARTS, Conditioning, TextConditioning, Tokenizer
from diffusion.frontier import Frontier, Position, Source
from diffusion.plans import Hop, Plan, Variance, student_plan, teacher_plan
from diffusion.schedule import CosineSchedule
from diffusion.text import TextConfig, TextEncoder
from diffusion.uvit import UViT, UViTConfig
from diffusion.variance import MeasuredVariance, analytic_variance

TEACHER_STEPS = (32, 64, 128, 256, 512)
"""Dial positions that run on the teacher, with aDDIM."""
Role = Literal["teacher", "student", "whole"]
"""A member's part: the teacher, a student of one step count, or a student for the whole dial, told the segment count."""
MANIFEST, FRONTIER = "family.json", "frontier.json"
MemberNetwork = UViT | Backbone
"""A member's network."""
NetworkConfig = Annotated[
    Annotated[UViTConfig, Tag("uvit")] | Annotated[BackboneConfig, Tag("diffusers")],
    Discriminator(lambda given: "diffusers" if _is_backbone(given) else "uvit"),
]
"""All that is needed to build a member's network: ours, or one that comes from diffusers."""
R = TypeVar("R", bound=BaseModel)


def _is_backbone(given: Any) -> bool:
    return isinstance(given, BackboneConfig) or (isinstance(given, dict) and "architecture" in given)


class FamilyError(ValueError):
    """A family that must not be served or trained on: one sentence that says what is wrong with which file."""


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

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")
    """Name inside the family: "teacher", "student-4", "whole"."""
    role: Role
    steps: int | None = Field(default=None, ge=1)
    """A student's number of segments; None for the teacher, and for a whole-dial student, whose counts are its network's."""
    guidance: float = Field(default=0.0, ge=0)
    """Guidance w baked into a student, or, of a student that is told it, its default; 0 for the teacher, which is guided while
    sampling."""
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
        return teacher_plan(self.name, steps, segments=0 if self.role == "whole" else None, clip=self.clips)

    @property
    def clips(self) -> bool:
        """Whether x_hat has the range of images where the member draws as a teacher; latents have none."""
        return not isinstance(self.network, BackboneConfig) or self.network.clip


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
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")
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


class Family:
    """A family whose files are all there and are what the manifest says.  Made by `open_family`."""

    def __init__(self, folder: Path, manifest: Manifest, frontier: Frontier | None):
        self.folder, self.manifest, self.frontier = folder, manifest, frontier

    @property
    def name(self) -> str:
        """The family's name."""
        return self.manifest.name

    @cached_property
    def positions(self) -> dict[int, Plan]:
        """Dial position -> the plan it runs by default, rising; every position of a member or of the frontier.

        That is the student of so many steps, or the teacher, or the student for the whole dial where it stands alone or
        where both were measured on equal numbers of images and it is the nearer one; else the frontier's best.
        """
        offered = {steps for member in self.manifest.members for steps in member.positions}
        offered |= {position.steps for position in self.frontier.positions} if self.frontier else set()
        return {steps: self._default(steps) for steps in sorted(offered)}

    def _default(self, steps: int) -> Plan:
        own = self._own(steps)
        measured = [choice for choice in self.choices(steps) if not own or choice.plan in own]
        compare = len(measured) == len(own) and len({choice.samples for choice in measured}) == 1
        return measured[0].plan if compare or not own else own[0]

    def _own(self, steps: int) -> tuple[Plan, ...]:
        """The plans of one member: of the student of so many steps, else the teacher; and of the one for the whole dial."""
        manifest = self.manifest
        dedicated = [m for m in (*manifest.students, manifest.teacher) if m and steps in m.positions][:1]
        whole = [manifest.whole] if manifest.whole and steps in manifest.whole.positions else []
        return tuple(member.plan(steps) for member in dedicated + whole)

    def plans(self, steps: int) -> tuple[Plan, ...]:
        """Return every way to draw a position: a single member's, then what else the frontier holds, best first."""
        return tuple(dict.fromkeys((*self._own(steps), *(choice.plan for choice in self.choices(steps)))))

    def choices(self, steps: int) -> tuple[Position, ...]:
        """Return every measured way to draw a position, the lowest Frechet distance first."""
        positions = self.frontier.positions if self.frontier else ()
        return tuple(sorted((p for p in positions if p.steps == steps), key=lambda position: position.frechet.mean))

    def measured(self, plan: Plan) -> Position | None:
        """Return what was measured of a plan, if anything was."""
        positions = self.frontier.positions if self.frontier else ()
        return next((position for position in positions if position.plan == plan), None)

    def source(self, plan: Plan) -> Source:
        """Tell what kind of plan this is."""
        members = [self.manifest.member(name) for name in plan.members]
        if all(member.role == "teacher" for member in members):
            return "teacher"
        alone = len(members) == 1 and plan.steps in members[0].positions and plan == members[0].plan(plan.steps)
        return members[0].role if alone else "searched"

    @property
    def variance(self) -> Variance:
        """aDDIM's x_var as a function of logsnr."""
        return self.manifest.variance or analytic_variance

    def guidance(self, plan: Plan, asked: float | None = None) -> float:
        """Return the w to guide a plan's evaluations with: the asked or default one for teachers, 0 for students.

        Students have theirs baked in, or are told it (`told`).  Raises ValueError if `asked` is not what a visited student
        was distilled with.
        """
        members = [self.manifest.member(name) for name in plan.members]
        for member in members:
            if asked is not None and member.role != "teacher":
                _check_guidance(member, asked)
        if any(member.role != "teacher" for member in members):
            return 0.0
        return self.manifest.guidance if asked is None else asked

    def told(self, member: str, asked: float | None = None) -> tuple[int, ...]:
        """Return what a member's network finds in the condition after the slots: w where it is told it, else nothing.

        w is the asked one or the member's default.  Raises ValueError as `guidance` does.
        """
        student = self.manifest.member(member)
        if student.guidance_range is None:
            return ()
        if asked is not None:
            _check_guidance(student, asked)
        return (round(GUIDANCE_PARTS * (student.guidance if asked is None else asked)),)

    def build(self, config: NetworkConfig) -> MemberNetwork:
        """Return a new network fit for the family, with its first weights.  Raises FamilyError where diffusers is missing."""
        try:
            if isinstance(config, UViTConfig):
                return UViT(config)
            backbone = Backbone(config)
            backbone.text = self.text if config.tokens else None
            return backbone
        except LibraryMissing as error:
            raise FamilyError(f"family {self.name!r} cannot be drawn: {error}") from None
        except (TypeError, ValueError, NotImplementedError) as error:  # from the library's constructors
            raise FamilyError(f"{MANIFEST} of family {self.name!r} describes a network that cannot be built") from error

    def network(self, name: str, device: torch.device | str = "cpu") -> MemberNetwork:
        """Return a member's network in float32, evaluation mode.  Raises FamilyError if the weights do not fit it."""
        member = self.manifest.member(name)
        with torch.device("meta"):
            network = self.build(member.network)
        if not {key for key, _ in network.named_buffers()} <= network.state_dict().keys():
            network = self.build(member.network)  # it has computed tensors, which no file brings back
        weights = {key: value.float() for key, value in self._tensors(member.weights).items()}
        try:
            network.load_state_dict(weights, assign=True)
        except RuntimeError as error:
            raise FamilyError(
                f"{member.weights.file} does not hold the weights of the network that {MANIFEST} describes"
            ) from error
        if not all(bool(torch.isfinite(value).all()) for value in weights.values()):
            raise FamilyError(f"{member.weights.file} holds weights that are not numbers")
        network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network.eval().requires_grad_(False)

    @cached_property
    def text(self) -> TextEncoder | None:
        """What reads prompts, shared by all networks; None where there is none.  Raises FamilyError as `network` does."""
        record = self.manifest.text
        if record is None:
            return None
        weights = {key: value.float() for key, value in self._tensors(record.weights).items()}
        try:
            with torch.device("cpu"):  # while a network is built for the meta device
                return TextEncoder(record.network, weights, pixels=self.manifest.resolution)
        except LibraryMissing as error:
            raise FamilyError(f"family {self.name!r} cannot be drawn: {error}") from None
        except (RuntimeError, TypeError, ValueError) as error:
            raise FamilyError(
                f"{record.weights.file} does not hold the weights of the text encoders that {MANIFEST} describes"
            ) from error

    def autoencoder(self, device: torch.device | str = "cpu") -> Autoencoder | None:
        """Return what makes pixels of latents, None where there are none.  Raises FamilyError as `network` does."""
        record = self.manifest.autoencoder
        if record is None:
            return None
        weights = {key: value.float() for key, value in self._tensors(record.weights).items()}
        try:
            return Autoencoder(record.network, weights, device)
        except LibraryMissing as error:
            raise FamilyError(f"family {self.name!r} cannot be drawn: {error}") from None
        except RuntimeError as error:
            raise FamilyError(
                f"{record.weights.file} does not hold the weights of the autoencoder that {MANIFEST} describes"
            ) from error

    def decoder(self, device: torch.device | str = "cpu") -> Callable[[Tensor], Tensor] | None:
        """Return what makes images of latents, for `diffusion.sampler`; None where the networks see pixels."""
        autoencoder = self.autoencoder(device)
        return autoencoder.decode if autoencoder else None

    def golden(self) -> list[tuple[GoldenSample, Tensor]]:
        """Return the recorded samples with their images, uint8 (H, W, C)."""
        record = self.manifest.golden
        if record is None:
            return []
        with safe_open(self.folder / record.file, framework="pt") as file:
            samples = [GoldenSample.model_validate(entry) for entry in json.loads(file.metadata()["samples"])]
            return list(zip(samples, file.get_tensor("images"), strict=True))

    def golden_plan(self, sample: GoldenSample) -> Plan:
        """Return the plan that a recorded sample was drawn with."""
        if sample.member is None:
            return self._own(sample.steps)[0]
        return self.manifest.member(sample.member).plan(sample.steps)

    def check_golden(self, images: dict[GoldenSample, Tensor]) -> None:
        """Compare images drawn now with the recorded ones.  Raises FamilyError naming the dial position that differs."""
        assert self.manifest.golden is not None
        for sample, recorded in self.golden():
            difference = (images[sample].cpu().float() - recorded.float()).abs().mean().item()
            if difference > self.manifest.golden.tolerance:
                raise FamilyError(
                    f"golden check of family {self.name!r} failed at steps {sample.steps}: "
                    f"the image drawn here differs from the recorded one by {difference:.1f} levels on average"
                )

    def _tensors(self, record: FileRecord) -> dict[str, Tensor]:
        try:
            return load_file(self.folder / record.file)
        except (SafetensorError, OSError) as error:
            raise FamilyError(f"{record.file} is not a readable safetensors file") from error


def _check_guidance(member: Member, asked: float) -> None:
    """Raise ValueError if a student does not draw with this guidance."""
    allowed = member.guidance_range
    if allowed and not allowed[0] <= asked <= allowed[1]:
        raise ValueError(f"{member.name} was trained for guidance {_range(allowed)}")
    if not allowed and asked != member.guidance:
        raise ValueError(
            f"guidance is baked into {member.name} at {member.guidance:g}; only the teacher's positions take another"
        )


def _range(allowed: tuple[float, float]) -> str:
    return f"{allowed[0]:g} to {allowed[1]:g}"


def open_family(folder: Path | str) -> Family:
    """Open a family and check its manifest and the SHA-256 of every file.  Raises FamilyError in one sentence."""
    folder = Path(folder)
    manifest = _read(folder, MANIFEST, Manifest)
    if manifest is None:
        raise FamilyError(f"there is no family in {folder.name!r}: {MANIFEST} is missing")
    for record in manifest.files:
        try:
            found = file_sha256(folder / record.file)
        except OSError:
            raise FamilyError(f"{record.file} of family {manifest.name!r} is missing or cannot be read") from None
        if found != record.sha256:
            raise FamilyError(
                f"{record.file} of family {manifest.name!r} is not the file that was written: its SHA-256 differs"
            )
    _open_tokenizers(folder, manifest)
    frontier = _read(folder, FRONTIER, Frontier)
    try:
        for plan in frontier.plans if frontier else ():
            manifest.check(plan.hops)
    except ValueError as error:
        raise FamilyError(f"{FRONTIER} of family {manifest.name!r} {error}") from None
    return Family(folder, manifest, frontier)


def _open_tokenizers(folder: Path, manifest: Manifest) -> None:
    """Let a family that takes prompts of any words read them."""
    if not isinstance(manifest.conditioning, TextConditioning):
        return
    try:
        manifest.conditioning.open(folder)
    except ModuleNotFoundError:
        raise FamilyError(f"family {manifest.name!r} cannot be drawn: {LibraryMissing()}") from None
    except Exception as error:  # the library has no class of its own for them
        raise FamilyError(f"a tokenizer of family {manifest.name!r} is not one") from error


def _read(folder: Path, name: str, schema: type[R]) -> R | None:
    """Read one of the family's JSON files; None if it does not exist.  Raises FamilyError naming the first wrong field."""
    try:
        return schema.model_validate_json((folder / name).read_bytes())
    except FileNotFoundError:
        return None
    except OSError:
        raise FamilyError(f"{name} of {folder.name!r} cannot be read") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise FamilyError(f"{name} of {folder.name!r} is not valid: {where}: {first['msg']}") from None


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(folder: Path, name: str, record: BaseModel) -> None:
    """Write one of the family's JSON files, whole or not at all."""
    temporary = folder / f".{name}.partial"
    temporary.write_text(json.dumps(record.model_dump(mode="json"), indent=1) + "\n")
    os.replace(temporary, folder / name)


def write_tensors(
    folder: Path, name: str, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> FileRecord:
    """Write a safetensors file, whole or not at all, and return its record."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{name}.partial"
    save_file({key: value.contiguous().cpu() for key, value in tensors.items()}, temporary, metadata=metadata)
    temporary.chmod(0o644)  # safetensors writes for the owner alone; a server may run as somebody else
    os.replace(temporary, folder / name)
    return FileRecord(file=name, sha256=file_sha256(folder / name))


def write_golden(folder: Path, samples: list[tuple[GoldenSample, Tensor]], *, tolerance: float = 2.0) -> GoldenRecord:
    """Write the golden samples, images uint8 (H, W, C), and return their record."""
    about = json.dumps([sample.model_dump(mode="json") for sample, _ in samples])
    record = write_tensors(
        folder, "golden.safetensors", {"images": torch.stack([image for _, image in samples])}, {"samples": about}
    )
    return GoldenRecord(**record.model_dump(), tolerance=tolerance)
