"""The ways of a family: every plan that draws a position of its dial, and what was measured of it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import mode
from typing import Literal

from diffusion.family import Family
from diffusion.frontier import Position, Source
from diffusion.plans import Plan

Kind = Literal["dedicated", "searched", "auto"]
"""dedicated: one network, where there is one for the position. searched: what a search found. auto: whichever measured best.
None, of a request: a position's default."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way to draw a position."""

    steps: int
    """Dial position."""
    plan: Plan
    """What the engine runs."""
    source: Source
    """Where the plan comes from."""
    is_default: bool
    """Whether a request for so many steps gets it unless it says otherwise."""
    is_dedicated: bool
    """Whether it is what the network of so many steps draws, where there is one."""
    measured: Position | None
    """What was measured of it; None where nobody measured."""
    comparable: bool
    """Whether its distance was measured on as many images as most others'; distances of other numbers do not compare."""

    @property
    def student(self) -> str:
        """Names of the networks that draw, in the order of their hops, joined by +."""
        return "+".join(self.plan.members)

    @property
    def distance(self) -> float:
        """Mean Frechet distance; infinite where it was not measured."""
        return self.measured.frechet.mean if self.measured else math.inf

    def compares_at(self, guidance: float | None) -> bool:
        """Whether its distance may be compared with other ways' at the guidance that is asked for; None is the family's."""
        return self.comparable and (
            guidance is None or (self.measured is not None and guidance == self.measured.guidance)
        )

    def rank(self, guidance: float | None) -> tuple[bool, float, bool]:
        """Return what orders ways of one position, the best first: by distance, and of those that do not compare the dedicated."""
        compares = self.compares_at(guidance)
        return not compares, self.distance if compares else 0.0, not self.is_dedicated


def ways_of(family: Family) -> tuple[Way, ...]:
    """Return every way to draw every position of a family, by rising steps, a position's default first."""
    images = mode(position.samples for position in family.frontier.positions) if family.frontier else 0
    ways = []
    for steps, default in family.positions.items():
        dedicated = family.dedicated(steps)
        for plan in dict.fromkeys((default, *family.plans(steps))):
            measured = family.measured(plan)
            comparable = measured is not None and measured.samples == images
            source = family.source(plan)
            ways.append(Way(steps, plan, source, plan == default, plan == dedicated, measured, comparable))
    return tuple(ways)


def of_kind(ways: Iterable[Way], kind: Kind | None) -> list[Way]:
    """Return the ways that a request's `plan` allows; the defaults if it says nothing."""
    if kind is None:
        return [way for way in ways if way.is_default]
    if kind == "dedicated":
        return [way for way in ways if way.is_dedicated]
    return [way for way in ways if kind == "auto" or way.source == "searched"]
