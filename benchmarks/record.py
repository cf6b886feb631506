"""What every result file of a measurement says besides its numbers."""

import shlex
import sys
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from benchmarks.result_file import ResultFile
from diffusion import provenance


class Spread(BaseModel):
    """Repetitions of one measurement."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    median: float
    low: float
    """First quartile."""
    high: float
    """Third quartile."""
    count: int

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        """Return the spread of some values."""
        low, median, high = torch.tensor(values, dtype=torch.float64).quantile(torch.tensor([0.25, 0.5, 0.75]).double())
        return cls(median=median.item(), low=low.item(), high=high.item(), count=len(values))


class Record(ResultFile):
    """Numbers, and where they come from."""

    command: str
    """The command that measured."""
    commit: str
    device: str
    """Name of the GPU; or of the processor, and how many threads were used."""
    versions: dict[str, str]
    measured_at: str
    """When it ended, in UTC, ISO 8601."""
    note: str = ""
    """What else a reader has to know, such as what the machine was shared with."""
    settings: dict[str, Any] = {}
    results: list[dict[str, Any]]
    """One entry a measurement; times in seconds unless a name says otherwise."""


def record(
    module: str, device: torch.device, results: list[dict[str, Any]], *, settings: dict[str, Any], note: str = ""
) -> Record:
    """Return the record of what `python -m MODULE`, run as it was, measured on a device."""
    versions = provenance.versions()
    if device.type == "cuda":
        versions |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    return Record(
        command=shlex.join(["python", "-m", module, *sys.argv[1:]]),
        commit=provenance.commit(),
        device=provenance.device_name(device),
        versions=versions,
        measured_at=provenance.now(),
        note=note,
        settings=settings,
        results=results,
    )
