"""The processes that train together: this one alone, or those that torchrun or `accelerate launch` started."""

import atexit
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from training.failures import TrainingError

if TYPE_CHECKING:  # one process alone does not load it
    from accelerate import Accelerator

PATIENCE = timedelta(hours=1)
"""How long a process waits for the others: the first one draws a new member's golden samples meanwhile."""


class World:
    """How many processes there are and which one this is, and what they do together.

    Alone, nothing here costs anything, and Accelerate is not imported.
    """

    def __init__(self, device: torch.device | str | None = None, *, shard: bool = False):
        """device: this process's, or "cuda" for the GPU of its rank; None for this process alone, whatever runs beside it.

        shard: keep of weights, gradients, moments and average only a part in each process (FSDP2) instead of all (DDP).
        """
        self.size = int(os.environ.get("WORLD_SIZE", 1)) if device is not None else 1
        self.sharded = shard and self.size > 1
        self.rank, self.device = 0, torch.device(device or "cpu")
        self._accelerator = _accelerator(self.device) if self.size > 1 else None
        if self._accelerator:
            self.rank, self.device = self._accelerator.process_index, self._accelerator.device

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return what the loss calls, so that gradients are the mean over all processes; sharding changes the network itself."""
        if self._accelerator is None:
            return network
        if not self.sharded:
            return self._accelerator.prepare_model(network)
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.device.type, (self.size,))
        network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # the only one it shards
        for block in reversed(blocks(network)):  # what lies in another before it
            fully_shard(block, mesh=mesh)
        fully_shard(network, mesh=mesh)
        return network

    def accumulating(self, network: nn.Module, *, last: bool) -> AbstractContextManager:
        """Put off the exchange of gradients to the last turn, where every process holds all of them."""
        if last or self.sharded or self._accelerator is None:
            return nullcontext()
        return self._accelerator.no_sync(network)

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of a number over all processes."""
        return self._accelerator.reduce(value, "mean") if self._accelerator else value

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Tell of each flag whether it is set in any process."""
        if self._accelerator is None:
            return flags
        counts = self._accelerator.reduce(torch.tensor(flags, dtype=torch.float32, device=self.device), "sum")
        return tuple(bool(count) for count in counts.tolist())

    def wait(self) -> None:
        """Wait until every process is here."""
        if self._accelerator:
            self._accelerator.wait_for_everyone()

    @contextmanager
    def first(self) -> Iterator[None]:
        """Let the first process of each machine go first, so that the others find in its cache what it makes there."""
        with self._accelerator.local_main_process_first() if self._accelerator else nullcontext():
            yield


def blocks(network: nn.Module) -> list[nn.Module]:
    """Return the blocks that a network is made of: the modules of the classes that it, or the first network in it, names.

    The names are in `_no_split_modules`, where diffusers, transformers and Accelerate have them too.
    """
    named = (getattr(module, "_no_split_modules", None) for module in network.modules())
    names = next(filter(None, named), ())
    return [module for module in network.modules() if type(module).__name__ in names]


def whole(value: Any) -> Tensor:
    """Return a tensor that may be sharded as a whole one; all processes ask for it together."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def local(value: Any) -> Tensor:
    """Return this process's part of a tensor that may be sharded."""
    return value.to_local() if hasattr(value, "to_local") else value


def sharded_like(value: Tensor, like: Any) -> Tensor:
    """Return a whole tensor, the same in every process, as another one is sharded, if it is."""
    if not hasattr(like, "full_tensor") or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


@cache
def _accelerator(device: torch.device) -> "Accelerator":
    """Join the other processes.  Raises TrainingError where Accelerate is not installed."""
    try:
        from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
    except ModuleNotFoundError:
        raise TrainingError(
            "several processes train together through Accelerate, which is not installed; pip install -e '.[training]'"
        ) from None
    joined = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="no",  # the loss has its own autocast
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=PATIENCE),
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),
        ],
    )
    atexit.register(torch.distributed.destroy_process_group)
    return joined
