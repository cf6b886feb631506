"""Which batch sizes give a sample the same bits? Found out by trying, on the machine that will draw.

A matrix product or a convolution may pick its algorithm, and with it the order of its sums, by the size of the batch.
On CPUs batches of 1, of 2 to 3, and of 4 and more had bits of their own before `diffusion.steady`, whatever else was in the
batch. Inside a set of sizes that agree, a sample's bits do not depend on the crowd, so exact samples are drawn in
such sizes only.
"""

from collections.abc import Callable, Sequence

import numpy as np

Draw = Callable[[np.ndarray], np.ndarray]
"""Row numbers of a full batch -> their results, in the same order; its length is the batch size."""


def invariant_buckets(draw: Draw, buckets: Sequence[int]) -> tuple[int, ...]:
    """Return those of `buckets` (rising, batch sizes) in which a row has the same bits, in any place among any others.

    The largest self-consistent bucket sets the bits, and each smaller bucket is in when all rows agree with it. A batch
    of one is always self-consistent, so with 1 among the buckets the answer is never empty.
    """
    for largest in reversed(buckets):
        rows = np.arange(largest)
        expected = draw(rows)
        shifts = {1, largest // 2, largest - 1} - {0, largest}
        if all(np.array_equal(draw(np.roll(rows, shift)), np.roll(expected, shift, axis=0)) for shift in shifts):
            smaller = [bucket for bucket in buckets if bucket < largest]
            return (*(bucket for bucket in smaller if _agrees(draw, expected, bucket)), largest)
    raise ValueError("no bucket gives a row the same bits in every place")


def _agrees(draw: Draw, expected: np.ndarray, bucket: int) -> bool:
    """Whether all rows, drawn `bucket` at a time and the last batch filled up from the front, come out as expected."""
    rows = np.arange(len(expected))
    batches = (np.take(rows, range(first, first + bucket), mode="wrap") for first in range(0, len(rows), bucket))
    return all(np.array_equal(draw(batch), expected[batch]) for batch in batches)
