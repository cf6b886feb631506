"""Lanes: who waits for which network, and who is next. It knows no clock: the time is told.

The rule. A lane holds the samples whose next evaluation has one need. In a lane the earliest `due` goes first: a promised
sample is due at its deadline, any other `PATIENCE` after it arrived plus what its own evaluations take in full waves, so that
short work passes long work but not for ever. Between lanes the most urgent is next, where a lane is urgent `PATIENCE`
after it was last served (or, if later, last became non-empty), or earlier if one of the samples that its next wave would
take has to start earlier to keep its promise.

Why nobody starves. No due time lies before the arrival, so in a lane a sample can be passed only by those that arrived
before its own due time. No start-by time lies before its wait began, so once a lane has waited for `PATIENCE`, no wait that
begins later is more urgent; those that began earlier are finitely many, and every wave of another lane ends at least one.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field

from server.tickets import Need, Ticket

PATIENCE = 0.5
"""Seconds that a sample without a promise lets promised ones pass."""


@dataclass(slots=True)
class Lane:
    """The samples whose next evaluation has one need, by their due times."""

    need: Need
    since: float
    """When the lane was last served or, if later, last became non-empty."""
    tickets: list[Ticket] = field(default_factory=list)

    def urgency(self, max_wave: int) -> float:
        """Return when the lane should be served at the latest."""
        return min(self.since + PATIENCE, *(ticket.start_by for ticket in self.tickets[:max_wave]))


class Lanes:
    """All waiting samples."""

    def __init__(self, max_wave: int):
        self.max_wave = max_wave
        self._lanes: dict[Need, Lane] = {}

    def put(self, ticket: Ticket, now: float) -> None:
        """Let a sample wait for its next wave."""
        lane = self._lanes.setdefault(ticket.need, Lane(ticket.need, now))
        if not lane.tickets:
            lane.since = max(lane.since, now)
        insort(lane.tickets, ticket, key=lambda waiting: (waiting.due, waiting.order))

    def drop(self, ticket: Ticket) -> None:
        """Let a sample leave, if it waits."""
        lane = self._lanes.get(ticket.need)
        if lane and ticket in lane.tickets:
            lane.tickets.remove(ticket)

    def next(self) -> Lane | None:
        """Return the lane to serve next, None when nobody waits."""
        waiting = [lane for lane in self._lanes.values() if lane.tickets]
        return min(waiting, key=lambda lane: (lane.urgency(self.max_wave), lane.since), default=None)

    def take(self, lane: Lane, now: float) -> list[Ticket]:
        """Take a wave's worth of samples out of a lane."""
        taken, lane.tickets = lane.tickets[: self.max_wave], lane.tickets[self.max_wave :]
        lane.since = now
        if not lane.tickets:
            del self._lanes[lane.need]  # families come and go
        return taken
