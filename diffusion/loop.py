"""The whole sampling loop of a plan at one batch size, over memory that never moves: on a GPU one CUDA graph.

For batches that are drawn again and again, with other seeds and conditions. `diffusion.sampler` draws any batch.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffusion.capture import Capture
from diffusion.plans import Plan
from diffusion.sampler import Course, Network
from diffusion.schedule import CosineSchedule
from kernels import noise


class Loop:
    """Draws batches of one size by one plan."""

    @torch.no_grad()
    def __init__(
        self,
        networks: dict[str, Network],
        plan: Plan,
        schedule: CosineSchedule,
        *,
        batch: int,
        columns: int,
        shape: tuple[int, int, int],
        device: torch.device | str = "cpu",
        capture: Capture | None = None,
        **asked: Any,
    ):
        """columns: slots of a condition.  shape: (C, H, W).  capture: what records the loop, `cuda_graphs(device)` on a GPU.

        asked: guidance, told, variance and decode, as `diffusion.sampler.sample` has them.
        """
        self._networks, self._shape = networks, shape
        self._course = Course(plan.hops, schedule, device=device, batch=batch, **asked)
        self._who = torch.zeros((2, batch), dtype=torch.int64, device=device)
        self._condition = torch.zeros((batch, columns), dtype=torch.int64, device=device)
        self._again = capture(self._loop) if capture else self._loop

    @torch.no_grad()
    def draw(self, condition: Tensor, *, seeds: Sequence[int], indices: Sequence[int]) -> Tensor:
        """Return the images of conditions (batch, columns), uint8 (batch, H, W, C), one of each seed and index."""
        self._who.copy_(torch.tensor([list(seeds), list(indices)]))
        self._condition.copy_(condition)
        return self._again().clone()

    def _loop(self) -> Tensor:
        seeds, indices = self._who
        z = noise(seeds, indices, self._shape)
        return self._course.follow(self._networks, z, self._condition, seeds=seeds, indices=indices)
