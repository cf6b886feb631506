"""Samples and their turns: what the scheduler orders and the engine draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # the scheduler and its tests need no torch
    from diffusion.plans import Evaluation, Hop, Plan


@dataclass(frozen=True, slots=True)
class Sample:
    """One image to draw. Equal samples give equal images, whatever else is in the wave, where `exact` is set."""

    plan: Plan
    """The hops that lead from noise to the image."""
    condition: tuple[int, ...]
    """One value per conditioning slot, 0 = none; then, for a student that is told its guidance, w in thousandths."""
    seed: int
    """0 .. 2^63 - 1; with `index` it defines all noise of the image."""
    index: int = 0
    """Number of the image among those of its seed, 0 .. 2^32 - 1."""
    guidance: float = 0.0
    """Weight w of classifier-free guidance on the teacher; students have theirs baked in."""
    exact: bool = True
    """Whether the image must have the same bits in any crowd."""
    family: str = ""
    """Name of the family whose members draw it; empty where there is only one."""
    alternatives: tuple[Plan, ...] = ()
    """Plans that the caller accepts too and that end sooner; one can take over where its first hops are those taken."""

    @property
    def evaluations(self) -> int:
        """Network evaluations that the image takes in all."""
        return len(self.plan.evaluations)


@dataclass(frozen=True, slots=True)
class Turn:
    """A sample's part in one wave: which evaluation it takes, from which latent."""

    sample: Sample
    number: int
    """Evaluations already taken, 0 .. evaluations - 1."""
    latent: Any
    """What the engine returned for the previous turn; None on the first, when the noise is still to be drawn."""
    preview: bool = False
    """Whether an image of x_hat is wanted beside the latent; the last turn's result is the image anyway."""

    @property
    def evaluation(self) -> Evaluation:
        """The evaluation to take."""
        return self.sample.plan.evaluations[self.number]

    @property
    def hop(self) -> Hop:
        """The hop that the evaluation belongs to."""
        return self.evaluation.hop

    @property
    def guidance(self) -> float:
        """The sample's w where guidance acts, else 0."""
        return self.sample.guidance if self.hop.guided else 0.0

    @property
    def condition(self) -> tuple[int, ...]:
        """What the network is told: the sample's condition and, where it serves the whole dial, the segment count."""
        return self.sample.condition if self.hop.segments is None else (*self.sample.condition, self.hop.segments)

    @property
    def is_last(self) -> bool:
        """Whether this turn yields the image."""
        return self.number + 1 == self.sample.evaluations

    @property
    def makes_image(self) -> bool:
        """Whether x_hat of this turn is wanted as an image."""
        return self.is_last or self.preview

    @property
    def ends_hop(self) -> bool:
        """Whether a hop is complete after this turn; false for the first evaluation of a heun hop."""
        return self.is_last or not self.sample.plan.evaluations[self.number + 1].corrects


class Previewed(NamedTuple):
    """What a turn that asks for a preview returns unless it is the last."""

    latent: Any
    """The next turn's latent."""
    pixels: Any
    """x_hat of the turn, uint8 (H, W, C): what the image would be if it ended here."""


@dataclass(frozen=True, slots=True)
class Underway:
    """A wave that an asynchronous device has been handed but not finished; meanwhile it can be handed the next."""

    wait: Callable[[], Sequence[Any]]
    """Wait for the device and return the wave's results, or raise what `Device.wave` would."""
