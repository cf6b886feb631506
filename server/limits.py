"""Rate limits in network evaluations: what an image costs the device, whatever the request looks like."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

MAX_CLIENTS = 65536
"""Clients that are remembered; the one that asked longest ago is forgotten first."""


@dataclass(frozen=True, slots=True)
class Limit:
    """A token bucket: so many evaluations a minute, so many at once after a rest."""

    evaluations_per_minute: float
    burst_seconds: float
    """Seconds in which an empty bucket fills."""

    @property
    def interval(self) -> float:
        """Seconds that earn one evaluation."""
        return 60 / self.evaluations_per_minute

    @property
    def burst(self) -> int:
        """Evaluations in a full bucket, at least one."""
        return max(1, math.floor(self.burst_seconds / self.interval))


@dataclass(frozen=True, slots=True)
class Charge:
    """Who paid for evaluations, and by which limit: where what was not drawn is given back."""

    client: str
    limit: Limit


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a client has left."""

    limit: Limit
    wait_seconds: float
    """0 where the evaluations were granted, else how long until they would be."""
    full_seconds: float
    """How long until the bucket is full again."""

    @property
    def remaining(self) -> int:
        """Evaluations that would be granted now."""
        return max(0, math.floor(self.limit.burst - self.full_seconds / self.limit.interval + 1e-6))


def grant(limit: Limit, evaluations: int, full_seconds: float) -> Allowance:
    """Take evaluations out of a bucket that would be full in that many seconds, or refuse to and leave it as it is.

    What is dearer than a full bucket is granted by a full one, which then owes the rest: nobody is locked out of a dial
    position, and nobody gets more than the limit in the long run.
    """
    after = full_seconds + evaluations * limit.interval
    wait = after - max(limit.burst, evaluations) * limit.interval
    return Allowance(limit, wait, full_seconds) if wait > 1e-9 else Allowance(limit, 0.0, after)


class Buckets:
    """The buckets of all clients, in this process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._full_at: OrderedDict[str, float] = OrderedDict()

    async def take(self, client: str, limit: Limit, evaluations: int) -> Allowance:
        """Take evaluations out of the client's bucket, if they are there."""
        now = self._clock()
        allowance = grant(limit, evaluations, max(0.0, self._full_at.get(client, now) - now))
        self._full_at[client] = now + allowance.full_seconds
        self._full_at.move_to_end(client)
        while len(self._full_at) > MAX_CLIENTS:
            self._full_at.popitem(last=False)
        return allowance

    async def give_back(self, client: str, limit: Limit, evaluations: int) -> None:
        """Put evaluations back that the client took and the server did not draw."""
        if client in self._full_at:
            self._full_at[client] -= evaluations * limit.interval
