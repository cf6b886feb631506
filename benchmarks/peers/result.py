"""The result of a contest: one JSON file that says how it came about."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from benchmarks.load.summary import Summary
from benchmarks.result_file import ResultFile


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Latency(_Record):
    """Of requests that were answered with images, in milliseconds."""

    requests: int
    p50: float
    p95: float
    p99: float


class Bout(_Record):
    """What one server did under one load, once."""

    server: str
    load: str
    images_per_second: float
    evaluations_per_second: float
    goodput_per_second: float
    """Images within the objective."""
    failed: int
    """Requests that were not answered with images."""
    client_share: float
    """Share of one processor core that the client used."""
    latency_ms: dict[str, Latency]
    """By dial position."""

    @classmethod
    def of(cls, server: str, load: str, run: Summary) -> "Bout":
        """Return the bout that a run was."""
        good = {steps: position.latency_ms for steps, position in run.by_steps_requested.items()}
        answered = {steps: found for steps, found in good.items() if found}
        images = sum(found.count for found in answered.values()) or 1
        evaluations = sum(int(steps) * found.count for steps, found in answered.items()) / images
        return cls(
            server=server,
            load=load,
            images_per_second=round(run.images_per_second, 2),
            evaluations_per_second=round(run.images_per_second * evaluations, 1),
            goodput_per_second=round(run.goodput_per_second or 0.0, 2),
            failed=sum(count for outcome, count in run.total.outcomes.items() if outcome != "200"),
            client_share=run.client.cpu_share,
            latency_ms={
                steps: Latency(
                    requests=found.count, p50=round(found.p50, 1), p95=round(found.p95, 1), p99=round(found.p99, 1)
                )
                for steps, found in answered.items()
            },
        )


class Turnout(_Record):
    """One server's turn in a round."""

    server: str
    start_seconds: float
    """From the start of its process until it has drawn an image of each position."""
    idle_mib: float
    """Memory before the first load, of all its processes; what they share counts once."""
    busy_mib: float
    """The same after the last one."""


class Bare(_Record):
    """What the machine does with no server, in one process: sampling and encoding, one call after another."""

    evaluations_per_second: dict[str, float]
    """By batch size, at 4 steps."""
    alone_ms: dict[str, float]
    """One image alone, from seed to base64, by dial position: the median of several."""


class Round(_Record):
    """Every server once, in the order in which they had their turns."""

    bare: Bare
    turnouts: tuple[Turnout, ...]
    bouts: tuple[Bout, ...]


class Contest(ResultFile):
    """Servers beside each other."""

    format: Literal[1] = 1
    command: str
    """The command that measured it."""
    note: str
    """What else a reader has to know, such as what the machine was shared with."""
    measured_at: str
    """When it began, in UTC, ISO 8601."""
    commit: str
    device: str
    versions: dict[str, str]
    family: str
    networks: dict[str, str]
    """Which networks draw, by dial position."""
    seconds: float
    """How long each load was measured; a quarter as long it went on before."""
    slo: float
    """The objective: so many times what one image alone takes with no server, by dial position."""
    rounds: tuple[Round, ...]


def read_contest(file: Path) -> Contest:
    """Return a contest from its file. Raises OSError, and ValueError for a file that is none."""
    return Contest.model_validate_json(file.read_text())
