"""TRACT's self-teacher: a running average of the student's weights, which says what the student should say nearer to the data."""

import torch
from torch import nn

COMPANION = "self_teacher"
"""Its name among a run's companions."""


class SelfTeacher:
    """A copy of the student whose weights follow it."""

    def __init__(self, network: nn.Module, decay: float):
        """network: the copy, which the run's checkpoint holds.  decay: of the average, 0 for the student itself."""
        self.network, self._decay = network, decay
        self._iteration: int | None = None

    @torch.no_grad()
    def follow(self, student: nn.Module, iteration: int) -> None:
        """Take the student's weights into the average, once an iteration, however many parts its batch is computed in."""
        if iteration == self._iteration:
            return
        self._iteration = iteration
        for mine, theirs in zip(self.network.parameters(), student.parameters(), strict=True):
            mine.lerp_(theirs, 1.0 - self._decay)
