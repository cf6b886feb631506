"""What a drill promises, and whether it was kept."""

from collections.abc import Sequence

from benchmarks.checks.verdict import Finding
from benchmarks.load.client import Answer
from deploy.drills.faults import Drill
from deploy.drills.result import Attempted, Jobs, Recovery, Requests

FOUND_OUT_SECONDS = 10.0
"""Within this time the balancer has to know that a replica hangs, and to send nobody there any more."""


def findings(
    drill: Drill, answers: Sequence[Answer], *, began: float,
    requests: Requests, orders: Attempted, jobs: Jobs, recovery: Recovery, lines: int,
) -> tuple[Finding, ...]:  # fmt: skip
    """Return every promise of the drill and what was found.

    began: when the first thing was broken, in seconds since the load began. lines: of log after the last mending.
    """
    return (
        _requests(drill, requests, [answer for answer in answers if not _had_by_the_hanging(answer, began)]),
        _orders(drill, orders),
        _lost(drill, jobs),
        Finding(
            what=f"{jobs.fetched} results, of which each was fetched twice, after an order was repeated under its key",
            found=f"{jobs.different} with other bytes the second time",
            promised="none",
            kept=jobs.different == 0 and jobs.fetched > 0,
        ),
        Finding(
            what=f"{jobs.compared} of them beside what POST /generate draws for the same body and seed",
            found=f"{jobs.wrong} differ",
            promised="none",
            kept=jobs.wrong == 0 and jobs.compared > 0,
        ),
        Finding(
            what="after the last mending, until all replicas took requests and the store could be reached",
            found=f"{recovery.whole:.1f} s",
            promised="it comes to pass",
            kept=recovery.whole >= 0,
        ),
        Finding(what="lines in the log of the replica after that", found=str(lines), promised="some", kept=lines > 0),
        *([_degraded(requests)] if drill.degrades else []),
    )


def _had_by_the_hanging(answer: Answer, began: float) -> bool:
    """Whether the request may have been with a replica that hung from `began` on, until that was found out."""
    return answer.done > began and answer.scheduled < began + FOUND_OUT_SECONDS


def _requests(drill: Drill, found: Requests, others: Sequence[Answer]) -> Finding:
    """Judge POST /generate. others: those that no hanging replica can have had."""
    failures = "".join(f", {count} x {outcome}" for outcome, count in found.failures.items())
    bad = {
        "nothing": found.failed + found.refused,
        "hung": sum(not answer.ok for answer in others),
        "everything": found.failed,
    }
    kind = "hung" if drill.hangs else "everything" if drill.refuses == "everything" else "nothing"
    promised = {
        "nothing": "all answered",
        "hung": f"all answered that were sent more than {FOUND_OUT_SECONDS:g} s after it hung",
        "everything": "none failed, and whoever is refused is told when to come again",
    }
    return Finding(
        what=f"{found.sent} requests, each sent once",
        found=f"{found.answered} answered, {found.refused} refused, {found.failed} failed{failures}",
        promised=promised[kind],
        kept=bad[kind] == 0 and found.answered > 0,
    )


def _orders(drill: Drill, found: Attempted) -> Finding:
    """Judge POST /jobs, attempt by attempt."""
    failures = "".join(f", {count} x {outcome}" for outcome, count in found.failures.items())
    refusals_bad = drill.refuses == "nothing" and not drill.hangs and found.refused > 0
    promised = {"nothing": "none refused, none failed"}.get(drill.refuses, "none failed")
    return Finding(
        what=f"{found.sent} attempts to order",
        found=f"{found.answered} answered, {found.refused} refused, {found.failed} failed{failures}",
        promised="repeated until accepted" if drill.hangs else promised + ", some refused" * drill.felt,
        kept=drill.hangs or (found.failed == 0 and not refusals_bad and found.refused >= drill.felt),
    )


def _lost(drill: Drill, jobs: Jobs) -> Finding:
    found = f"{jobs.lost} lost, {jobs.doubled} orders that made two jobs" + "".join(f"; {p}" for p in jobs.problems)
    if drill.forgets:
        return Finding(
            what=f"{jobs.accepted} accepted jobs, whose store was emptied",
            found=f"{found}; {jobs.done} results in the end",
            promised="ordered again under its key, what is gone is a new job and is drawn",
            kept=jobs.done == jobs.accepted == jobs.ordered and jobs.doubled > 0,
        )
    return Finding(
        what=f"{jobs.accepted} accepted jobs of {jobs.ordered} orders",
        found=found,
        promised="none",
        kept=jobs.lost == jobs.doubled == 0 and jobs.accepted == jobs.ordered,
    )


def _degraded(found: Requests) -> Finding:
    return Finding(
        what="answers in fewer steps than asked for, by consent, rather than a refusal",
        found=f"{found.degraded} of {found.answered}",
        promised="some",
        kept=found.degraded > 0,
    )
