"""Class labels as people write them, and as the values of a condition's one slot."""

from collections.abc import Sequence

import numpy as np

from diffusion.condition import Conditioning, LabelConditioning, NoConditioning
from training.datasets import DataError

CLASSES = 100_000
"""Classes that a set may have; more are not labels but something else, such as an identifier."""


def conditioned(labels: Sequence[str] | np.ndarray, name: str) -> tuple[Conditioning, np.ndarray]:
    """Return the conditioning that labels amount to, and each image's condition, int64 (N, slots).

    Labels that are all whole numbers are classes 0 up to the largest; others are names, sorted.  An empty or negative
    label is none: value 0, as guidance hides labels.  Where there is no label at all there is no conditioning.
    Raises DataError for more than CLASSES classes.
    """
    words, places = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
    none = np.array([word == "" or (word[0] == "-" and word[1:].isdecimal()) for word in words], dtype=bool)
    named = [str(word) for word in words[~none]]
    if not named:
        return NoConditioning(), np.zeros((len(places), 0), np.int64)
    numbers = all(word.isascii() and word.isdecimal() for word in named)
    count = max(map(int, named)) + 1 if numbers else len(named)
    if count > CLASSES:
        raise DataError(f"{name}: {count:,} classes are more than {CLASSES:,}; are these labels?")
    values = np.zeros(len(words), np.int64)
    values[~none] = [int(word) + 1 for word in named] if numbers else np.arange(1, len(named) + 1)
    classes = tuple(map(str, range(count))) if numbers else tuple(named)
    return LabelConditioning(labels=classes), values[places][:, None]
