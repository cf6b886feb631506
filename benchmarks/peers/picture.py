"""A picture of contests: throughput by load, and latency by steps under the mixed load."""

from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.peers.report import MIXED, Contests, bouts, loads, servers
from benchmarks.peers.result import Contest


def draw(contests: Contests, file: Path) -> None:
    """Draw the contests into a picture file, one row each. Raises ImportError without matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2 * len(contests)), layout="constrained")
    for row, contest in zip(figure.subplots(len(contests), 2, squeeze=False), contests.values(), strict=True):
        _throughput(row[0], contest)
        _latency(row[1], contest)
    figure.savefig(file, dpi=110)


def _throughput(axes: Any, contest: Contest) -> None:
    names, width = servers(contest), 0.8 / len(servers(contest))
    for number, server in enumerate(names):
        rates = [[bout.images_per_second for bout in bouts(contest, server, load)] for load in loads(contest)]
        places = [place + (number - (len(names) - 1) / 2) * width for place in range(len(rates))]
        spreads = [
            [mean(several) - min(several) for several in rates],
            [max(several) - mean(several) for several in rates],
        ]
        axes.bar(places, [mean(several) for several in rates], width, yerr=spreads, label=server)
    axes.set_xticks(range(len(loads(contest))), [load.replace(", ", ",\n") for load in loads(contest)], fontsize=8)
    axes.margins(y=0.5)  # room for the legend
    axes.set_ylabel("images/s (bars: mean; whiskers: all rounds)")
    axes.set_title(f"throughput, networks: {', '.join(dict.fromkeys(contest.networks.values()))}", fontsize=10)
    axes.legend(fontsize=8, ncols=2)


def _latency(axes: Any, contest: Contest) -> None:
    positions = list(contest.networks)
    for number, server in enumerate(servers(contest)):
        for name, style in (("p50", "o-"), ("p95", "x--")):
            times = {}
            for steps in positions:
                found = [b.latency_ms[steps] for b in bouts(contest, server, MIXED) if steps in b.latency_ms]
                if found:
                    times[int(steps)] = mean(getattr(one, name) for one in found)
            label = server if name == "p50" else None
            axes.plot([*times], [*times.values()], style, color=f"C{number}", label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks([int(steps) for steps in positions], positions)
    axes.set_xlabel("steps (network evaluations per image)")
    axes.set_ylabel("latency, ms")
    axes.set_title(f"latency, {MIXED}: median (solid), 95 % (dashed)", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
