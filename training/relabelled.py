"""Data with its labels read as a family's: by name where both have labels, left out where the family takes no wishes."""

from dataclasses import replace
from typing import Any

import numpy as np

from diffusion.condition import ConditionError, Conditioning, LabelConditioning, NoConditioning
from training.datasets import DataError, DataSet, Pixels

TAKES = {
    "none": "takes no wishes",
    "label": "takes a label",
    "prompt": "takes a prompt",
    "text": "takes a prompt of any words",
}
"""What a family may be asked, by the kind of its conditioning."""


class Relabelled(DataSet):
    """A data set in the words of a family it was not made with, such as one that was imported."""

    def __init__(self, data: DataSet, conditioning: Conditioning):
        """Raises DataError for a label that the family does not know, and for what is not told by labels."""
        super().__init__()
        self._data, self.conditioning, self.skipped = data, conditioning, data.skipped
        self.name, self.description, self.decodes = data.name, data.description, data.decodes
        self.resolution, self.channels, self.size = data.resolution, data.channels, data.size
        self._values = _values(data, conditioning)

    @property
    def identity(self) -> dict[str, Any]:
        """What a run records of the data."""
        return self._data.identity

    def pixels(self, start: int, count: int, *, seed: int) -> Pixels:
        """Return the data's images with the family's conditions."""
        read = self._data.pixels(start, count, seed=seed)
        return replace(read, conditions=self._values[read.conditions] if self._values is not None else _none(count))


def _values(data: DataSet, conditioning: Conditioning) -> np.ndarray | None:
    """The family's value of each of the data's; None where there is none."""
    if isinstance(conditioning, NoConditioning):
        return None
    if not isinstance(conditioning, LabelConditioning) or not isinstance(data.conditioning, LabelConditioning):
        raise DataError(f"{data}, and the family {TAKES[conditioning.kind]}")
    try:
        known = [conditioning.encode(label=label)[0] for label in data.conditioning.labels]
    except ConditionError as error:
        raise DataError(f"of data {data.name} {str(error).partition(';')[0]} to the family") from None
    return np.array([0, *known], dtype=np.int64)


def _none(count: int) -> np.ndarray:
    return np.zeros((count, 0), dtype=np.int64)
