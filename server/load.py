"""The load: accepted work, summed up by what it needs of the device, and how long it will take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil

from server.pace import Pace
from server.tickets import Need, Ticket, rest

MARGIN = 1.2
"""What a promised sample allows for, as a multiple of the predicted time of its remaining waves."""


@dataclass(slots=True)
class Share:
    """The work that has one need."""

    samples: int = 0
    """Samples that need it at least once more."""
    evaluations: int = 0
    longest: int = 0
    """The most evaluations of it that one sample still takes."""
    promised: bool = False
    """Whether some of the samples are promised, so that they may pass others."""

    def add(self, evaluations: int, promised: bool = False) -> None:
        """Count one sample in."""
        self.samples += 1
        self.evaluations += evaluations
        self.longest = max(self.longest, evaluations)
        self.promised |= promised

    def waves(self, max_wave: int) -> int:
        """Return how many waves it takes at most, if the lane is never empty between: Graham's bound on list scheduling."""
        if self.samples <= max_wave:
            return self.longest
        return self.longest + ceil((self.evaluations - self.longest) / max_wave)


class Load:
    """The accepted work at one moment."""

    def __init__(self, tickets: Iterable[Ticket], pace: Pace):
        self._pace = pace
        self._shares: dict[Need, Share] = {}
        for ticket in tickets:
            for need, evaluations in rest(ticket.sample, ticket.number).items():
                self._shares.setdefault(need, Share()).add(evaluations, ticket.deadline is not None)

    @property
    def backlog_seconds(self) -> float:
        """How long the device will need for it, the waves as full as the present samples can make them."""
        return sum(
            share.evaluations / self._rows(share.samples) * self._wave_seconds(need, share.samples)
            for need, share in self._shares.items()
        )

    def rest_seconds(self, evaluations: Counter[Need]) -> float:
        """Return what these evaluations take of one who is urgent, in waves of the present size.

        It holds a margin and the longest wave of others that may just have begun.
        """
        own = sum(count * self._wave_seconds(need, self._samples(need)) for need, count in evaluations.items())
        others = (
            self._wave_seconds(need, share.samples)
            for need, share in self._shares.items()
            if share.samples > (need in evaluations)
        )
        return MARGIN * own + max(others, default=0.0)

    def seconds_until_drawn(self, wanted: Sequence[Counter[Need]]) -> float:
        """Return how long samples of these evaluations take from now on, behind everybody who is here.

        Every round of the lanes serves the samples' own lane and, as long as they have work, all others; promised work
        in other lanes is taken to be done first. Only what arrives later can make it longer.
        """
        seconds, rounds, own = 0.0, 0, set().union(*wanted)
        for need in own:
            share = self._joined(need, wanted)
            waves = share.waves(self._pace.max_wave) + (need in self._shares)  # one may just have begun
            seconds += waves * self._wave_seconds(need, share.samples)
            rounds += waves
        for need in self._shares.keys() - own:
            share = self._shares[need]
            waves = share.waves(self._pace.max_wave)
            seconds += (waves if share.promised else min(rounds, waves)) * self._wave_seconds(need, share.samples)
        return seconds

    def _joined(self, need: Need, wanted: Sequence[Counter[Need]]) -> Share:
        """The need's share as it is once the wanted samples are here; of the longest, only the wanted ones count."""
        present = self._shares.get(need, Share())
        joined = Share(present.samples, present.evaluations)
        for evaluations in wanted:
            if need in evaluations:
                joined.add(evaluations[need])
        return joined

    def _samples(self, need: Need) -> int:
        return self._shares[need].samples if need in self._shares else 1

    def _rows(self, samples: int) -> int:
        return min(samples, self._pace.max_wave)

    def _wave_seconds(self, need: Need, samples: int) -> float:
        return self._pace.wave_seconds(need.member, need.guided, self._rows(samples), need.family)
