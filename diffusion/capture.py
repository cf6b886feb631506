"""CUDA graphs: what a GPU does once is recorded, and repeated without Python."""

from collections.abc import Callable
from threading import Lock
from typing import Protocol, TypeVar

import torch

R = TypeVar("R")

WARM_UPS = 2
"""Runs before the recording: they compile kernels, choose algorithms and take what libraries allocate at first."""

_RECORDING = Lock()
"""Held while recording: PyTorch records on one stream, and begins by waiting for a device that must not be recording."""


class Capture(Protocol):
    """What records a step and returns what repeats it."""

    def __call__(self, step: Callable[[], R], /) -> Callable[[], R]:
        """Record a step."""


def cuda_graphs(device: torch.device | str) -> Capture:
    """Return what records steps on a GPU as CUDA graphs, all of which use one piece of memory, one after another.

    A step reads memory that stays where it is. Whoever repeats it, on the current stream, has written its inputs there on
    the same stream, and finds the results in what the recorded step returned, until any of the graphs is repeated.
    Recording raises RuntimeError when a step waits for the device or copies from host memory that is not pinned.
    """
    pool = torch.cuda.graph_pool_handle()

    def capture(step: Callable[[], R], /) -> Callable[[], R]:
        with _RECORDING, torch.cuda.device(device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UPS):
                    step()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # thread_local: other threads may go on meanwhile, with the waves of another family
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                results = step()

        def repeat() -> R:
            graph.replay()
            return results

        return repeat

    return capture
