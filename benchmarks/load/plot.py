"""A picture of a result: latency by steps, and latency by throughput."""

from pathlib import Path
from typing import Any

from benchmarks.load.result import Result, load_name
from benchmarks.load.summary import Summary


def plot(result: Result, file: Path) -> None:
    """Draw a result into a picture file. Raises ImportError without matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _latency_by_steps(left, result.runs)
    _latency_by_throughput(right, result.runs)
    device = (result.server or {}).get("device", "device not told")
    figure.suptitle(f"{result.model} on {device}" + (f" ({result.note})" if result.note else ""), fontsize=11)
    figure.savefig(file, dpi=110)


def _latency_by_steps(axes: Any, runs: tuple[Summary, ...]) -> None:
    """Median and 95th percentile by dial position, one colour for each load."""
    ticks = sorted({int(steps) for run in runs for steps in run.by_steps_requested if steps.isdecimal()})
    for number, run in enumerate(runs):
        found = {int(s): p.latency_ms for s, p in run.by_steps_requested.items() if s.isdecimal() and p.latency_ms}
        colour = f"C{number % 10}"
        axes.plot([*found], [latency.p50 for latency in found.values()], "o-", color=colour, label=load_name(run))
        axes.plot([*found], [latency.p95 for latency in found.values()], "x--", color=colour, linewidth=0.9)
    axes.set_xscale("log", base=2)
    _log_milliseconds(axes)
    axes.set_xticks(ticks, [str(steps) for steps in ticks])
    axes.set_xlabel("steps (network evaluations per image)")
    axes.set_ylabel("latency, ms")
    axes.set_title("latency by steps: median (solid), 95 % (dashed)", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(title="offered", fontsize=8)


def _latency_by_throughput(axes: Any, runs: tuple[Summary, ...]) -> None:
    """Percentiles of the latency of all requests against what was answered, from the lightest load to the heaviest."""
    found = [(run.answered_per_second, run.total.latency_ms, load_name(run)) for run in runs if run.total.latency_ms]
    for name, style in (("p50", "o-"), ("p95", "x--"), ("p99", "+:")):
        axes.plot(
            [rate for rate, _, _ in found], [getattr(latency, name) for _, latency, _ in found], style, label=name
        )
    for rate, latency, name in found:
        axes.annotate(name, (rate, latency.p50), textcoords="offset points", xytext=(0, -13), ha="center", fontsize=8)
    axes.margins(0.08, 0.15)
    axes.set_xlim(left=0)
    _log_milliseconds(axes)
    axes.set_xlabel("requests answered per second")
    axes.set_ylabel("latency of all requests, ms")
    axes.set_title("throughput and latency; labels: what was offered", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _log_milliseconds(axes: Any) -> None:
    """A logarithmic axis that is labelled 1, 2, 5, 10, 20, 50, ..."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:,g}")
