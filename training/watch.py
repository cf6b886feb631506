"""Following a run: gradient norms and the probe's findings, into probe.jsonl and to TensorBoard or Weights & Biases."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from training.failures import TrainingError
from training.log import EVERY
from training.probe import Probe, flat
from training.run import Run

LEAST = 10
"""Iterations between two looks of a probe, at least."""
FOUND = "probe.jsonl"
"""Where a run keeps what the probe found, a line each time."""
Tracker = Literal["auto", "tensorboard", "wandb", "none"]
"""Where curves are sent; auto is TensorBoard where it is installed."""
Write = Callable[[dict[str, float], int], None]
"""(numbers by name, iteration): hand them to a tracker."""


class Watch:
    """Called after every step of a run, with its loss."""

    def __init__(self, run: Run, probe: Probe | None, *, times: int, tracker: Tracker = "none"):
        """times: how often in a run the probe looks, at most every LEAST iterations.  Raises TrainingError without the tracker."""
        self._probe, self._every = probe, max(LEAST, run.schedule.iterations // max(1, times))
        self._tracker = check_tracker(tracker)
        self._write: Write | None = None
        self._losses: list[float] = []
        self._norms: list[float] = []

    def __call__(self, run: Run, loss: float) -> None:
        """Note a step."""
        if self._write is None:  # not before the first step: only then has a run gone on from its checkpoint
            self._write = open_tracker(run, self._tracker if run.world.main else "none")
        self._losses.append(loss)
        self._norms.append(run.gradient_norm)
        last = run.iteration == run.schedule.iterations
        if run.iteration % EVERY == 0 or last:
            numbers = {
                "training/loss": sum(self._losses) / len(self._losses),
                "training/gradient norm": sum(self._norms) / len(self._norms),
                "training/largest gradient norm": max(self._norms),
                "training/clipped": sum(norm > run.schedule.clip for norm in self._norms) / len(self._norms),
                "training/learning rate": run.schedule.rate(run.iteration - 1),
            }
            self._write(numbers, run.iteration)
            self._losses, self._norms = [], []
        if self._probe and run.iteration % self._every == 0:
            self._look(run, self._probe, self._write)

    def _look(self, run: Run, probe: Probe, write: Write) -> None:
        with run.averaged() as network:  # in all processes, since a sharded average is brought together
            if not run.world.main:
                return
            found = probe(network, run.iteration)
        line = {"iteration": run.iteration, "images": run.iteration * run.schedule.batch, "found": found}
        with (run.folder / FOUND).open("a") as file:
            print(json.dumps(line), file=file)
        write(flat(found), run.iteration)


def check_tracker(tracker: Tracker) -> Tracker:
    """Return the tracker that is meant: of "auto" TensorBoard or "none".  Raises TrainingError for one that is not installed."""
    package = {"auto": "tensorboard", "tensorboard": "tensorboard", "wandb": "wandb"}.get(tracker)
    if package is None or find_spec(package):
        return "tensorboard" if tracker == "auto" else tracker
    if tracker == "auto":
        print(
            "tensorboard is not installed (pip install -e '.[training]'): curves go to log.jsonl and probe.jsonl alone"
        )
        return "none"
    raise TrainingError(f"{package} is not installed; pip install {package}")


def open_tracker(run: Run, tracker: Tracker) -> Write:
    """Return how to write to a tracker that is installed."""
    if tracker == "none":
        return lambda numbers, iteration: None
    if tracker == "wandb":
        return _weights_and_biases(run)
    from torch.utils.tensorboard import SummaryWriter

    # what was written after the checkpoint that a run goes on from is written again
    writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=run.iteration)

    def write(numbers: dict[str, float], iteration: int) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, iteration)
        writer.flush()

    return write


def _weights_and_biases(run: Run) -> Write:
    import wandb

    name = "-".join(run.folder.parts[-2:])
    followed: Any = wandb.init(project="stepdial", name=name, dir=str(run.folder), config=run.settings)
    return lambda numbers, iteration: followed.log(numbers, step=iteration)


def read_found(folder: Path) -> dict[int, dict[str, Any]]:
    """Return what a run's probe found, by iteration; of lines written twice, before and after a resume, the later one."""
    file = folder / FOUND
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return {line["iteration"]: line["found"] for line in sorted(lines, key=lambda line: line["iteration"])}
