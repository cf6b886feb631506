"""What can go wrong between a valid request and its images, in words that know neither HTTP nor the device."""

import json
import math

SHOWN = 60
"""Characters of a value that a message repeats."""


def shown(value: object) -> str:
    """Return a value of a request as a message repeats it: as JSON on one line, cut where it is long."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = json.dumps(value, default=lambda other: type(other).__name__)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


class NotReady(Exception):
    """The networks are still being loaded, warmed up and checked, or the server is about to end."""


class Overloaded(Exception):
    """The samples would make more evaluations wait than are allowed."""

    def __init__(self, backlog_seconds: float):
        super().__init__("too many evaluations are waiting")
        self.backlog_seconds = backlog_seconds
        """How long the device will need for what is waiting already, in seconds, as measured."""


class DrawFailed(Exception):
    """The device could not run a wave; the samples of that wave are lost, the server goes on."""


class OutOfMemory(Exception):
    """The device has no room for a wave of this size; a smaller one may work."""


class DeviceLost(Exception):
    """The device will run no further wave; every sample is lost and the process has to end."""


class TimedOut(Exception):
    """The images were not ready within the time that a request may take."""


class DeadlinePassed(TimedOut):
    """The deadline of the request passed while its images were waited for; their work is dropped."""


class DeadlineUnattainable(Exception):
    """Nothing that the request allows can be ready by its deadline."""

    def __init__(self, deadline_seconds: float, feasible_seconds: float):
        least = math.ceil(feasible_seconds * 1000)
        super().__init__(f"deadline_ms is {deadline_seconds * 1000:.0f}; what is asked for would take {least} ms now")
        self.min_feasible_ms = least
        """The smallest deadline_ms that could be promised now."""


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


class ModelUnknown(Exception):
    """The request names a family that is not served."""


class FamilyConflict(Exception):
    """The family is in a state in which it cannot be loaded or unloaded."""


class MemoryExceeded(Exception):
    """The family's networks do not fit into the memory that is allowed."""


class KeyRefused(Exception):
    """The request carries no API key, or one that is not known."""

    def __init__(self, message: str, *, given: bool):
        super().__init__(message)
        self.given = given
        """Whether there was a key at all."""


class ScopeMissing(Exception):
    """The request's API key is not good for this."""

    def __init__(self, message: str, scope: str):
        super().__init__(message)
        self.scope = scope
        """The scope that the key lacks."""


class RateLimited(Exception):
    """The caller has asked for more evaluations than its rate limit grants now."""

    def __init__(self, evaluations: int, evaluations_per_minute: float, wait_seconds: float):
        super().__init__(
            f"this takes {evaluations} network evaluations; {evaluations_per_minute:g} a minute are allowed, "
            f"it would be granted in {wait_seconds:.1f} seconds"
        )
        self.wait_seconds = wait_seconds
        """How long until the same request would be granted."""


class NotMeasured(Exception):
    """The family has no frontier yet."""


class FieldRefused(Exception):
    """One field of the request asks for something that this server or this family does not do."""

    def __init__(self, field: str, message: str):
        super().__init__(message)
        self.field = field
        """Name of the request's field to blame."""


class StepsNotServed(FieldRefused):
    """The request asks for a dial position that the family does not have."""

    def __init__(self, steps: int, available: tuple[int, ...]):
        super().__init__("steps", f"{steps} is not served; the dial has {', '.join(map(str, available))}")
        self.available = available
        """The dial positions that are served, rising."""


class JobUnknown(Exception):
    """There is no such job, or no longer."""


class JobImageMissing(Exception):
    """The job has no such image, or not yet."""


class JobsFull(Exception):
    """As many jobs wait as are allowed."""

    def __init__(self, backlog_seconds: float):
        super().__init__("too many jobs are waiting")
        self.backlog_seconds = backlog_seconds
        """How long this replica's device will need for what it has begun, in seconds, as measured."""


class JobsUnavailable(Exception):
    """The store of jobs cannot be reached; whatever needs no store goes on."""


class JobGivenUp(Exception):
    """The job was begun as often as is allowed and never finished: it may be what ends the servers that draw it."""


class JobUnreadable(Exception):
    """Another version of the server wrote the job, and none that can read it has come for it."""

    def __init__(self) -> None:
        super().__init__(
            "it was accepted by another version of this server, and no replica can read it; order it again"
        )


class EditionGone(Exception):
    """No replica serves the family of a job any more, with the weights that it was accepted for."""

    def __init__(self, model: str):
        super().__init__(
            f"no replica serves the family {model!r} as it was when the job was accepted; order it again to have it "
            "drawn by the present one"
        )


class KeyReused(Exception):
    """The idempotency key stands for a job with another body."""
