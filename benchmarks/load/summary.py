"""From the answers of a run to numbers."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from benchmarks.load.client import Answer
from benchmarks.load.loops import Run

STAGES = ("queue", "device", "encode", "total")
BUSY_SHARE = 0.9
"""Share of a core above which a client, which has only one, is taken to be saturated."""
LATE_SECONDS = 0.01
LATE_SHARE = 0.1
"""A client is taken to be saturated, too, when a hundredth of its requests left later than both of these: so many
seconds, and such a share of the median latency."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Spread(_Record):
    """How a time was distributed, in milliseconds; percentiles interpolate between neighbours."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Spread | None":
        """Return the distribution of times in seconds, None if there are none."""
        if not seconds:
            return None
        times = np.asarray(seconds) * 1000
        p50, p90, p95, p99 = np.percentile(times, (50, 90, 95, 99))
        named = {"mean": times.mean(), "p50": p50, "p90": p90, "p95": p95, "p99": p99, "max": times.max()}
        return cls(count=len(seconds), **{name: round(float(value), 3) for name, value in named.items()})


class Position(_Record):
    """What requests of one dial position got."""

    requests: int
    outcomes: dict[str, int]
    """Requests by HTTP status, or timeout, connection, no-image."""
    latency_ms: Spread | None
    """From when a request should have been sent to its answer; of those that were answered with images."""
    stages_ms: dict[str, Spread]
    """Time by stage, as the server measured it."""

    @classmethod
    def of(cls, answers: Sequence[Answer]) -> "Position":
        """Return the summary of these answers."""
        good = [answer for answer in answers if answer.ok]
        stages = {stage: [a.stages[stage] for a in good if a.stages and stage in a.stages] for stage in STAGES}
        return cls(
            requests=len(answers),
            outcomes=dict(sorted(Counter(answer.outcome for answer in answers).items())),
            latency_ms=Spread.of([answer.latency for answer in good]),
            stages_ms={stage: spread for stage, times in stages.items() if (spread := Spread.of(times))},
        )


class ClientState(_Record):
    """How the client itself did: a client that is late measures itself."""

    lag_ms: Spread | None
    """How much later than due requests were sent."""
    cpu_share: float
    """Share of one processor core that the client used."""
    saturated: bool
    """Whether the client was too late or too busy for the latencies to be the server's alone."""


class Summary(_Record):
    """What one load did to the server."""

    rate: float | None
    """Requests a second that were offered (open loop)."""
    clients: int | None
    """Clients that asked one after another (closed loop)."""
    seconds: float
    """How long was measured."""
    answered_per_second: float
    """Requests whose images arrived while it was measured, whenever they were sent."""
    images_per_second: float
    """Their images."""
    goodput_per_second: float | None
    """Requests of the measured time that were answered with images within the service level objective; None without one."""
    goodput_share: float | None
    """The same as a share of all requests of the measured time."""
    degraded_share: float
    """Share of the answers with images that were drawn in fewer steps than asked for."""
    deadline_met_share: float | None
    """Share of the requests with a deadline that were answered with images in time, by the server's word."""
    retry_after_seconds: tuple[float, float] | None
    """Shortest and longest Retry-After."""
    total: Position
    by_steps_requested: dict[str, Position]
    by_steps_used: dict[str, Position]
    """Answers with images by the dial position that drew them."""
    client: ClientState


def summarise(
    run: Run, *, rate: float | None, clients: int | None, slo: Mapping[str, float] | None, has_deadline: bool = False
) -> Summary:
    """Return the numbers of a run. slo: seconds by dial position asked for, or for "all"."""
    counted, seconds = run.counted, run.end - run.begin
    during = [answer for answer in run.answers if answer.ok and run.begin <= answer.done <= run.end]
    good = [answer for answer in counted if answer.ok]
    met = None if slo is None else [a for a in good if a.latency <= slo.get(str(a.steps), slo.get("all", 0.0))]
    waits = [answer.retry_after for answer in counted if answer.retry_after is not None]
    return Summary(
        rate=rate,
        clients=clients,
        seconds=seconds,
        answered_per_second=_ratio(len(during), seconds),
        images_per_second=_ratio(sum(answer.images for answer in during), seconds),
        goodput_per_second=None if met is None else _ratio(len(met), seconds),
        goodput_share=None if met is None else _ratio(len(met), len(counted)),
        degraded_share=_ratio(sum(answer.degraded for answer in good), len(good)),
        deadline_met_share=_ratio(sum(bool(a.deadline_met) for a in good), len(counted)) if has_deadline else None,
        retry_after_seconds=(min(waits), max(waits)) if waits else None,
        total=Position.of(counted),
        by_steps_requested=_by(counted, lambda answer: answer.steps),
        by_steps_used=_by([answer for answer in good if answer.steps_used], lambda answer: answer.steps_used),
        client=_client(run, counted),
    )


def _by(answers: Iterable[Answer], key) -> dict[str, Position]:  # type: ignore[no-untyped-def]
    groups: dict[str, list[Answer]] = {}
    for answer in answers:
        groups.setdefault(str(key(answer)), []).append(answer)
    return {
        name: Position.of(groups[name])
        for name in sorted(groups, key=lambda name: (not name.isdecimal(), name.zfill(9)))
    }


def _client(run: Run, counted: Sequence[Answer]) -> ClientState:
    lag = Spread.of([answer.sent - answer.scheduled for answer in counted])
    latency = Spread.of([answer.latency for answer in counted if answer.ok])
    late = lag is not None and lag.p99 > max(LATE_SECONDS * 1000, LATE_SHARE * (latency.p50 if latency else 0.0))
    return ClientState(
        lag_ms=lag, cpu_share=round(run.cpu_share, 3), saturated=bool(late or run.cpu_share > BUSY_SHARE)
    )


def _ratio(count: float, whole: float) -> float:
    return round(count / whole, 4) if whole else 0.0
