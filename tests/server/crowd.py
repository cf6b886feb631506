"""A device that draws no pictures: its image of a sample is the sample's own name, so nobody can get a neighbour's."""

import hashlib
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from server.samples import Previewed, Sample, Turn


def name_of(sample: Sample) -> bytes:
    """Return 192 bytes that identify what the sample asks for."""
    wish = (sample.plan, sample.condition, sample.seed, sample.index, sample.guidance)
    return hashlib.shake_128(repr(wish).encode()).digest(192)


def picture_of(sample: Sample) -> np.ndarray:
    """Return the image that the fake device draws of a sample: its name as 8x8 RGB."""
    return np.frombuffer(name_of(sample), dtype=np.uint8).reshape(8, 8, 3)


class FakeDevice:
    """Draws names. It checks that every turn continues from that sample's own latent, and can be held, slowed or broken."""

    def __init__(self, *, seconds: float = 0.0):
        self.seconds = seconds
        self.gate = threading.Event()
        """Waves wait for it; set at first."""
        self.gate.set()
        self.failures: list[BaseException | None] = []
        """What the coming waves raise, in order; None runs."""
        self.waves: list[list[Turn]] = []
        """The waves so far."""
        self.preparing: BaseException | None = None
        """What preparing raises."""

    def prepare(self) -> None:
        """Be ready at once, or fail."""
        if self.preparing:
            raise self.preparing

    def wave(self, turns: Sequence[Turn]) -> list[Any]:
        """Take one hop of each turn."""
        self.waves.append(list(turns))
        self.gate.wait()
        time.sleep(self.seconds)
        failure = self.failures.pop(0) if self.failures else None
        if failure:
            raise failure
        for turn in turns:
            assert turn.latent == (None if turn.number == 0 else (name_of(turn.sample), turn.number))
        return [_result(turn) for turn in turns]


def _result(turn: Turn) -> Any:
    if turn.is_last:
        return picture_of(turn.sample)
    latent = (name_of(turn.sample), turn.number + 1)
    return Previewed(latent, picture_of(turn.sample) ^ np.uint8(turn.number + 1)) if turn.preview else latent
