"""The load: accepted work, summed up by what it needs of the device, and how long it will take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
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

    def add(self, evaluations: int, *, times: int = 1, promised: bool = False) -> None:
        """Count samples in, each of so many evaluations."""
        self.samples += times
        self.evaluations += times * evaluations
        self.longest = max(self.longest, evaluations)
        self.promised |= promised

    def waves(self, max_wave: int, of: int | None = None) -> int:
        """Return how many waves it takes at most until a sample of so many evaluations, default the longest, is through.

        Graham's bound on list scheduling: whenever the sample is not in a wave, the wave is full of others.
        """
        own = self.longest if of is None else of
        return own if self.samples <= max_wave else own + ceil((self.evaluations - own) / max_wave)


class Load:
    """The accepted work at one moment."""

    def __init__(self, tickets: Iterable[Ticket], pace: Pace):
        self._pace = pace
        self._shares: dict[Need, Share] = {}
        self._images: Counter[str] = Counter()
        """Samples of each family that are not drawn yet."""
        for ticket in tickets:
            self._images[ticket.sample.family] += ticket.pending > 0
            for need, evaluations in rest(ticket.sample, ticket.number).items():
                self._shares.setdefault(need, Share()).add(evaluations, promised=ticket.deadline is not None)

    @property
    def backlog_seconds(self) -> float:
        """How long the device will need for it, the waves as full as the present samples can make them."""
        decoding = sum(self._pace.decode_seconds(images, family) for family, images in self._images.items())
        return decoding + sum(
            share.evaluations / self._rows(share.samples) * self._wave_seconds(need, share.samples)
            for need, share in self._shares.items()
        )

    def rest_seconds(self, evaluations: Counter[Need]) -> float:
        """Return what these evaluations take of one who is urgent, in waves of the present size.

        It holds a margin and the longest wave of others that may just have begun.
        """
        own = sum(count * self._wave_seconds(need, self._samples(need)) for need, count in evaluations.items())
        own += sum(self._decode_seconds(family, self._images[family] or 1) for family in _families(evaluations))
        others = (
            self._wave_seconds(need, share.samples)
            for need, share in self._shares.items()
            if share.samples > (need in evaluations)
        )
        return MARGIN * own + max(others, default=0.0)

    def seconds_until_drawn(self, wanted: Sequence[Counter[Need]]) -> float:
        """Return how long samples of these evaluations take from now on, behind everybody who is here.

        Between two waves of a sample's own, every lane that has work is served once; promised work in other lanes is taken
        to be done first, and one wave may just have begun. Only what arrives later can make it longer.
        """
        kinds = Counter(frozenset(evaluations.items()) for evaluations in wanted)
        return max(
            self._seconds_of(dict(own), number, [(dict(other), kinds[other]) for other in kinds if other != own])
            for own, number in kinds.items()
        )

    def _seconds_of(self, own: dict[Need, int], number: int, beside: list[tuple[dict[Need, int], int]]) -> float:
        """Seconds of so many samples of a kind, beside samples of other kinds that arrive with them."""
        others = {need: replace(share) for need, share in self._shares.items()}
        for kind, count in beside:
            for need, evaluations in kind.items():
                others.setdefault(need, Share()).add(evaluations, times=count)
        together = {need: replace(others.get(need, Share())) for need in own | others}
        for need, evaluations in own.items():
            together[need].add(evaluations, times=number)
        waves = {need: together[need].waves(self._pace.max_wave, own[need]) for need in own}
        rounds, seconds = sum(waves.values()) + 1, 0.0
        served: Counter[str] = Counter()
        for need, share in together.items():
            mine, between = waves.get(need, 0), others[need].waves(self._pace.max_wave) if need in others else 0
            if not share.promised or own.keys() == {need}:
                between = min(between, rounds - mine)
            seconds += (mine + between) * self._wave_seconds(need, share.samples)
            served[need.family] += mine + between
        images = self._images + Counter(dict.fromkeys(_families(own), number + sum(count for _, count in beside)))
        return seconds + sum(self._decode_seconds(family, images[family], waves) for family, waves in served.items())

    def _samples(self, need: Need) -> int:
        return self._shares[need].samples if need in self._shares else 1

    def _decode_seconds(self, family: str, images: int, waves: int = 1) -> float:
        """Seconds to decode so many images, but no more of them than those waves have rows."""
        return self._pace.decode_seconds(min(images, waves * self._pace.max_wave), family)

    def _rows(self, samples: int) -> int:
        return min(samples, self._pace.max_wave)

    def _wave_seconds(self, need: Need, samples: int) -> float:
        return self._pace.wave_seconds(need.member, need.guided, self._rows(samples), need.family)


def _families(evaluations: Iterable[Need]) -> set[str]:
    return {need.family for need in evaluations}
