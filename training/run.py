"""A run: a network in training with its average and its optimiser, and the checkpoint from which it goes on to the bit.

Everything random is a function of (seed, iteration, place in the batch) and data is a function of (seed, position), so a
checkpoint holds no generator state: weights, EMA, optimiser moments and the iteration, which is the position in the data, are
all there is. Nothing in it tells how many processes trained, sharded or not: any number may go on.
"""

import copy
import functools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from training.datasets import Batch
from training.draws import Draws
from training.failures import TrainingError
from training.order import mixed_seed
from training.schedule import Schedule
from training.share import Share
from training.world import World, blocks, local, sharded_like, whole

Loss = Callable[[nn.Module, Tensor, Tensor, int, torch.Generator], Tensor]
"""(network, x, condition, iteration, generator) -> loss of each sample (B,)."""


class Run:
    """A network in training: the network, its EMA, its optimiser, and how far they have come."""

    def __init__(self, network: nn.Module, schedule: Schedule, folder: Path, *, settings: dict):
        """folder holds the checkpoint, the log and the sample grids; settings is what must not change over a resume."""
        self.network, self.schedule, self.folder, self.settings = network, schedule, folder, settings
        self.world, self.shares, self.called = World(), [Share(schedule.batch)], network
        self._outline: nn.Module | None = None
        self._begin()
        self.companions: dict[str, nn.Module] = {}
        """Networks beside the trained one whose weights the loss changes; they are part of the checkpoint."""
        self.iteration = 0
        self.seconds = 0.0
        self.gradient_norm = 0.0
        """Of the last step, before it was clipped."""

    def _begin(self) -> None:
        """Make average and optimiser, of as much of the network as is here."""
        self.ema = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=self.schedule.lr, betas=(0.9, 0.99), weight_decay=self.schedule.weight_decay
        )

    def spread(
        self,
        world: World,
        *,
        turns: int = 1,
        parts: tuple[int, ...] = (1,),
        checkpointing: bool = False,
        compiled: bool = False,
    ) -> None:
        """Have a new run trained by the processes of a world, each taking its images of a batch in equal turns.

        parts: of a batch that learn different things, by their sizes.  checkpointing: keep the inputs of blocks alone for
        the backward pass and compute what is in them again.  compiled: compile blocks by torch.compile.
        Raises TrainingError when the batch cannot be shared equally, or a companion of the network would have to be sharded.
        """
        if world.sharded and self.companions:
            raise TrainingError("tract's average of the student cannot be sharded; leave --shard out")
        try:
            shares = world.size * turns
            self.shares = [
                Share(self.schedule.batch, world.rank * turns + turn, shares, parts) for turn in range(turns)
            ]
        except ValueError as error:
            raise TrainingError(str(error)) from None
        self._outline = _outline(self.network) if world.sharded else None
        for block in blocks(self.network):
            if checkpointing:
                block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
            if compiled:  # random numbers as without it, or f(z_s, s) and f(z_t, t) might get other dropout masks
                block.compile(options={"fallback_random": True})
        self.world, self.called = world, world.wrap(self.network)
        if world.sharded:
            self._begin()

    @property
    def checkpoint(self) -> Path:
        """The checkpoint file: safetensors, nothing pickled."""
        return self.folder / "checkpoint.safetensors"

    def save(self) -> None:
        """Write the checkpoint: to a temporary name, then renamed.  All processes save together, and the first one writes."""
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"ema.{name}": value for name, value in self.ema.items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
        for companion, network in self.companions.items():
            tensors |= {f"{companion}.{name}": value for name, value in network.state_dict().items()}
        tensors = self._gathered(tensors)
        if self.world.main:
            about = {"iteration": self.iteration, "seconds": self.seconds, "settings": self.settings}
            temporary = self.checkpoint.with_suffix(".partial")
            save_file(
                {name: value.contiguous() for name, value in tensors.items()},
                temporary,
                metadata={"run": json.dumps(about)},
            )
            os.replace(temporary, self.checkpoint)
        self.world.wait()  # whoever ended before the file is there would have torchrun end the others

    def _gathered(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors that may be sharded as whole ones in the first process's memory, and in the others nothing."""
        if not self.world.sharded:
            return tensors
        gathered = {}
        for name, value in tensors.items():
            together = whole(value)
            if self.world.main:
                gathered[name] = together.cpu()
        return gathered

    def collect(self) -> None:
        """Bring a sharded average together in the first process: what a run that is over leaves."""
        self.ema = self._gathered(self.ema)

    def resume(self) -> bool:
        """Load the checkpoint if there is one and tell so.

        Raises TrainingError if it was made with other settings, cannot be read, or is there for some of the processes only.
        """
        there, missing = self.world.any(self.checkpoint.exists(), not self.checkpoint.exists())
        if there and missing:
            raise TrainingError(f"not every process sees the checkpoint in {self.folder}; give --runs on a shared disk")
        if missing:
            return False
        about, tensors = self._read()
        weights = self.network.state_dict()
        self.network.load_state_dict(
            {name: sharded_like(value, weights[name]) for name, value in _under("network.", tensors).items()}
        )
        for name, value in _under("ema.", tensors).items():
            self.ema[name].copy_(sharded_like(value, self.ema[name]))
        for companion, network in self.companions.items():
            network.load_state_dict(_under(f"{companion}.", tensors))
        state, parameters = self.optimizer.state_dict(), list(self.network.parameters())
        for key, value in _under("optimizer.", tensors).items():
            index, _, name = key.partition(".")
            state["state"].setdefault(int(index), {})[name] = sharded_like(value, parameters[int(index)])
        self.optimizer.load_state_dict(state)
        self.iteration, self.seconds = about["iteration"], about["seconds"]
        return True

    def _read(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What the checkpoint says of the run, and its tensors.  Raises TrainingError if it is not one of this run's."""
        try:
            with safe_open(self.checkpoint, framework="pt") as file:
                about = json.loads(file.metadata()["run"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (SafetensorError, OSError, KeyError, TypeError) as error:  # of other files: no record of a run
            raise TrainingError(f"{self.checkpoint} cannot be read; remove it to start anew") from error
        before, now = about["settings"], json.loads(json.dumps(self.settings))
        changed = [key for key in before | now if (key in before, before.get(key)) != (key in now, now.get(key))]
        if changed:
            raise TrainingError(
                f"{self.folder} holds a run with other settings ({', '.join(changed)}); "
                "give the same ones to resume it, or remove that folder to start anew"
            )
        return about, tensors

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """Lend the network with its EMA weights, in evaluation mode, then put the trained ones back.

        Where the network is sharded, it is another one that is lent, and in the first process alone it has weights.
        """
        if self._outline is not None:
            average = self._gathered(self.ema)
            lent = copy.deepcopy(self._outline)
            if self.world.main:
                lent.load_state_dict(average, assign=True)
                lent.to(self.device)
            yield lent.eval()
            return
        trained = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        self.network.load_state_dict(self.ema)
        self.network.eval()
        try:
            yield self.network
        finally:
            self.network.load_state_dict(trained)
            self.network.train()

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    def step(self, batches: Iterator[Batch], loss: Loss) -> float:
        """Take one optimiser step on the next batch of each turn, and return the mean loss over all processes.

        Raises TrainingError, in all processes alike, when loss or gradient is not finite.
        """
        schedule, iteration = self.schedule, self.iteration
        for group in self.optimizer.param_groups:
            group["lr"] = schedule.rate(iteration)
        turns = [self._turn(share, next(batches), loss) for share in self.shares]
        mean = self.world.mean(torch.stack(turns).mean() if len(turns) > 1 else turns[0])
        norm = whole(nn.utils.clip_grad_norm_(self.network.parameters(), schedule.clip))
        if not torch.isfinite(norm + mean):
            first = iteration * schedule.batch
            raise TrainingError(
                f"iteration {iteration}: loss {mean.item():g}, gradient norm {norm.item():g}, on images {first} to "
                f"{first + schedule.batch - 1} of the stream; lower the learning rate"
            )
        self.gradient_norm = norm.item()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        decay = min(schedule.ema, (1 + iteration) / (10 + iteration))
        current = self.network.state_dict()
        names = list(self.ema)
        torch._foreach_lerp_(
            [local(self.ema[name]) for name in names], [local(current[name]) for name in names], 1 - decay
        )
        self.iteration += 1
        return mean.item()

    def _turn(self, share: Share, batch: Batch, loss: Loss) -> Tensor:
        """Add the gradients of one share of the batch and return its mean loss."""
        schedule, iteration = self.schedule, self.iteration
        seed = mixed_seed(schedule.seed, iteration)
        torch.manual_seed(mixed_seed(seed, share.index) if share.of > 1 else seed)  # dropout
        draws = Draws(self.device, seed=mixed_seed(schedule.seed + 1, iteration), share=share)
        with self.world.accumulating(self.called, last=share is self.shares[-1]):
            mean = loss(self.called, *batch, iteration, draws).mean()
            (mean / len(self.shares)).backward()
        return mean.detach()


def _outline(network: nn.Module) -> nn.Module:
    """Return a copy of a network whose parameters are on the meta device, where they take no memory."""
    empty = {id(value): nn.Parameter(value.to("meta").detach(), value.requires_grad) for value in network.parameters()}
    return copy.deepcopy(network, empty)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
