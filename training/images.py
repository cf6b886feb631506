"""Real images as a data set: rows of a source, in the order of a stream, decoded, cropped, and replaced where they are broken."""

import os
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np

from diffusion.condition import Conditioning
from training.datasets import DataError, DataSet, Pixels
from training.decoding import Augmentation, Unreadable, decoded, square
from training.order import Order, mixed_seed

TRIES = 50
"""Images in a row that may be unusable before the whole source is."""


class Source(Protocol):
    """Where images lie, with access to each of them by its number."""

    name: str
    kind: str
    """What it is, for people: "folder of images"."""
    channels: int
    conditioning: Conditioning
    shards: tuple[int, ...]
    """Images in each shard, or in the whole, where there are no shards."""
    fingerprint: str
    """Changes when images are added, removed or renamed."""
    unusable: list[tuple[str, str]]
    """(name, reason) of what opening the source found unusable."""

    def read(self, row: int) -> tuple[bytes | np.ndarray, tuple[int, ...]]:
        """Return a file's bytes, or pixels uint8 (H, W, C), and the condition.  Raises OSError or Unreadable."""

    def where(self, row: int) -> str:
        """Name an image for people, with no path beyond the source's own folder."""


class ImageSet(DataSet):
    """A source as an endless stream of squares.

    An image that is broken is replaced by another, drawn from (seed, position), so that a batch stays a function of both
    and of what the files hold, whoever reads it.
    """

    decodes = True

    def __init__(self, source: Source, resolution: int, augmentation: Augmentation | None = None):
        super().__init__()
        self.name, self.description = source.name, f"Images of {source.name}."
        self.source, self.resolution, self.channels = source, resolution, source.channels
        self.conditioning, self.augmentation = source.conditioning, augmentation or Augmentation()
        self._order = Order(source.shards)
        self._broken: dict[int, str] = {}
        self.size = self._order.total
        self.skipped.note(source.unusable)

    def __str__(self) -> str:
        return f"{super().__str__()} ({self.source.kind})"

    @property
    def identity(self) -> dict[str, Any]:
        """Which images there are and what is done to them, so that a run is not gone on with on others."""
        return {"fingerprint": self.source.fingerprint, **asdict(self.augmentation)}

    def pixels(self, start: int, count: int, *, seed: int) -> Pixels:
        """Read, decode and crop.  Raises DataError when TRIES images in a row are unusable."""
        rows = self._order.rows(start, count, seed=seed)
        broken: dict[str, str] = {}
        shown = [
            self._replaced(position, int(row), seed, broken)
            for position, row in zip(range(start, start + count), rows, strict=True)
        ]
        images, conditions = zip(*shown, strict=True)
        return Pixels(np.stack(images), np.array(conditions, dtype=np.int64).reshape(count, -1), tuple(broken.items()))

    def _replaced(
        self, position: int, row: int, seed: int, broken: dict[str, str]
    ) -> tuple[np.ndarray, tuple[int, ...]]:
        """Return the image of a position, or of as many others as it takes; note in `broken` what was in the way."""
        for attempt in range(TRIES):
            if row not in self._broken:
                try:
                    return self._shown(row, position, seed)
                except Unreadable as error:
                    self._broken[row] = str(error)
                except OSError as error:
                    self._broken[row] = os.strerror(error.errno) if error.errno else type(error).__name__
            broken[self.source.where(row)] = self._broken[row]
            row = mixed_seed(mixed_seed(seed, position), attempt) % self._order.total
        name, reason = list(broken.items())[-1]
        raise DataError(f"{self.name}: {TRIES} images in a row could not be used, such as {name}: {reason}")

    def _shown(self, row: int, position: int, seed: int) -> tuple[np.ndarray, tuple[int, ...]]:
        data, condition = self.source.read(row)
        image = decoded(data, self.resolution) if isinstance(data, bytes) else data
        rng = np.random.default_rng((seed, position))
        return square(image, self.resolution, self.augmentation, rng), condition
