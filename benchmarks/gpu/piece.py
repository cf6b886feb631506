"""Pieces of the queue, their steps, and the file that says what came of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict

from benchmarks.result_file import ResultFile
from diffusion import provenance


@dataclass(frozen=True)
class Ask:
    """What whoever runs a piece asks for."""

    device: str
    tiny: bool
    """Whether sizes are the smallest, to try the pieces themselves."""
    until: float
    """When the piece has to be over, on the monotonic clock, in seconds."""
    results: Path
    """Folder of the result files."""
    work: Path
    """Folder of what steps go on with: checkpoints, copies of families, compile caches."""

    @property
    def seconds_left(self) -> float:
        """Seconds until the piece has to be over."""
        return self.until - monotonic()

    @property
    def on_gpu(self) -> bool:
        """Whether it is a GPU that is asked for."""
        return self.device.startswith("cuda")


class StepFailed(Exception):
    """A step that did not give a result; the message is one line."""


class Unfinished(Exception):
    """A step that was interrupted because time is over, and goes on when it is started again; the message says how far it is."""


@dataclass(frozen=True)
class Step:
    """A part of a piece: it gives numbers, and is not done again once it has."""

    name: str
    run: Callable[[Ask], dict[str, Any]]
    minutes: float = 2.0
    """How long it takes at most; it is not begun with less time left."""


@dataclass(frozen=True)
class Piece:
    """What answers one question."""

    name: str
    question: str
    steps: Callable[[Ask], Sequence[Step]]


class Done(BaseModel):
    """What a step gave, and where its numbers come from."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    step: str
    command: str
    commit: str
    device: str
    versions: dict[str, str]
    measured_at: str
    """When it ended, in UTC, ISO 8601."""
    seconds: float
    """How long it took."""
    tiny: bool
    values: dict[str, Any]


class Result(ResultFile):
    """The result file of a piece, which grows by its steps."""

    model_config = ConfigDict(frozen=False)

    format: Literal[1] = 1
    piece: str
    question: str
    done: list[Done] = []
    """One for each step and device."""
    failed: dict[str, str] = {}
    """Why steps gave nothing when they were last tried."""
    unfinished: dict[str, str] = {}
    """How far steps are that were interrupted."""

    @staticmethod
    def file(piece: Piece, folder: Path) -> Path:
        """Where a piece's result is."""
        return folder / f"{piece.name}.json"

    def of(self, step: str, device: str, *, tiny: bool) -> Done | None:
        """Return what a step gave on a device, if it did."""
        return next((d for d in self.done if (d.step, d.device, d.tiny) == (step, device, tiny)), None)

    @classmethod
    def read(cls, piece: Piece, folder: Path) -> "Result":
        """Return what there is of a piece's result."""
        file = cls.file(piece, folder)
        if not file.exists():
            return cls(piece=piece.name, question=piece.question)
        return cls.model_validate_json(file.read_bytes())


def run(piece: Piece, ask: Ask, *, again: bool = False) -> Result:
    """Run the steps of a piece that have not been done on this device, while there is time; the file is written after each.

    again: whether to do those that have been, too.  A step that fails does not keep the others from being tried.
    """
    result, device = Result.read(piece, ask.results), provenance.device_name(torch.device(ask.device))
    for step in piece.steps(ask):
        if result.of(step.name, device, tiny=ask.tiny) and not again:
            continue
        if ask.seconds_left < 60 * step.minutes and not ask.tiny:
            result.unfinished.setdefault(step.name, "not begun")
        else:
            _take(step, ask, result, device)
        result.write(Result.file(piece, ask.results))
    return result


def _take(step: Step, ask: Ask, result: Result, device: str) -> None:
    began = monotonic()
    for notes in (result.failed, result.unfinished):
        notes.pop(step.name, None)
    print(f"{result.piece}: {step.name} ...", flush=True)
    try:
        values = step.run(ask)
    except Unfinished as progress:
        result.unfinished[step.name] = str(progress)
    except (StepFailed, RuntimeError) as error:  # torch's errors are RuntimeErrors, an exhausted memory too
        result.failed[step.name] = str(error).partition("\n")[0][:300]
    else:
        known = result.of(step.name, device, tiny=ask.tiny)
        result.done = [done for done in result.done if done is not known]
        done = Done(
            step=step.name,
            command=f"benchmarks/gpu/run --piece {result.piece}" + " --tiny" * ask.tiny,
            commit=provenance.commit(),
            device=device,
            versions=_versions(ask),
            measured_at=provenance.now(),
            seconds=monotonic() - began,
            tiny=ask.tiny,
            values=values,
        )
        result.done.append(done)
        print(f"{result.piece}: {step.name} {values}", flush=True)
        return
    print(f"{result.piece}: {step.name} {result.failed.get(step.name) or result.unfinished[step.name]}", flush=True)


def _versions(ask: Ask) -> dict[str, str]:
    cuda = {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())} if ask.on_gpu else {}
    return provenance.versions() | cuda
