"""The frontier: what each dial position of a family was measured to give and to cost.  A file, made by a command.

A position may have been measured in several ways: by the student of that many steps, by the student for the whole dial,
by a searched plan.  They are rows of their own, told apart by their plans.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from diffusion.plans import Plan

Source = Literal["student", "whole", "teacher", "searched"]
"""Where a plan comes from: the student of that many steps, the student for the whole dial, the teacher, or a search."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Measure(_Record):
    """A measured number: the mean over runs with different seeds, and how far they were apart."""

    mean: float
    """Mean over the runs."""
    spread: float
    """Standard deviation over the runs (0 with one run)."""


class Provenance(_Record):
    """How a number was measured, so that it can be measured again."""

    command: str
    """The command that measured it."""
    commit: str
    """Version of the code, as git names it."""
    device: str
    """What it was measured on."""
    precision: str
    """Network arithmetic: "fp32", as it is served, or "bf16" (autocast)."""
    versions: dict[str, str]
    """Versions of Python and of the libraries that matter."""
    measured_at: str
    """When, in UTC, ISO 8601."""


class _Judged(_Record):
    """How good a plan's images were measured to be."""

    samples: int
    """Images behind each run's quality numbers; distances compare at equal numbers only."""
    seeds: tuple[int, ...]
    """Seeds of the quality runs."""
    frechet: Measure
    """Frechet distance to the frontier's reference, in the judge's units; lower is better."""
    floor: Measure
    """The distance of as many real images to real images: about as low as a perfect model would come."""
    agreement: Measure | None = None
    """Fraction of images in which the judge finds everything that was asked for; None where nothing is asked."""
    agreement_held_out: Measure | None = None
    """The same for combinations never drawn in training."""
    measured: Provenance
    """How quality was measured."""


class Position(_Judged):
    """One dial position, drawn in one way."""

    steps: int = Field(ge=1)
    """Network evaluations an image takes."""
    plan: Plan
    """What the engine runs."""
    source: Source
    """Where the plan comes from."""
    guidance: float = 0.0
    """Guidance w: baked into a student, applied while sampling from a teacher."""
    latency_ms: Measure
    """One image alone, from seed to pixels, fp32, in milliseconds: median over repeats, spread half the interquartile range."""
    images_per_second: float
    """Throughput at `batch` images at a time, fp32."""
    batch: int
    """Images at a time behind images_per_second."""
    timed: Provenance
    """How speed was measured."""


class Rescue(_Judged):
    """What an image is worth that leaves its plan at a segment boundary and ends in fewer hops."""

    steps: int = Field(ge=1)
    """The position that is left."""
    plan: Plan
    """The whole way from noise: the hops of that position as far as they are taken, then how the image ends."""


class Frontier(_Record):
    """The measured table of one family on one device."""

    format: Literal[1] = 1
    family: str
    """Name of the family."""
    reference: str
    """What distances are taken to."""
    judge: str
    """The feature network and classifier: what it is, what it was trained on, how right it is on fresh real images."""
    positions: tuple[Position, ...] = Field(min_length=1)
    """By rising steps; several of the same steps have different plans."""
    rescues: tuple[Rescue, ...] = ()
    """Images finished early, by rising steps."""

    @property
    def plans(self) -> tuple[Plan, ...]:
        """Every plan that was measured."""
        return (*(position.plan for position in self.positions), *(rescue.plan for rescue in self.rescues))
