"""The account: what was drawn of what was asked for, in every answer's body and headers."""

from collections.abc import Sequence

from server.dial import Wish
from server.schemas import Account, Timings
from server.studio import Picture


def account_of(wish: Wish, pictures: Sequence[Picture], timings: Timings) -> Account:
    """Return the account of a wish that was met."""
    wished = wish.samples[0].plan
    least = min(pictures, key=lambda picture: (picture.plan or wished).steps)
    plan, reason = least.plan or wished, wish.reason or least.shortened
    return Account(
        student="+".join(plan.members),
        steps_requested=wish.steps_requested,
        steps_used=plan.steps,
        degraded=reason is not None,
        degrade_reason=reason,
        deadline_met=None if wish.deadline_seconds is None else timings.total_seconds <= wish.deadline_seconds,
    )


def account_headers(account: Account, pictures: Sequence[Picture]) -> dict[str, str]:
    """Return the account as headers, and whether these pictures were all there already."""
    headers = {
        "X-Steps-Requested": str(account.steps_requested),
        "X-Steps-Used": str(account.steps_used),
        "X-Student": account.student,
        "X-Degraded": str(account.degraded).lower(),
    }
    if account.degrade_reason:
        headers["X-Degrade-Reason"] = account.degrade_reason
    if account.deadline_met is not None:
        headers["X-Deadline-Met"] = str(account.deadline_met).lower()
    if all(picture.cached for picture in pictures):
        headers["X-Cache"] = "hit"
    return headers


ACCOUNT_HEADERS = {
    "X-Steps-Requested": "The dial position that was asked for, or auto",
    "X-Steps-Used": "Network evaluations that the image took",
    "X-Student": "The networks that drew",
    "X-Degraded": "Whether fewer steps were used than asked for",
    "X-Degrade-Reason": "Why, where they were: brownout, deadline or queue",
    "X-Deadline-Met": "Whether the images were ready in time, where there was a deadline",
    "X-Cache": "hit where all images came out of the result cache; they are the bytes that drawing gives",
}
"""What each header says."""
