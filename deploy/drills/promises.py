"""What a drill promises, and whether it was kept."""

from benchmarks.checks.verdict import Finding
from deploy.drills.faults import Drill
from deploy.drills.result import Attempted, Jobs, Recovery, Requests


def findings(
    drill: Drill,
    *,
    requests: Requests,
    orders: Attempted,
    jobs: Jobs,
    recovery: Recovery,
    lines: int,
    in_hand: int,
) -> tuple[Finding, ...]:
    """Return every promise of the drill and what was found.

    lines: of log after the last mending; in_hand: jobs of the replica that was broken, just before.
    """
    return (
        _requests(drill, requests),
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
        *([_busy(in_hand)] if drill.busy else []),
    )


def _requests(drill: Drill, found: Requests) -> Finding:
    refusals_bad = drill.refuses != "everything" and found.refused > 0
    return Finding(
        what=f"{found.sent} requests, each sent once",
        found=_said(found),
        promised="all answered" if drill.refuses != "everything" else "none failed",
        kept=found.failed == 0 and not refusals_bad and found.answered > 0,
    )


def _orders(drill: Drill, found: Attempted) -> Finding:
    """Judge POST /jobs, attempt by attempt."""
    refusals_bad = drill.refuses == "nothing" and found.refused > 0
    promised = (
        "none refused, none failed" if drill.refuses == "nothing" else "none failed" + ", some refused" * drill.felt
    )
    return Finding(
        what=f"{found.sent} attempts to order",
        found=_said(found),
        promised=promised,
        kept=found.failed == 0 and not refusals_bad and found.refused >= drill.felt,
    )


def _said(found: Attempted) -> str:
    failures = "".join(f", {count} x {outcome}" for outcome, count in found.failures.items())
    return f"{found.answered} answered, {found.refused} told when to come again, {found.failed} failed{failures}"


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


def _busy(in_hand: int) -> Finding:
    return Finding(
        what="jobs that the replica had in hand when it was broken",
        found=str(in_hand),
        promised="some",
        kept=in_hand > 0,
    )


def _degraded(found: Requests) -> Finding:
    return Finding(
        what="answers in fewer steps than asked for, by consent, rather than a refusal",
        found=f"{found.degraded} of {found.answered}",
        promised="some",
        kept=found.degraded > 0,
    )
