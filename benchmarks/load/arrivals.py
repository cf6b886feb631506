"""When requests arrive: arrival processes of an open loop, in seconds from its beginning."""

from collections.abc import Iterator
from itertools import count
from random import Random
from typing import Literal

Process = Literal["poisson", "bursts", "constant"]
"""poisson: independent of each other; bursts: Poisson while it bursts, silence between; constant: evenly spaced."""


def arrivals(
    process: Process, rate: float, random: Random, *, burst_seconds: float = 1.0, pause_seconds: float = 1.0
) -> Iterator[float]:
    """Yield arrival times without end, rising, `rate` a second on average; bursts are as much denser as pauses are long."""
    if process == "constant":
        yield from (number / rate for number in count(1))
    elif process == "poisson":
        yield from _poisson(rate, random)
    else:
        dense = rate * (burst_seconds + pause_seconds) / burst_seconds
        for busy in _poisson(dense, random):  # by a clock that stands still in pauses
            yield busy + pause_seconds * (busy // burst_seconds)


def _poisson(rate: float, random: Random) -> Iterator[float]:
    at = 0.0
    while True:
        at += random.expovariate(rate)
        yield at
