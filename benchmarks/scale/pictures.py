"""Pictures of scale: what a fleet takes of everything that is shared, and how long requests wait."""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.scale.facts import Facts
from benchmarks.scale.fleet import Limits, components
from benchmarks.scale.report import FASTER

LARGEST = 10_000
"""Replicas at the right end."""
STYLES = {"Redis": "--", "balancer": "-.", "Prometheus": ":"}
"""Lines of what belongs to whom."""


def fleet(facts: Facts, file: Path) -> None:
    """Draw the share of each limit against the number of replicas."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5.4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    replicas = np.geomspace(1, LARGEST, 200)
    for place, faster in zip(axes, (1, FASTER), strict=True):
        for number, part in enumerate(components(facts.costs, facts.traffic(faster), Limits())):
            shares = [part.share(size) for size in replicas]
            place.plot(replicas, shares, STYLES[part.name.split(":")[0]], color=f"C{number}", label=part.name)
            if 1 <= part.saturates_at <= LARGEST:
                place.plot(part.saturates_at, 1, "o", color=f"C{number}", markersize=5)
        rate = facts.traffic(faster).rate
        place.set_title(
            f"replicas {'as measured' if faster == 1 else f'{faster} times as fast'}: {rate:.0f} requests/s each",
            fontsize=10,
        )
        place.axhline(1, color="black", linewidth=1)
        place.set(xscale="log", yscale="log", xlabel="replicas", ylim=(1e-3, 30), xlim=(1, LARGEST))
        place.xaxis.set_major_formatter("{x:,g}")
        place.grid(alpha=0.3)
    axes[0].set_ylabel("share of the limit (1: it is reached)")
    axes[0].yaxis.set_major_formatter("{x:g}")
    axes[0].legend(fontsize=8)
    figure.suptitle("What so many replicas take of what they share (computed from measured costs)", fontsize=11)
    figure.savefig(file, dpi=110)


def queueing(facts: Facts, file: Path) -> None:
    """Draw median and 99th percentile against load, for each number of replicas."""
    from matplotlib.figure import Figure

    found = facts.trials
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    axes = figure.subplots(1, len(found.mix), sharex=True)
    sizes = sorted({trial.replicas for trial in found.trials})
    for place, steps in zip(axes, found.mix, strict=True):
        for number, size in enumerate(sizes):
            chosen = [t for t in found.trials if t.replicas == size and t.policy == "leastconn" and t.room is None]
            loads, colour = [t.load for t in chosen], f"C{number}"
            place.plot(loads, [t.by_steps[steps].p50 for t in chosen], "o-", color=colour, label=f"{size}, median")
            place.plot(loads, [t.by_steps[steps].p99 for t in chosen], "x--", color=colour, label=f"{size}, 99 %")
        _finish(place, f"{steps} step{'s' * (steps > 1)}")
    axes[0].set_ylabel("milliseconds in the server")
    axes[0].legend(title="replicas", fontsize=8)
    figure.suptitle(
        f"Queueing behind leastconn, simulated with the waves of {found.family} on {found.device}", fontsize=11
    )
    figure.savefig(file, dpi=110)


def _finish(axes: Any, title: str) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.yaxis.set_minor_formatter(lambda x, _: f"{x:,g}" if f"{x:e}"[0] in "235" else "")
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.set_xlabel("load, as a share of full waves")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3, which="both")
