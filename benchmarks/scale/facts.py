"""The facts that tables and pictures are made of: frontier, costs, trials, and what follows for one replica."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from benchmarks.scale.costs import Costs, read_costs
from benchmarks.scale.fleet import Traffic
from benchmarks.scale.sizing import MIX, UTILISATION, Server, Speed, mixed, speeds_of
from benchmarks.scale.trials import Trials, read_trials
from diffusion.family import open_family
from diffusion.frontier import Frontier


@dataclass(frozen=True)
class Facts:
    """What was measured and simulated of one family."""

    frontier: Frontier
    costs: Costs
    trials: Trials

    @cached_property
    def speeds(self) -> dict[int, Speed]:
        """Speeds by dial position."""
        return speeds_of(self.frontier.positions)

    @cached_property
    def server(self) -> Server:
        """What a request costs a replica of the frontier's device beside its waves."""
        return server_on(self.frontier, self.costs)

    @cached_property
    def rate(self) -> float:
        """Requests a second that a replica is planned to get."""
        return UTILISATION * self.server.capacity(mixed(self.speeds, MIX))

    def traffic(self, faster: float = 1.0) -> Traffic:
        """What each replica is asked for, if replicas were so many times as fast."""
        times = next(t for t in self.trials.trials if (t.replicas, t.load, t.room) == (10, UTILISATION, None)).by_steps
        seconds = sum(weight * times[steps].mean / 1000 for steps, weight in MIX.items()) / sum(MIX.values()) / faster
        return Traffic(rate=self.rate * faster, seconds=seconds, job_seconds=seconds)


def measured(family: Path) -> Frontier:
    """Return the frontier of a family. Raises FamilyError, and ValueError where there is none."""
    frontier = open_family(family).frontier
    if frontier is None:
        raise ValueError(f"family {family.name!r} was not measured yet; `stepdial evaluate` does it")
    return frontier


def read_facts(family: Path, costs: Path, trials: Path) -> Facts:
    """Return the facts of these files. Raises what `measured` raises, OSError, and ValueError for a file that is no result."""
    return Facts(measured(family), read_costs(costs), read_trials(trials))


def server_on(frontier: Frontier, costs: Costs) -> Server:
    """Return what a request costs a replica beside its waves, on the device of the frontier."""
    threads = re.search(r"(\d+) threads", frontier.positions[0].timed.device)
    return Server(overhead_seconds(costs), int(threads[1]) if threads else None)


def overhead_seconds(costs: Costs) -> float:
    """Return the processor seconds of a drawn request beside its waves: where the line through steps 1 to 16 meets 0.

    At least what a request takes that is answered from the cache.
    """
    points = {steps: taken for steps, taken in costs.replica.drawing_cpu_seconds.items() if steps <= 16}
    _, at_none = np.polyfit([*points], [*points.values()], 1, w=[1 / taken for taken in points.values()])
    return max(costs.replica.hit_cpu_seconds, float(at_none))
