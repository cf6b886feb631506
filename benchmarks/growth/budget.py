"""How much is measured: the points of every curve, and how long and how often each is."""

from dataclasses import dataclass, replace

from benchmarks.load.loops import Extent

WARMUP_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Budget:
    """Points of the curves, and the time they get."""

    rounds: int = 3
    """How often every point has its turn; jobs that wait are measured once."""
    seconds: float = 1.5
    """How long each load is measured; it goes on for a quarter of that before."""
    requests: int | None = None
    """How many requests each load measures, instead of the seconds."""
    steps: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Dial positions."""
    sides: tuple[int, ...] = (16, 32, 64, 128)
    """Height and width of images, in pixels."""
    clients: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """Closed-loop clients."""
    exact: tuple[int, ...] = (1, 4, 8, 32)
    """Those of them that ask for fast mode, too."""
    families: tuple[int, ...] = (1, 2, 4, 8)
    """Families of one server."""
    waiting: tuple[int, ...] = (0, 100, 1000, 10000)
    """Jobs that wait, rising."""
    probes: int = 40
    """Jobs ordered and taken back beside those that wait."""
    evaluations: int = 5
    """Evaluations of a network of each size, in each round."""

    @property
    def extent(self) -> Extent:
        """How long one load lasts."""
        if self.requests is not None:
            return Extent(warmup_seconds=0.0, requests=self.requests)
        return Extent(warmup_seconds=WARMUP_SHARE * self.seconds, seconds=self.seconds)


SMALL = Budget(
    rounds=2,
    requests=3,
    steps=(1, 2, 4),
    sides=(8, 16, 32),
    clients=(1, 2, 4),
    exact=(1, 2, 4),
    families=(1, 2, 3),
    waiting=(0, 5, 10, 20),
    probes=3,
    evaluations=1,
)
"""Every curve with so few and small points that nothing is learnt but that it works."""


def budget(*, rounds: int | None, seconds: float | None, small: bool) -> Budget:
    """Return the full or the small budget, with these rounds and seconds where they are given."""
    chosen = SMALL if small else Budget()
    if rounds is not None:
        chosen = replace(chosen, rounds=rounds)
    if seconds is not None:
        chosen = replace(chosen, seconds=seconds, requests=None)
    return chosen
