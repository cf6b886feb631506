"""The order in which a stream shows its images: a function of (seed, position), computed without state or a table of the set."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

TOGETHER = 16
"""Shards whose images are shuffled among each other: what a reader goes back and forth in at a time."""
_ROUNDS = 6
_MASK = 0xFFFFFFFFFFFFFFFF


def mixed_seed(seed: int, iteration: int) -> int:
    """Return a well-spread 63-bit seed for one iteration of one seed's run (splitmix64's finaliser)."""
    x = (seed * 0x9E3779B97F4A7C15 + iteration + 1) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK
    return (x ^ (x >> 31)) >> 1


def permuted(places: np.ndarray, size: int, key: int) -> np.ndarray:
    """Return where the key's permutation of 0 .. size - 1 sends each place, int64 of the same shape.

    A Feistel network on the next even number of bits, walked again by whatever it sends beyond the size.  Six bits at
    least: on four, some orders of few images come up twice as often as others.
    """
    if size == 1:
        return np.zeros(len(places), np.int64)
    half = max(3, ((size - 1).bit_length() + 1) // 2)
    keys = [np.uint64(mixed_seed(key, turn)) for turn in range(_ROUNDS)]
    result, beyond = places.astype(np.uint64), np.arange(len(places))
    while len(beyond):
        result[beyond] = _feistel(result[beyond], half, keys)
        beyond = beyond[result[beyond] >= size]
    return result.astype(np.int64)


def _feistel(x: np.ndarray, half: int, keys: list[np.uint64]) -> np.ndarray:
    """Send uint64 numbers of 2 * half bits to each other, one to one."""
    bits, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = x >> bits, x & mask
    for key in keys:
        mixed = (right + key) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0x94D049BB133111EB)
        left, right = right, left ^ ((mixed ^ (mixed >> np.uint64(32))) & mask)
    return (left << bits) | right


class Order:
    """An endless stream over shards of images, every image once an epoch.

    Each epoch shuffles the shards; the images of TOGETHER shards that follow each other are shuffled as one block. A set
    of one shard is thus shuffled whole, and of many shards only a few are in use at a time.
    """

    def __init__(self, sizes: Sequence[int]):
        """sizes: images in each shard, at least one in all."""
        self._sizes = np.asarray(sizes, np.int64)
        self._firsts = np.cumsum(self._sizes) - self._sizes
        self.total = int(self._sizes.sum())

    def rows(self, start: int, count: int, *, seed: int) -> np.ndarray:
        """Return which images are at positions start .. start + count, numbered over all shards; int64 (count,)."""
        epochs, places = np.divmod(np.arange(start, start + count), self.total)
        rows = np.empty(count, np.int64)
        for epoch in np.unique(epochs):
            rows[epochs == epoch] = self._epoch(places[epochs == epoch], mixed_seed(seed, int(epoch)))
        return rows

    def _epoch(self, places: np.ndarray, key: int) -> np.ndarray:
        shards, ends = _shuffled(self._sizes.tobytes(), key)
        last = np.minimum(np.arange(TOGETHER, len(ends) + TOGETHER, TOGETHER), len(ends)) - 1
        blocks = np.searchsorted(ends[last], places, side="right")
        for block in np.unique(blocks):
            first = int(ends[last[block - 1]]) if block else 0
            inside = blocks == block
            size = int(ends[last[block]]) - first
            places[inside] = first + permuted(places[inside] - first, size, mixed_seed(key, int(block) + 1))
        at = np.searchsorted(ends, places, side="right")
        return self._firsts[shards[at]] + places - (ends[at] - self._sizes[shards[at]])


@lru_cache(maxsize=8)
def _shuffled(sizes: bytes, key: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the shards in an epoch's order, and how many images there are up to the end of each."""
    count = np.frombuffer(sizes, np.int64)
    shards = permuted(np.arange(len(count)), len(count), key)
    return shards, np.cumsum(count[shards])
