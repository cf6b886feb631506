"""Sizing: how many replicas a load takes, from the measured frontier. Arithmetic only."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from diffusion.frontier import Position

UTILISATION = 0.6
"""Share of its capacity that a replica is planned to be used at: the rest is for bursts, checks and a lost neighbour."""

MIX = {1: 5.0, 4: 3.0, 16: 1.0}
"""Mix of dial positions that the documents reckon with: many quick ones, some better, few best."""


@dataclass(frozen=True, slots=True)
class Speed:
    """What one image of a dial position takes of one replica."""

    steps: int
    alone_seconds: float
    """One image alone, from seed to pixels."""
    images_per_second: float
    """With full waves."""
    batch: int
    """Samples of a full wave."""

    @classmethod
    def of(cls, position: Position) -> "Speed":
        """Return the speed that was measured of a position."""
        return cls(position.steps, position.latency_ms.mean / 1000, position.images_per_second, position.batch)

    def wave_seconds(self, samples: int) -> float:
        """Return the seconds of one network evaluation of so many samples: a straight line through the two that were measured."""
        one, full = self.alone_seconds / self.steps, self.batch / self.images_per_second / self.steps
        return one + (full - one) * (samples - 1) / (self.batch - 1) if self.batch > 1 else one * samples


@dataclass(frozen=True, slots=True)
class Server:
    """What a request costs a replica beside its waves."""

    overhead_seconds: float
    """Processor seconds of a request for HTTP, the dial and encoding."""
    cores: int | None
    """Cores that waves and requests share, on a replica that draws with its processor; None where a GPU draws."""

    def capacity(self, images_per_second: float) -> float:
        """Return the requests of one image a second that a replica can answer without end.

        On a processor both take of the same cores, so their times add. Beside a GPU one event loop does all the rest, so
        the slower of the two decides.
        """
        if self.cores is None:
            return min(images_per_second, 1 / self.overhead_seconds) if self.overhead_seconds else images_per_second
        return 1 / (1 / images_per_second + self.overhead_seconds / self.cores)


BUCKETS = tuple(float(f"{0.001 * 1.5**power:.3g}") for power in range(32))
"""Seconds in which the server counts latencies: an objective between two of them could only be guessed at."""
GENEROUS = 3
"""A first objective, as a multiple of the time that an image takes in full waves."""


def first_objective(speed: Speed) -> float:
    """Return a latency objective to begin with, in seconds: the next bucket's bound, infinite beyond the last."""
    wanted = GENEROUS * speed.steps * speed.wave_seconds(speed.batch)
    return next((bound for bound in BUCKETS if bound >= wanted), math.inf)


def mixed(speeds: Mapping[int, Speed], mix: Mapping[int, float]) -> float:
    """Return the images a second of a mix of positions, each in full waves of its own: the weighted harmonic mean.

    Raises KeyError for a position of the mix that was not measured.
    """
    return sum(mix.values()) / sum(weight / speeds[steps].images_per_second for steps, weight in mix.items())


def evaluations_per_request(mix: Mapping[int, float]) -> float:
    """Return the network evaluations of an average request of one image."""
    return sum(steps * weight for steps, weight in mix.items()) / sum(mix.values())


def in_flight(rate: float, seconds: float) -> float:
    """Return how many are inside on average when `rate` a second come and each stays so long: Little's law."""
    return rate * seconds


def replicas_for(rate: float, capacity: float, *, utilisation: float = UTILISATION, spare: int = 1) -> int:
    """Return how many replicas the rate takes, both being requests a second.

    So many that all of them together stay below the utilisation, and that the rest could still answer everybody when
    `spare` of them are gone: that is what N+1 says.
    """
    return max(math.ceil(rate / (capacity * utilisation)), math.ceil(rate / capacity) + spare, 1 + spare)


def survivors(rate: float, capacity: float, replicas: int, lost: int = 1) -> float:
    """Return the utilisation of those that are left when `lost` replicas are gone; above 1 the queue grows."""
    return rate / (capacity * (replicas - lost)) if replicas > lost else math.inf


def speeds_of(positions: Iterable[Position]) -> dict[int, Speed]:
    """Return the speed of each dial position; where it was measured in several ways, of the slowest of them."""
    found: dict[int, Speed] = {}
    for speed in map(Speed.of, positions):
        if speed.steps not in found or speed.images_per_second < found[speed.steps].images_per_second:
            found[speed.steps] = speed
    return found
