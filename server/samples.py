"""Samples and their turns: what the scheduler orders and the engine draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # the scheduler and its tests need no torch
    from diffusion.plans import Hop, Plan


@dataclass(frozen=True, slots=True)
class Sample:
    """One image to draw. Equal samples give equal images, whatever else is in the wave, where `exact` is set."""

    plan: Plan
    """The hops that lead from noise to the image."""
    condition: tuple[int, ...]
    """One value per conditioning slot, 0 = none."""
    seed: int
    """0 .. 2^63 - 1; with `index` it defines all noise of the image."""
    index: int = 0
    """Number of the image among those of its seed, 0 .. 2^32 - 1."""
    guidance: float = 0.0
    """Weight w of classifier-free guidance on the teacher; students have theirs baked in."""
    exact: bool = True
    """Whether the image must have the same bits in any crowd."""

    @property
    def evaluations(self) -> int:
        """Network evaluations that the image takes in all."""
        return len(self.plan.hops)


@dataclass(frozen=True, slots=True)
class Turn:
    """A sample's part in one wave: which hop it takes, from which latent."""

    sample: Sample
    number: int
    """Hops already taken, 0 .. evaluations - 1."""
    latent: Any
    """What the engine returned for the previous turn; None on the first, when the noise is still to be drawn."""
    preview: bool = False
    """Whether an image of this hop's x_hat is wanted beside the latent; the last hop's is the image anyway."""

    @property
    def hop(self) -> Hop:
        """The hop to take."""
        return self.sample.plan.hops[self.number]

    @property
    def condition(self) -> tuple[int, ...]:
        """What the network is told: the sample's condition and, where it serves the whole dial, the segment count."""
        return self.sample.condition if self.hop.segments is None else (*self.sample.condition, self.hop.segments)

    @property
    def is_last(self) -> bool:
        """Whether this turn yields the image."""
        return self.number + 1 == self.sample.evaluations


class Previewed(NamedTuple):
    """What a turn that asks for a preview returns unless it is the last."""

    latent: Any
    """The next turn's latent."""
    pixels: Any
    """x_hat of the hop, uint8 (H, W, C): what the image would be if it ended here."""
