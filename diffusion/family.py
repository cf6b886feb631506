"""A family on disk: a teacher and its students, and everything that says how they may be sampled.

    family.json            the manifest
    <member>.safetensors   weights, half precision
    golden.safetensors     a few samples as training drew them
    frontier.json          what each dial position gives and costs (diffusion/frontier.py)
    judge.safetensors      the network that measured it (training/features.py); never served

Nothing is ever unpickled.  Every file that is served is pinned by its SHA-256 in the manifest; files are written to a
temporary name and renamed, the manifest last, so that a reader sees a family whole or not at all.
"""

import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from diffusion.autoencoder import Autoencoder
from diffusion.backbone import Backbone, BackboneConfig, LibraryMissing
from diffusion.condition import GUIDANCE_PARTS, TextConditioning
from diffusion.files import file_sha256
from diffusion.frontier import Frontier, Position, Source
from diffusion.manifest import FRONTIER, MANIFEST, FileRecord, GoldenSample, Manifest, MemberNetwork, NetworkConfig
from diffusion.plans import Plan, Variance
from diffusion.steady import steady
from diffusion.text import TextEncoder
from diffusion.uvit import UViT, UViTConfig
from diffusion.variance import analytic_variance

R = TypeVar("R", bound=BaseModel)
Precision = Literal["fp32", "bf16"]
"""What networks compute in. In bf16 their weights and all that is between z_t and v take half the memory."""


class FamilyError(ValueError):
    """A family that must not be served or trained on: one sentence that says what is wrong with which file."""


class Family:
    """A family whose files are all there and are what the manifest says.  Made by `open_family`."""

    def __init__(self, folder: Path, manifest: Manifest, frontier: Frontier | None, precision: Precision = "fp32"):
        self.folder, self.manifest, self.frontier = folder, manifest, frontier
        self.precision = precision
        """What its networks compute in, here and now."""

    @property
    def name(self) -> str:
        """The family's name."""
        return self.manifest.name

    @cached_property
    def positions(self) -> dict[int, Plan]:
        """Dial position -> the plan it runs by default, rising; every position of a member or of the frontier.

        That is the nearest to real images of what draws it, searched plans too, if all were measured on equal numbers of
        images and it draws what was asked for as often; else what `dedicated` says.
        """
        offered = {steps for member in self.manifest.members for steps in member.positions}
        offered |= {position.steps for position in self.frontier.positions} if self.frontier else set()
        return {steps: self._default(steps) for steps in sorted(offered)}

    def _default(self, steps: int) -> Plan:
        choices, dedicated = self.choices(steps), self.dedicated(steps)
        if not self._compare(choices, self._own(steps)):
            return dedicated
        best, own = choices[0].agreement, next(one.agreement for one in choices if one.plan == dedicated)
        less = best and own and best.mean + best.spread < own.mean - own.spread
        return dedicated if less else choices[0].plan

    def dedicated(self, steps: int) -> Plan:
        """Return the plan that one member draws a position by.

        That is the student of so many steps, or the teacher, or the student for the whole dial where it stands alone or
        where both were measured on equal numbers of images and it is the nearer one; without any the frontier's best.
        """
        own = self._own(steps)
        measured = tuple(choice for choice in self.choices(steps) if not own or choice.plan in own)
        return measured[0].plan if self._compare(measured, own) or not own else own[0]

    def _compare(self, choices: tuple[Position, ...], own: tuple[Plan, ...]) -> bool:
        """Tell whether these positions, which all that members draw by themselves must be among, were measured alike."""
        return {choice.plan for choice in choices} >= set(own) and len({choice.samples for choice in choices}) == 1

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
                member.check_guidance(asked)
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
            student.check_guidance(asked)
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
        """Return a member's network in the family's precision, evaluation mode.

        Raises FamilyError if the weights do not fit it, or there is no such network in this precision.
        """
        member = self.manifest.member(name)
        if self.precision != "fp32" and isinstance(member.network, BackboneConfig):
            raise FamilyError(
                f"family {self.name!r} cannot be drawn in {self.precision}: its networks are diffusers', and drawn in fp32"
            )
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
        kind = torch.bfloat16 if self.precision == "bf16" else torch.float32
        network.to(device, kind, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if torch.device(device).type == "cpu":
            steady(network)
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


def open_family(folder: Path | str, precision: Precision = "fp32") -> Family:
    """Open a family and check its manifest and the SHA-256 of every file.  Raises FamilyError in one sentence.

    precision: what its networks are to compute in.
    """
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
    return Family(folder, manifest, frontier, precision)


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
