"""Promises in milliseconds: which position of the dial a request gets, from what was measured and what is predicted."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from diffusion.frontier import Measure
from diffusion.plans import Plan
from server.failures import DeadlineUnattainable

Reason = Literal["brownout", "deadline", "queue"]
"""Why an image took fewer steps than wished: the server's brown-out, the request's deadline, or the room in the queue."""

GOOD_ENOUGH = 1.05
"""Distance, as a multiple of the best student's, that a request of `steps: "auto"` without a deadline is content with."""
CAPS = (math.inf, 16, 8, 4, 2, 1)
"""Most steps of a consenting request, by level of brown-out."""
DWELL_SECONDS = 0.5
"""Least time between two changes of the level: a lower cap shows in the backlog only after some waves."""


@dataclass(frozen=True, slots=True)
class Offer:
    """One way to draw what a request asks for: what it was measured to give, and what it is predicted to take."""

    steps: int
    """Dial position."""
    plan: Plan
    """What the engine would run."""
    frechet: Measure | None
    """Measured distance to real images; None where nobody measured it."""
    by_teacher: bool
    """Whether it is one of the teacher's positions."""
    seconds: float
    """From now until the last image is encoded, as predicted."""

    @property
    def distance(self) -> float:
        """Mean distance; infinite where it was not measured."""
        return self.frechet.mean if self.frechet else math.inf


@dataclass(frozen=True, slots=True)
class Terms:
    """What a request allows."""

    consent: bool
    """Whether a crowded server may give fewer steps."""
    min_steps: int = 1
    """Fewest steps that are acceptable."""
    max_steps: float = math.inf
    """Most steps that are acceptable."""
    deadline_seconds: float = math.inf
    """Time from now within which the images are wanted; infinite without a deadline."""


@dataclass(frozen=True, slots=True)
class Pressure:
    """How crowded the server is."""

    cap: float = math.inf
    """Most steps that the brown-out leaves to consenting requests."""
    room: float = math.inf
    """Evaluations per image that the queue still has room for."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The offer that a request gets, and why it is not the one that was wished."""

    offer: Offer
    reason: Reason | None
    """None where the wish is met."""


class NothingAllowed(ValueError):
    """The request allows no position that was measured."""


def best(offers: Sequence[Offer]) -> Offer:
    """Return the offer with the lowest measured distance, of equals the one with the fewest steps."""
    return min(offers, key=lambda offer: (offer.distance, offer.steps, offer.seconds))


def economical(offers: Sequence[Offer]) -> Offer:
    """Return the offer with the fewest steps that is about as good as the best student among them.

    About as good is a distance within 5 % of the best student's, or within the spread with which that was measured. The
    teacher's positions count only where there are no others: they cost many times as much.
    """
    students = [offer for offer in offers if not offer.by_teacher] or list(offers)
    finest = best(students)
    spread = finest.frechet.spread if finest.frechet else 0.0
    content = max(finest.distance * GOOD_ENOUGH, finest.distance + spread)
    return min((o for o in students if o.distance <= content), key=lambda o: (o.steps, o.distance))


def decide(offers: Sequence[Offer], *, asked: Offer | None, terms: Terms, pressure: Pressure) -> Choice:
    """Return which offer a request gets.

    asked is the offer of an explicit `steps`, None for "auto". Positions that were not measured are never chosen, only
    asked for; without consent an explicit wish is met or refused. Of what can be ready in time, "auto" means the best with
    a deadline and the economical one without. A crowded server lowers consenting requests to its cap or its room, and
    to the fewest steps where nothing is that low; it never refuses for that.

    Raises DeadlineUnattainable when nothing that the request allows can be ready in time, NothingAllowed when it
    allows none that was measured.
    """
    allowed = [offer for offer in offers if offer.frechet and terms.min_steps <= offer.steps <= terms.max_steps]
    if asked:
        allowed = [asked, *(offer for offer in allowed if terms.consent and offer.steps < asked.steps)]
    if not allowed:
        raise NothingAllowed
    in_time = [offer for offer in allowed if offer.seconds <= terms.deadline_seconds]
    if not in_time:
        raise DeadlineUnattainable(terms.deadline_seconds, min(offer.seconds for offer in allowed))
    pick = economical if asked is None and terms.deadline_seconds == math.inf else best
    wanted = asked if asked in in_time else pick(in_time)
    late: Reason | None = None if asked in (None, wanted) else "deadline"
    if not terms.consent or wanted.steps <= min(pressure.cap, pressure.room):
        return Choice(wanted, late)
    given = _lowered(in_time, pick, most=min(pressure.cap, pressure.room))
    if given.steps == wanted.steps:
        return Choice(wanted, late)
    return Choice(given, late or ("brownout" if wanted.steps > pressure.cap else "queue"))


def _lowered(offers: Sequence[Offer], pick: Callable[[Sequence[Offer]], Offer], *, most: float) -> Offer:
    fewest = min(offer.steps for offer in offers)
    return pick([offer for offer in offers if offer.steps <= max(most, fewest)])


class Brownout:
    """How far consenting requests are lowered: a level that two watermarks on the backlog move, with rest in between."""

    def __init__(self, *, high_seconds: float, low_seconds: float):
        self.level = 0
        """0 is none; each level halves the cap."""
        self._high_seconds, self._low_seconds = high_seconds, low_seconds
        self._changed = -math.inf

    @property
    def cap(self) -> float:
        """Most steps of a consenting request now."""
        return CAPS[self.level]

    def observe(self, backlog_seconds: float, now: float) -> None:
        """Move the level by what the device has before it; now is any clock's time in seconds.

        Above the high watermark it rises, below the low one it falls, by one level at a time and not before the last
        change could show; between them it stays. A device with nothing to do ends the brown-out.
        """
        if backlog_seconds <= 0:
            self._move(0, now)
        elif now - self._changed < DWELL_SECONDS:
            return
        elif backlog_seconds > self._high_seconds:
            self._move(min(self.level + 1, len(CAPS) - 1), now)
        elif backlog_seconds < self._low_seconds:
            self._move(max(self.level - 1, 0), now)

    def _move(self, level: int, now: float) -> None:
        if level != self.level:
            self.level, self._changed = level, now
