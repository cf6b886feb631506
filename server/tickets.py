"""Tickets: samples on their way, and what they get at the end."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from server.samples import Sample, Turn

if TYPE_CHECKING:
    from diffusion.plans import Hop, Plan

Preview = Callable[[int, int, Any], None]
"""Called with a sample's place in its draw, the evaluations it has taken, and x_hat as uint8 (H, W, C)."""
Progress = Callable[[int, int], None]
"""Called with a sample's place in its draw and the evaluations it has taken."""
Hurry = Literal["brownout", "deadline"]
"""Why a sample ends sooner than its plan."""


class Need(NamedTuple):
    """What an evaluation needs of the device. The turns of one wave have one need."""

    family: str
    """Name of the family, empty where there is only one."""
    member: str
    """Name of the network."""
    guided: bool
    """Whether it is evaluated with and without the condition."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A finished image."""

    pixels: Any
    """What the device returned for the last turn: uint8 (H, W, C)."""
    queue_seconds: float
    """Time spent waiting for a wave, before the first and between two."""
    device_seconds: float
    """Time spent in waves."""
    plan: Plan
    """The hops that were taken."""
    shortened: Hurry | None = None
    """Why that is not the plan that was asked for but one of its alternatives; None where it is."""
    begun: float = 0.0
    """When its first wave began, a time of perf_counter."""

    @property
    def evaluations(self) -> int:
        """Network evaluations that the image took."""
        return len(self.plan.evaluations)


@dataclass(slots=True, eq=False)
class Ticket:
    """A sample on its way."""

    sample: Sample
    image: asyncio.Future[Drawn]
    order: int
    """Tickets are numbered as they arrive."""
    arrived: float
    """When; all times are those of perf_counter."""
    due: float
    """Its place in a lane: its deadline, or what stands for one; never before it arrived."""
    deadline: float | None = None
    """When the image is promised, if it is."""
    place: int = 0
    """Its number among the samples of its draw."""
    preview: Preview | None = None
    progress: Progress | None = None
    number: int = 0
    """Evaluations taken."""
    boarded: int = 0
    """Evaluations begun: those taken, and the one that it is in a wave for."""
    latent: Any = None
    start_by: float = inf
    """When its next wave has to begin for the promise to be kept; never before it began to wait for that wave."""
    device_seconds: float = 0.0
    begun: float = 0.0
    """When its first wave began."""
    shortened: Hurry | None = None

    @property
    def need(self) -> Need:
        """What its next evaluation needs."""
        return _need(self.sample, self.sample.plan.evaluations[self.number].hop)

    @property
    def following(self) -> Need | None:
        """What it will need after its next evaluation; None when that is the last."""
        after = self.sample.plan.evaluations[self.number + 1 : self.number + 2]
        return _need(self.sample, after[0].hop) if after else None

    @property
    def pending(self) -> int:
        """Evaluations still to come."""
        return self.sample.evaluations - self.number

    @property
    def turn(self) -> Turn:
        """Its part in the next wave."""
        turn = Turn(self.sample, self.number, self.latent)
        return replace(turn, preview=True) if self.preview and turn.ends_hop and not turn.is_last else turn

    def endings(self) -> list[Plan]:
        """Return the alternatives that can take over now and are shorter, the longest first."""
        plan, taken = self.sample.plan.evaluations, self.number
        if plan[taken].corrects:  # amid a heun hop
            return []
        shorter = (other for other in self.sample.alternatives if len(other.evaluations) < len(plan))
        agreeing = [other for other in shorter if other.evaluations[:taken] == plan[:taken]]
        return sorted(agreeing, key=lambda other: -len(other.evaluations))

    def end_by(self, plan: Plan, why: Hurry) -> None:
        """Go on by one of the endings."""
        self.sample, self.shortened = replace(self.sample, plan=plan), why

    def fail(self, error: Exception) -> None:
        """Answer with an error, unless there is an answer."""
        if not self.image.done():
            self.image.set_exception(error)


def rest(sample: Sample, number: int = 0, plan: Plan | None = None) -> Counter[Need]:
    """Return how many evaluations of each need are still to come after `number`; plan: if the sample ended that way."""
    plan = plan or sample.plan
    visits = Counter(hop.visit for hop, _ in plan.evaluations[number:]) if number else plan.visits
    needs: Counter[Need] = Counter()
    for (member, guided), evaluations in visits.items():
        needs[Need(sample.family, member, guided and sample.guidance != 0)] += evaluations
    return needs


def _need(sample: Sample, hop: Hop) -> Need:
    return Need(sample.family, hop.member, hop.guided and sample.guidance != 0)
