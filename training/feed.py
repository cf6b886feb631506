"""Batches of a run, read ahead by other processes; the same batches whoever reads them, and however many do."""

import os
import signal
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from training.datasets import Batch, DataError, DataSet, Pixels, joined
from training.share import Share

MOST_WORKERS = 8
"""Processes that are started without being asked for."""


class FeedError(DataError):
    """Reading ahead broke down; the message says how."""


def usual_workers(data: DataSet) -> int:
    """Return how many processes should read ahead: none for what is in memory or drawn, else one a core but the trainer's.

    Trainers on one machine (torchrun says how many) have equal parts of its cores.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores //= int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return min(MOST_WORKERS, max(1, cores - 1)) if data.decodes else 0


@contextmanager
def feed(
    data: DataSet,
    *,
    batch: int,
    seed: int,
    iterations: range,
    device: torch.device | str = "cpu",
    workers: int = 0,
    shares: Sequence[Share] | None = None,
) -> Iterator[Iterator[Batch]]:
    """Lend the batches of these iterations, in order, as tensors on the device.

    Iteration i has images i * batch .. (i + 1) * batch of the seed's stream; the shares say which of these come here, turn
    by turn, by default all of them at once.  `workers` processes read ahead, 0 reads when asked.  Raises DataError for data
    that cannot be used, FeedError when a reading process dies.
    """
    read = _Shares(data, seed, shares or [Share(batch)])
    order = range(iterations.start * read.turns, iterations.stop * read.turns)
    batches = _read(_loader(read, order, workers) if workers else map(read.__getitem__, order), data, device)
    try:
        yield batches
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise FeedError(
            "a process that reads data ahead was killed, perhaps for want of memory; give fewer --workers"
        ) from None
    finally:
        batches.close()  # and with it the processes


def _read(pixels: Iterable[Pixels | DataError], data: DataSet, device: torch.device | str) -> Generator[Batch]:
    for read in pixels:
        if isinstance(read, DataError):
            raise read
        yield data.tensors(read, device)


def _loader(read: "_Shares", order: range, workers: int) -> DataLoader:
    return DataLoader(
        read,
        sampler=order,
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=_ignore_signals,
        generator=torch.Generator(),  # or the loader would draw from the trainer's
    )


class _Shares(Dataset):
    """What one rank reads, turn by turn; an error that speaks of data is handed over, not raised in another process."""

    def __init__(self, data: DataSet, seed: int, shares: Sequence[Share]):
        self._data, self._seed, self._shares, self.turns = data, seed, shares, len(shares)

    def __getitem__(self, turn: int) -> Pixels | DataError:
        iteration, turn = divmod(turn, self.turns)
        share = self._shares[turn]
        first = iteration * share.batch
        try:
            return joined([self._data.pixels(first + run.start, len(run), seed=self._seed) for run in share.runs])
        except DataError as error:
            return error


def _as_it_is(pixels: Any) -> Any:
    """Hand numpy arrays over through a pipe: as tensors they would need shared memory, of which a container has 64 MB."""
    return pixels


def _ignore_signals(_: int) -> None:
    """Leave Ctrl-C and SIGTERM, which often reach the whole group, to the trainer: it ends its readers once it has saved."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class Awaited:
    """Batches, and the seconds that were spent waiting for them in all."""

    def __init__(self, batches: Iterator[Batch]):
        self._batches, self.seconds = batches, 0.0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        began = time.monotonic()
        batch = next(self._batches)
        self.seconds += time.monotonic() - began
        return batch
