"""The log of a run: a bar on the terminal, and lines in log.jsonl."""

import json
import os
from pathlib import Path

from tqdm import tqdm

from training.run import Run

EVERY = 50
"""Iterations between two lines of log.jsonl, and of a tracker."""


class Log:
    """Progress of a run: a bar on the terminal, and a line in log.jsonl every EVERY iterations."""

    def __init__(self, run: Run):
        self._run = run
        self._losses: list[float] = []
        self._norms: list[float] = []
        self._waited, self._since = 0.0, run.seconds  # when the last line was written

    def __enter__(self) -> "Log":
        main = self._run.world.main
        self._file = (self._run.folder / "log.jsonl" if main else Path(os.devnull)).open("a")
        batch = self._run.schedule.batch
        self._bar = tqdm(
            total=self._run.schedule.iterations * batch,
            initial=self._run.iteration * batch,
            unit="img",
            desc=self._run.folder.name,
            mininterval=1,
            disable=not main,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        self._file.close()

    def add(self, loss: float, waited: float) -> None:
        """Note a step's loss and how many seconds all steps so far waited for data."""
        run = self._run
        self._losses.append(loss)
        self._norms.append(run.gradient_norm)
        self._bar.update(run.schedule.batch)
        if run.iteration % EVERY and run.iteration != run.schedule.iterations:
            return
        mean, spent = sum(self._losses) / len(self._losses), run.seconds - self._since
        self._bar.set_postfix(loss=f"{mean:.4f}")
        line = {
            "iteration": run.iteration,
            "images": run.iteration * run.schedule.batch,
            "loss": mean,
            "gradient_norm": sum(self._norms) / len(self._norms),
            "seconds": round(run.seconds, 1),
            "waiting": round((waited - self._waited) / spent, 3) if spent else 0.0,
        }
        print(json.dumps(line), file=self._file, flush=True)
        self._losses, self._norms, self._waited, self._since = [], [], waited, run.seconds
