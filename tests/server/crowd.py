"""A device that draws no pictures: its image of a sample is the sample's own name, so nobody can get a neighbour's."""

import hashlib
import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from server.pace import Timing
from server.samples import Previewed, Sample, Turn, Underway


def name_of(sample: Sample, evaluations: int | None = None) -> bytes:
    """Return 192 bytes that identify what the sample asks for, as far as so many evaluations show it; default all."""
    taken = sample.plan.evaluations[:evaluations]
    wish = (taken, sample.condition, sample.seed, sample.index, sample.guidance)
    return hashlib.shake_128(repr(wish).encode()).digest(192)


def picture_of(sample: Sample) -> np.ndarray:
    """Return the image that the fake device draws of a sample: its name as 8x8 RGB."""
    return np.frombuffer(name_of(sample), dtype=np.uint8).reshape(8, 8, 3)


def preview_of(sample: Sample, evaluations: int) -> np.ndarray:
    """Return the fake device's preview of a sample after so many evaluations."""
    return picture_of(sample) ^ np.uint8(evaluations)


class FakeDevice:
    """Draws names. It checks that every turn continues from that sample's own latent, and can be held, slowed or broken."""

    def __init__(self, *, seconds: float = 0.0, asynchronous: bool = False):
        self.seconds = seconds
        self.asynchronous = asynchronous
        """Whether waves are only taken on, and finished when they are waited for."""
        self.gate = threading.Event()
        """Waves wait for it; set at first."""
        self.gate.set()
        self.failures: list[BaseException | None] = []
        """What the coming waves raise, in order; None runs."""
        self.waves: list[list[Turn]] = []
        """The waves so far, those that failed too."""
        self.finished: list[list[Turn]] = []
        """The waves that did not fail."""
        self.preparing: BaseException | None = None
        """What preparing raises."""
        self.timings: tuple[Timing, ...] = ()
        """What preparing measures."""

    def prepare(self) -> tuple[Timing, ...]:
        """Be ready at once, or fail."""
        if self.preparing:
            raise self.preparing
        return self.timings

    def wave(self, turns: Sequence[Turn]) -> list[Any] | Underway:
        """Take one evaluation of each turn."""
        self.waves.append(list(turns))
        failure = self.failures.pop(0) if self.failures else None
        finish = partial(self._finish, list(turns), failure)
        return Underway(finish) if self.asynchronous else finish()

    def _finish(self, turns: list[Turn], failure: BaseException | None) -> list[Any]:
        self.gate.wait()
        time.sleep(self.seconds)
        if failure:
            raise failure
        for turn in turns:
            assert turn.latent == (None if turn.number == 0 else name_of(turn.sample, turn.number))
        self.finished.append(turns)
        return [_result(turn) for turn in turns]


def _result(turn: Turn) -> Any:
    if turn.is_last:
        return picture_of(turn.sample)
    latent = name_of(turn.sample, turn.number + 1)
    return Previewed(latent, preview_of(turn.sample, turn.number + 1)) if turn.preview else latent
