"""The trials of queueing: what was simulated, and its result file."""

from collections.abc import Iterator, Mapping
from math import inf
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict
from tqdm import tqdm

from benchmarks.result_file import ResultFile
from benchmarks.scale.queueing import Policy, simulate
from benchmarks.scale.sizing import MIX, Speed, mixed, speeds_of
from diffusion import provenance
from diffusion.frontier import Frontier

REPLICAS = (1, 10, 100)
LOADS = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Offered, as shares of what the replicas could do with full waves."""
ROOMS = (16, 64)
"""Requests inside a replica above which they wait at the balancer: one wave, four waves."""
CROWDED = 0.8
"""Load at which policies are compared."""
REQUESTS, OF_EACH = 20_000, 800
"""Requests of a trial at least, and for each replica."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Times(_Record):
    """How long requests took, in milliseconds."""

    mean: float
    p50: float
    p99: float


class Trial(_Record):
    """One load on so many replicas."""

    replicas: int
    policy: Policy
    room: int | None
    """Requests inside a replica above which they wait at the balancer; None for no bound."""
    load: float
    """Requests offered, as a share of what the replicas could do with full waves."""
    by_steps: dict[int, Times]


class Trials(ResultFile):
    """Everything that was simulated."""

    format: Literal[1] = 1
    command: str
    commit: str
    family: str
    device: str
    """What the waves were timed on."""
    mix: dict[int, float]
    capacity: float
    """Requests a second that one replica could do with full waves."""
    trials: tuple[Trial, ...]


def read_trials(file: Path) -> Trials:
    """Return the trials of a file. Raises OSError, pydantic.ValidationError."""
    return Trials.model_validate_json(file.read_text())


def all_trials(frontier: Frontier) -> Trials:
    """Simulate everything for a family that was measured."""
    speeds, began = speeds_of(frontier.positions), provenance.commit()
    return Trials(
        command=provenance.command(),
        commit=began,
        family=frontier.family,
        device=frontier.positions[0].timed.device,
        mix=MIX,
        capacity=mixed(speeds, MIX),
        trials=tuple(tqdm(trials(speeds, MIX), total=len(REPLICAS) * (len(LOADS) + 1 + len(ROOMS)))),
    )


def trials(speeds: Mapping[int, Speed], mix: Mapping[int, float]) -> Iterator[Trial]:
    """Simulate leastconn at every load, and the other policies when it is crowded."""
    for replicas in REPLICAS:
        for load in LOADS:
            yield _trial(replicas, "leastconn", None, load, speeds, mix)
        yield _trial(replicas, "random", None, CROWDED, speeds, mix)
        for room in ROOMS:
            yield _trial(replicas, "leastconn", room, CROWDED, speeds, mix)


def _trial(
    replicas: int, policy: Policy, room: int | None, load: float, speeds: Mapping[int, Speed], mix: Mapping[int, float]
) -> Trial:
    rate = load * replicas * mixed(speeds, mix)
    requests = max(REQUESTS, OF_EACH * replicas)
    found = simulate(replicas, policy, rate=rate, speeds=speeds, mix=mix, requests=requests, room=room or inf)
    by_steps = {}
    for steps in mix:
        times = np.array([seconds * 1000 for position, seconds in found if position == steps])
        mean, p50, p99 = (round(float(value), 1) for value in (times.mean(), *np.percentile(times, (50, 99))))
        by_steps[steps] = Times(mean=mean, p50=p50, p99=p99)
    return Trial(replicas=replicas, policy=policy, room=room, load=load, by_steps=by_steps)
