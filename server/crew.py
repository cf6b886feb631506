"""The crew: threads that evaluate one network together on a CPU, each for a part of the batch.

PyTorch shares out the work of every single operation, and its threads wait for each other after each, spinning. A batch that is
cut once, at its rows, keeps the cores busier for the same bits; what that gives is in docs/performance.md. A batch too small to
be cut is evaluated by one thread of the crew, and is PyTorch's to share out.
"""

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from diffusion.manifest import MemberNetwork, NetworkConfig
from server.device import THREADS

SMALLEST_PART = 4
"""Rows of a part at least: fewer use a core worse, and on CPUs we have seen batches below 4 give bits of their own."""


class Crew:
    """Threads that wait for parts of a batch."""

    def __init__(self, threads: int):
        """threads: how many PyTorch uses, all of which the crew takes."""
        self._threads = threads
        self._many, self._one = ThreadPoolExecutor(threads, THREADS), ThreadPoolExecutor(1, THREADS)

    @staticmethod
    def lead() -> None:
        """Called on the thread that hands out the work: what it computes itself is too little to be shared out."""
        torch.set_num_threads(1)

    def evaluate(self, network: MemberNetwork, z: Tensor, logsnr: Tensor, condition: Tensor) -> Tensor:
        """Return the network's v of all rows, (B, C, H, W). Raises what the network raises."""
        parts = min(self._threads, len(z) // SMALLEST_PART)
        if parts < 2:
            return self._one.submit(_evaluate, network, (z, logsnr, condition), self._threads).result()
        cut = zip(*(tensor.tensor_split(parts) for tensor in (z, logsnr, condition)), strict=True)
        threads = self._threads // parts
        return torch.cat([*self._many.map(lambda part: _evaluate(network, part, threads), cut)])


class CrewNetwork:
    """A network that is evaluated by a crew."""

    def __init__(self, network: MemberNetwork, crew: Crew):
        self._network, self._crew = network, crew

    @property
    def config(self) -> NetworkConfig:
        """All that is needed to build the network."""
        return self._network.config

    def __call__(self, z: Tensor, logsnr: Tensor, condition: Tensor) -> Tensor:
        """Return v of latents z (B, C, H, W) at logsnr (B,), as the network does."""
        return self._crew.evaluate(self._network, z, logsnr, condition)


def _evaluate(network: MemberNetwork, part: tuple[Tensor, ...], threads: int) -> Tensor:
    """Runs on a thread of the crew."""
    torch.set_num_threads(threads)  # each time: OpenMP keeps it for each thread, but the matrix library for all
    with torch.inference_mode():
        return network(*part)
