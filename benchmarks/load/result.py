"""The result of `stepdial bench`: a JSON file that says how it came about."""

import platform
from collections.abc import Mapping
from typing import Any, Literal

from benchmarks.load.summary import Position, Spread, Summary
from benchmarks.result_file import ResultFile


class Result(ResultFile):
    """What a server did under several loads."""

    format: Literal[1] = 1
    command: str
    """The command that measured it."""
    note: str
    """What else a reader has to know, such as what the machine was shared with."""
    measured_at: str
    """When it began, in UTC, ISO 8601."""
    model: str
    """The family."""
    server: dict[str, Any] | None
    """Commit, device and versions, as the server tells them."""
    client: dict[str, str]
    """Versions of the client, and the system it ran on."""
    settings: dict[str, Any]
    """Every flag's value."""
    runs: tuple[Summary, ...]
    """One per load, in the order in which they ran."""


def client_versions() -> dict[str, str]:
    """Return the versions of what sends and times requests."""
    import aiohttp

    return {"python": platform.python_version(), "aiohttp": aiohttp.__version__, "system": platform.system()}


def load_name(run: Summary) -> str:
    """Return what a run offered, in words."""
    return f"{run.rate:g}/s" if run.rate is not None else f"{run.clients} client{'s' * (run.clients != 1)}"


def lines(run: Summary) -> list[str]:
    """Return a run as a few lines of text."""
    outcomes = ", ".join(f"{count} x {outcome}" for outcome, count in run.total.outcomes.items())
    goodput = "" if run.goodput_per_second is None else f", {run.goodput_per_second:.1f}/s within the objective"
    found = [f"{load_name(run)}: {run.answered_per_second:.1f}/s answered{goodput}; {outcomes}"]
    found += [
        f"  {'steps':>8} {'requests':>9} {'p50':>9} {'p90':>9} {'p95':>9} {'p99':>9}  ms; server: queue + device + encode"
    ]
    found += [_line(steps, position) for steps, position in run.by_steps_requested.items()]
    lag = run.client.lag_ms
    if run.client.saturated and lag:
        found.append(
            f"  the client was saturated: requests left up to {lag.max:.0f} ms late (p99 {lag.p99:.0f} ms), "
            f"{100 * run.client.cpu_share:.0f} % of a core used; latencies include this"
        )
    return found


def _line(steps: str, position: Position) -> str:
    latency = position.latency_ms
    if latency is None:
        return f"  {steps:>8} {position.requests:>9}   no images"
    numbers = " ".join(f"{value:9.1f}" for value in (latency.p50, latency.p90, latency.p95, latency.p99))
    return f"  {steps:>8} {position.requests:>9} {numbers}      {_stages(position.stages_ms)}"


def _stages(stages: Mapping[str, Spread]) -> str:
    return " + ".join(f"{stages[stage].p50:.1f}" for stage in ("queue", "device", "encode") if stage in stages)
