"""Pace: how long a wave takes, measured at warm-up and kept up to date by every wave. It knows neither torch nor clocks."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from statistics import median
from typing import NamedTuple

RECENT = 5
"""Waves whose median says how far the machine is from its curve now: one outlier is outvoted, three in a row are believed."""
LEARNING = 0.2
"""How far one wave, at most twice or half of what was expected, moves its point of the curve (a power of the ratio)."""
SHORTEST = 1e-7
"""Seconds below which no wave is believed to be."""
DECODER = "(decoder)"
"""What stands for a network's name in the timing of one image being decoded from its latent."""


class Timing(NamedTuple):
    """What one wave took."""

    network: str
    """Name of the member, or DECODER."""
    guided: bool
    """Whether it was evaluated with and without the condition."""
    rows: int
    """Samples in the wave."""
    seconds: float
    """From the start of the evaluation to the end of the update."""
    family: str = ""
    """The member's family where a server has several."""


class Curve:
    """Seconds of a wave by its samples: points learned slowly, times a drift learned fast (a neighbour takes a core)."""

    def __init__(self) -> None:
        self._points: dict[int, float] = {}
        self._ratios = deque([1.0] * RECENT, maxlen=RECENT)

    def observe(self, rows: int, seconds: float) -> None:
        """Take one measurement into account."""
        drift = median(self._ratios)
        if not self._points or not min(self._points) <= rows <= max(self._points):
            self._points[rows] = max(seconds, SHORTEST) / drift
            return
        expected = self._base(rows)
        self._ratios.append(max(seconds, SHORTEST) / expected)
        surprise = min(2.0, max(0.5, seconds / (expected * drift)))
        self._points[rows] = expected * surprise**LEARNING

    def __call__(self, rows: int) -> float:
        """Return the seconds of a wave of so many samples; it never falls as rows rise."""
        return self._base(rows) * median(self._ratios)

    def _base(self, rows: int) -> float:
        """Straight lines between the points, their running maximum; flat before the first, proportional after the last."""
        known = sorted(self._points)
        place = bisect_left(known, rows)
        heights = [max(self._points[at] for at in known[: number + 1]) for number in range(min(place + 1, len(known)))]
        if place == 0:
            return heights[0]
        if place == len(known):
            return heights[-1] * rows / known[-1]
        before, after = known[place - 1], known[place]
        return heights[-2] + (heights[-1] - heights[-2]) * (rows - before) / (after - before)


class Pace:
    """The latency model: what waves, images and work take on this device, in seconds.

    A network that was never timed counts as taking no time: predictions mean something after warm-up only.
    """

    def __init__(self, max_wave: int):
        self.max_wave = max_wave
        """Samples in a full wave."""
        self._curves: dict[tuple[str, str, bool], Curve] = {}
        self._decoding: dict[str, float] = {}
        """Seconds that an image takes from latent to pixels, of the families that draw latents."""

    def observe(
        self, network: str, guided: bool, rows: int, seconds: float, family: str = "", *, images: int = 0
    ) -> None:
        """Take the time of one wave into account, after which so many images were made.

        What decoding them took is not known apart: the surprise is shared out as the whole was expected to be.
        """
        if network == DECODER:
            self._decoding[family] = max(seconds, SHORTEST)
            return
        decoding = self.decode_seconds(images, family)
        if decoding:
            expected = decoding + self.wave_seconds(network, guided, rows, family)
            self._decoding[family] *= min(2.0, max(0.5, seconds / expected)) ** LEARNING
            seconds *= 1 - decoding / expected
        self._curves.setdefault((family, network, guided), Curve()).observe(rows, seconds)

    def forget(self, family: str) -> None:
        """Forget a family's networks: others may come under their names."""
        self._curves = {key: curve for key, curve in self._curves.items() if key[0] != family}
        self._decoding.pop(family, None)

    def decode_seconds(self, images: int, family: str = "") -> float:
        """Return how long so many images take from latent to pixels, one after another; 0 where there are no latents."""
        return images * self._decoding.get(family, 0.0)

    def wave_seconds(self, network: str, guided: bool, rows: int, family: str = "") -> float:
        """Return how long a wave of so many samples takes; it never falls as rows rise."""
        curve = self._curves.get((family, network, guided))
        return curve(rows) if curve else 0.0
