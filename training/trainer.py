"""The training loop: one run from where it is to the end of its schedule, saved on the way."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from torch import nn

from training.datasets import Batch, DataSet
from training.feed import Awaited, feed, usual_workers
from training.log import Log
from training.run import Loss, Run
from training.signals import interruptible

Draw = Callable[[nn.Module, Path], None]
"""(network, file): draw a sample grid into the file."""


def fit(
    run: Run,
    data: DataSet,
    loss: Loss,
    *,
    draw: Draw | None = None,
    watch: Callable[[Run, float], None] | None = None,
    workers: int | None = None,
    save_seconds: float = 120,
    grids: int | None = None,
) -> None:
    """Train to the end of the schedule, from the checkpoint where there is one.

    Every save_seconds and on SIGTERM or Ctrl-C, of any of the processes, the checkpoint is written; `draw(network, file)`
    writes a sample grid about `grids` times a run, by default 8, or fewer where that would be more than one in ten iterations:
    of a large network a grid takes longer than a step; `watch(run, loss)` is called after every step, in all processes;
    `workers` processes read ahead, by default as many as suit the data.  log.jsonl gets loss, gradient norm, time, and the
    part of it that was spent waiting for data; skipped.jsonl, one of each process, names images that could not be used.
    Raises KeyboardInterrupt, in all processes, after an interrupted run is saved.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    run.resume()
    run.network.train()
    schedule, world = run.schedule, run.world
    data.skipped.keep(run.folder / ("skipped.jsonl" if world.main else f"skipped-{world.rank}.jsonl"))
    if schedule.warmup > schedule.iterations:
        print(
            f"--warmup {schedule.warmup} is longer than the {schedule.iterations} iterations: "
            f"the learning rate never gets to --lr {schedule.lr:g}"
        )
    times = min(8, max(1, schedule.iterations // 10)) if grids is None else grids
    every = max(1, schedule.iterations // times)
    saved = time.monotonic()
    with interruptible() as interrupted, Log(run) as log, _batches(run, data, workers) as following:
        awaited = Awaited(following)
        while run.iteration < schedule.iterations:
            stop, late = world.any(interrupted(), world.main and time.monotonic() - saved > save_seconds)
            if stop:
                break
            if late:
                run.save()
                saved = time.monotonic()
            mean = _timed_step(run, awaited, loss)
            log.add(mean, awaited.seconds)
            if watch:
                watch(run, mean)
            if draw and run.iteration % every == 0:
                _draw(run, draw)
        run.save()
    if data.skipped:
        print(data.skipped)
    if run.iteration < schedule.iterations:
        raise KeyboardInterrupt
    run.collect()


def _batches(run: Run, data: DataSet, workers: int | None) -> AbstractContextManager[Iterator[Batch]]:
    """Lend what is left of a run's batches, of its own shares."""
    schedule = run.schedule
    return feed(
        data,
        batch=schedule.batch,
        seed=schedule.seed,
        iterations=range(run.iteration, schedule.iterations),
        device=run.device,
        workers=usual_workers(data) if workers is None else workers,
        shares=run.shares,
    )


def _draw(run: Run, draw: Draw) -> None:
    """Draw a sample grid in the first process; all lend their parts of the average."""
    with run.averaged() as network:
        if run.world.main:
            draw(network, run.folder / f"samples-{run.iteration:07d}.png")


def _timed_step(run: Run, batches: Iterator[Batch], loss: Loss) -> float:
    """Take a step, count its seconds to the run, and return its loss."""
    began = time.monotonic()
    mean = run.step(batches, loss)
    run.seconds += time.monotonic() - began
    return mean
