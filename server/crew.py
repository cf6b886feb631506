"""The crew: threads that evaluate one network together on a CPU, each for a part of the batch.

PyTorch shares out the work of every single operation, and its threads wait for each other after each, spinning. A batch that is
cut once, at its rows, keeps the cores busier for the same bits; what that gives is in docs/performance.md. A batch too small to
be cut is evaluated by one thread of the crew, and is PyTorch's to share out. So is one for a network of diffusers, which
keeps what a batch is told where the next one's overwrites it (`diffusion.backbone`): two threads would mix that up.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from diffusion.manifest import MemberNetwork, NetworkConfig
from diffusion.recording import RecordedNetwork

THREADS = "stepdial-crew"
"""How the names of the threads begin; not as those of the device (`server.device`), whose end the process waits for."""
R = TypeVar("R")

SMALLEST_PART = 4
"""Rows of a part at least: fewer use a core worse."""


class Crew:
    """Threads that wait for parts of a batch."""

    def __init__(self, threads: int):
        """threads: how many PyTorch uses, all of which the crew takes."""
        self._threads = threads
        self._many, self._one = ThreadPoolExecutor(threads, THREADS), ThreadPoolExecutor(1, THREADS)

    @staticmethod
    def lead() -> None:
        """Called on the thread that hands out the work: what it computes itself is too little to be shared out."""
        _use(1)

    def evaluate(
        self, network: MemberNetwork | RecordedNetwork, z: Tensor, logsnr: Tensor, condition: Tensor
    ) -> Tensor:
        """Return the network's v of all rows, (B, C, H, W). Raises what the network raises."""
        parts = min(self._threads, len(z) // SMALLEST_PART) if isinstance(network, RecordedNetwork) else 1
        if parts < 2:
            return self.alone(network, z, logsnr, condition)
        cut = zip(*(tensor.tensor_split(parts) for tensor in (z, logsnr, condition)), strict=True)
        threads = self._threads // parts
        return torch.cat([*self._many.map(lambda part: _do(network, part, threads), cut)])

    def alone(self, work: Callable[..., R], *arguments: Tensor) -> R:
        """Return what work makes of the arguments on one thread of the crew, with all of PyTorch's. Raises what it raises."""
        return self._one.submit(_do, work, arguments, self._threads).result()


class CrewNetwork:
    """A network that is evaluated by a crew."""

    def __init__(self, network: MemberNetwork | RecordedNetwork, crew: Crew):
        self._network, self._crew = network, crew

    @property
    def config(self) -> NetworkConfig:
        """All that is needed to build the network."""
        return self._network.config

    def __call__(self, z: Tensor, logsnr: Tensor, condition: Tensor) -> Tensor:
        """Return v of latents z (B, C, H, W) at logsnr (B,), as the network does."""
        return self._crew.evaluate(self._network, z, logsnr, condition)


def _do(work: Callable[..., R], arguments: tuple[Tensor, ...], threads: int) -> R:
    """Runs on a thread of the crew."""
    _use(threads)
    with torch.inference_mode():
        return work(*arguments)


def _use(threads: int) -> None:
    """Have PyTorch compute with so many threads what this thread asks for."""
    torch.get_num_threads()  # else a thread's first operation would go back to what any thread has set last
    torch.set_num_threads(threads)
