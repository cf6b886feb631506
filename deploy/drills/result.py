"""What came of a drill: counts, times, promises, and how it was run, in one file."""

from collections import Counter
from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ConfigDict

from benchmarks.checks.verdict import Verdict
from benchmarks.load.client import Answer
from benchmarks.load.summary import Spread
from deploy.drills.load import refused
from deploy.drills.orders import Attempts, Order
from deploy.drills.scene import Scene

SLOW_SECONDS = 5.0
"""A request that took longer was disturbed, even if it was answered."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Attempted(_Record):
    """How requests were answered."""

    sent: int
    answered: int
    refused: int
    """503 or 429 with Retry-After."""
    failed: int
    """Everything else, a refusal without Retry-After too."""
    failures: dict[str, int]
    """The failed ones, by HTTP status, timeout, connection (it broke) or no-image (a 200 without one)."""

    @classmethod
    def of(cls, attempts: Iterable[Attempts]) -> "Attempted":
        """Return the sum of these."""
        found = [*attempts]
        answered, refused = sum(one.answered for one in found), sum(one.refused for one in found)
        failures = sum((one.failures for one in found), Counter[str]())
        failed = failures.total()
        return cls(
            sent=answered + refused + failed, answered=answered, refused=refused, failed=failed, failures=dict(failures)
        )


class Requests(Attempted):
    """POST /generate: each was sent once, and no client tried again."""

    degraded: int
    """Answered in fewer steps than asked for, with consent."""
    latency_ms: dict[str, Spread | None]
    """Of the answered ones, by when they were sent: before the first fault, during, and after the last was mended."""


class Jobs(_Record):
    """POST /jobs: each order was repeated under its key until it was accepted, looked at until it ended, fetched twice."""

    ordered: int
    accepted: int
    retried: int
    """Orders that were sent again, after a refusal or a failure."""
    done: int
    lost: int
    """Accepted, but the result never came, or only because it was ordered again."""
    begun_again: int
    """Drawn from the beginning once more, because the replica that had begun it did not end it."""
    fetched: int
    """Results, counting each time they were fetched."""
    different: int
    """Results whose bytes were not the same each time."""
    doubled: int
    """Orders whose key stood for more than one job."""
    compared: int
    """Results that were compared with what POST /generate draws for the same body and seed."""
    wrong: int
    """Those that differ from it."""
    problems: tuple[str, ...]
    """Why jobs failed."""
    seconds: dict[str, float]
    """From order to result: median and slowest."""


class Recovery(_Record):
    """How long it took, in seconds."""

    broken: float
    """From the first fault to the last mending."""
    disturbed: float
    """From the first fault until the last request that was not answered, or answered late, had ended; 0: there was none."""
    whole: float
    """From the last mending until every replica took requests again and the store could be reached."""


class DrillResult(Verdict):
    """A drill's result file."""

    stack: str
    """loopback or compose."""
    does: str
    """What was broken and mended."""
    commit: str
    """Of the drill's own code."""
    machine: str
    """Processor, and cores that could be used."""
    versions: dict[str, str]
    """Of balancer, Redis and the client."""
    settings: dict[str, object]
    """Every flag's value."""
    replicas: int
    fewest_replicas: int
    """Fewest that took requests at one time, by the balancer's word."""
    balancer_retries: int
    """Times that the balancer sent a request again, to the same replica or to another."""
    requests: Requests
    orders: Attempted
    """POST /jobs, each attempt counted."""
    looks: Attempted
    """GET /jobs/..., each attempt counted."""
    jobs: Jobs
    recovery: Recovery
    moments: tuple[tuple[float, str], ...]
    """What was done when, in seconds since the load began."""


def disturbed(answer: Answer) -> bool:
    """Return whether a request was not answered, or late."""
    return not answer.ok or answer.latency > SLOW_SECONDS


def requests_of(answers: Sequence[Answer], scene: Scene) -> Requests:
    """Return what became of the requests."""
    good = [answer for answer in answers if answer.ok]
    failures = Counter(answer.outcome for answer in answers if not answer.ok and not refused(answer))
    began, mended = scene.began_at or 0.0, scene.mended_at or 0.0
    phases = {
        "before": [answer.latency for answer in good if answer.scheduled < began],
        "during": [answer.latency for answer in good if began <= answer.scheduled < mended],
        "after": [answer.latency for answer in good if mended <= answer.scheduled],
    }
    return Requests(
        sent=len(answers),
        answered=len(good),
        refused=sum(map(refused, answers)),
        failed=failures.total(),
        failures=dict(failures),
        degraded=sum(answer.degraded for answer in good),
        latency_ms={phase: Spread.of(times) for phase, times in phases.items()},
    )


def jobs_of(orders: Sequence[Order], compared: int, wrong: int) -> Jobs:
    """Return what became of the orders."""
    times = sorted(order.done_at - order.ordered_at for order in orders if order.done_at is not None)
    return Jobs(
        ordered=len(orders),
        accepted=sum(order.accepted_at is not None for order in orders),
        retried=sum(order.orders.refused + order.orders.failures.total() for order in orders),
        done=sum(order.state == "done" for order in orders),
        lost=sum(order.lost for order in orders),
        begun_again=sum(order.begun > 1 for order in orders),
        fetched=sum(len(order.results) for order in orders),
        different=sum(len(set(order.results)) > 1 for order in orders),
        doubled=sum(len(order.ids) > 1 for order in orders),
        compared=compared,
        wrong=wrong,
        problems=tuple(sorted({order.problem["detail"] for order in orders if order.problem})),
        seconds={"median": round(times[len(times) // 2], 2), "slowest": round(times[-1], 2)} if times else {},
    )


def recovery_of(answers: Sequence[Answer], scene: Scene) -> Recovery:
    """Return how long the fault was felt."""
    began, mended, whole = (at or 0.0 for at in (scene.began_at, scene.mended_at, scene.whole_at))
    last = max((answer.done for answer in answers if disturbed(answer) and answer.done >= began), default=began)
    return Recovery(
        broken=round(mended - began, 2), disturbed=round(last - began, 2), whole=round(max(0.0, whole - mended), 2)
    )
