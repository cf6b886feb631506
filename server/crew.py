"""The crew: threads that evaluate one network together on a CPU, each for a part of the batch, under two leads.

PyTorch shares out the work of every single operation, and its threads wait for each other after each, spinning. A batch that is
cut once, at its rows, keeps the cores busier for the same bits, and two batches at once keep them busy from the first part of
one to the last of the other; what that gives is in docs/performance.md. A batch too small to
be cut is evaluated by one thread of the crew, and is PyTorch's to share out. So is one for a network of diffusers, which
keeps what a batch is told where the next one's overwrites it (`diffusion.backbone`): two threads would mix that up.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from threading import Condition, Lock
from typing import Any, TypeVar

import torch
from torch import Tensor

from diffusion.manifest import MemberNetwork, NetworkConfig
from diffusion.recording import RecordedNetwork

THREADS = "stepdial-crew"
"""How the names of the threads begin; not as those of the device (`server.device`), whose end the process waits for."""
LEADS = 2
"""Waves at once: one under way, and the next one whose first part begins where the first's last leaves a core idle."""
R = TypeVar("R")

SMALLEST_PART = 4
"""Rows of a part at least: fewer use a core worse."""


class Crew:
    """Threads that wait for parts of batches, and leads that see to a wave each."""

    def __init__(self, threads: int):
        """threads: how many PyTorch uses, all of which the crew takes."""
        self._threads = threads
        self._many, self._one = ThreadPoolExecutor(threads, THREADS), ThreadPoolExecutor(1, THREADS)
        self._leads = ThreadPoolExecutor(LEADS, THREADS, initializer=self.lead)
        self._door = Lock()
        """Held by who hands out parts, and for as long as it takes by who needs all threads for one piece of work."""
        self._parts = Condition()
        self._unfinished = 0
        """Parts that are under way; guarded by `_parts`."""

    @staticmethod
    def lead() -> None:
        """Called on the thread that hands out the work: what it computes itself is too little to be shared out."""
        _use(1)

    def begin(self, wave: Callable[..., R], *arguments: Any) -> Future[R]:
        """Have a lead see to a wave, of which two are under way at once."""
        return self._leads.submit(wave, *arguments)

    def evaluate(
        self, network: MemberNetwork | RecordedNetwork, z: Tensor, logsnr: Tensor, condition: Tensor
    ) -> Tensor:
        """Return the network's v of all rows, (B, C, H, W). Raises what the network raises."""
        cut = self.cut(z, logsnr, condition) if isinstance(network, RecordedNetwork) else []
        if len(cut) < 2:
            return self.alone(network, z, logsnr, condition)
        with self._door:
            under_way = [self._begin(network, part, self._threads // len(cut)) for part in cut]
        wait(under_way)  # also where one has failed: the others still read the batch
        return torch.cat([part.result() for part in under_way])

    def cut(self, *batch: Tensor) -> list[tuple[Tensor, ...]]:
        """Return the parts in which a batch is evaluated."""
        parts = max(1, min(self._threads, len(batch[0]) // SMALLEST_PART))
        return list(zip(*(tensor.tensor_split(parts) for tensor in batch), strict=True))

    def alone(self, work: Callable[..., R], *arguments: Tensor) -> R:
        """Return what work makes of the arguments on one thread of the crew, with all of PyTorch's. Raises what it raises."""
        with self._door:
            with self._parts:
                self._parts.wait_for(lambda: not self._unfinished)
            return self._one.submit(_do, work, arguments, self._threads).result()

    def _begin(self, network: Callable[..., R], part: tuple[Tensor, ...], threads: int) -> Future[R]:
        with self._parts:
            self._unfinished += 1
        under_way = self._many.submit(_do, network, part, threads)
        under_way.add_done_callback(self._end)
        return under_way

    def _end(self, _: Future[Any]) -> None:
        with self._parts:
            self._unfinished -= 1
            self._parts.notify_all()


@cache
def crew_of(threads: int) -> Crew | None:
    """Return the process's crew of so many threads, which families share as they share the cores; None of a single one."""
    return Crew(threads) if threads > 1 else None


class CrewNetwork:
    """A network that is evaluated by a crew."""

    def __init__(self, network: MemberNetwork | RecordedNetwork, crew: Crew):
        self._network, self._crew = network, crew

    @property
    def config(self) -> NetworkConfig:
        """All that is needed to build the network."""
        return self._network.config

    def record(self, z: Tensor, logsnr: Tensor, condition: Tensor) -> None:
        """Record the sizes of the parts in which such a batch is evaluated, where the network is one that is recorded."""
        if isinstance(self._network, RecordedNetwork):
            for part in self._crew.cut(z, logsnr, condition):
                self._network.record(*part)

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
