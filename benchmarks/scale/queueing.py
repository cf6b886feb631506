"""Queueing, simulated: replicas that draw in waves behind a balancer, one event after the other.

A replica does what server/scheduler.py does, as far as it matters here: samples wait in one lane for each network, a wave takes
up to a batch of one lane, the lane that has waited longest is next, and samples come back until their steps are taken.
"""

import heapq
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from math import inf
from random import Random
from typing import Literal

from benchmarks.scale.sizing import Speed

Policy = Literal["leastconn", "random"]
"""leastconn: to the replica with the fewest requests inside. random: to any."""
ROWS = (4, 8, 16)
"""Sizes that waves are filled up to, so that images are exact on a processor (docs/serving.md, What a seed promises)."""


@dataclass(slots=True, eq=False)
class Request:
    """One image on its way."""

    steps: int
    arrived: float
    left: int
    """Evaluations still to come."""
    counts: bool = True
    """Whether what it takes is told."""


@dataclass(slots=True, eq=False)
class Replica:
    """A replica: its lanes, and whether a wave is on its way."""

    lanes: dict[int, deque[Request]] = field(default_factory=dict)
    since: dict[int, float] = field(default_factory=dict)
    """When each lane was last served, or last became non-empty."""
    inside: int = 0
    """Requests that are not answered."""
    busy: bool = False

    def put(self, request: Request, now: float) -> None:
        """Let a request wait for its next wave."""
        lane = self.lanes.setdefault(request.steps, deque())
        if not lane:
            self.since[request.steps] = max(now, self.since.get(request.steps, now))
        lane.append(request)

    def cut(self, now: float, batch: int) -> list[Request]:
        """Take the next wave, empty where nobody waits."""
        waiting = [steps for steps, lane in self.lanes.items() if lane]
        if not waiting:
            return []
        steps = min(waiting, key=self.since.__getitem__)
        lane, self.since[steps] = self.lanes[steps], now
        return [lane.popleft() for _ in range(min(batch, len(lane)))]


class Fleet:
    """Replicas behind a balancer."""

    def __init__(
        self, replicas: int, policy: Policy, speeds: Mapping[int, Speed], random: Random, *, room: float = inf
    ):
        """room: requests inside a replica above which the next waits at the balancer, in one queue for all (HAProxy: maxconn)."""
        self._room = room
        self._replicas = [Replica() for _ in range(replicas)]
        self._policy, self._speeds, self._random = policy, speeds, random
        self._batch = max(speed.batch for speed in speeds.values())
        self._queue: deque[Request] = deque()
        self._landings: list[tuple[float, int, Replica, list[Request]]] = []
        self._orders = count()
        self.answered: list[tuple[Request, float]] = []
        """Requests and the seconds that they took."""

    def arrive(self, request: Request) -> None:
        """Take a request in at its time; everything before has to have happened."""
        self._queue.append(request)
        self._spread(request.arrived)

    def until(self, now: float) -> None:
        """Let everything happen up to this time."""
        while self._landings and self._landings[0][0] <= now:
            at, _, replica, wave = heapq.heappop(self._landings)
            self._land(at, replica, wave)

    def _land(self, now: float, replica: Replica, wave: Sequence[Request]) -> None:
        replica.busy = False
        for request in wave:
            request.left -= 1
            if request.left:
                replica.put(request, now)
            else:
                replica.inside -= 1
                self.answered.append((request, now - request.arrived))
        self._spread(now)
        self._start(replica, now)

    def _spread(self, now: float) -> None:
        """Hand waiting requests to replicas, as far as the policy lets them have one."""
        while self._queue:
            replica = self._choose()
            if replica.inside >= self._room:
                return
            replica.inside += 1
            replica.put(self._queue.popleft(), now)
            self._start(replica, now)

    def _choose(self) -> Replica:
        """Of equals any, as HAProxy goes round among them."""
        first = self._random.randrange(len(self._replicas))
        if self._policy == "random":
            return self._replicas[first]
        return min(self._replicas[first:] + self._replicas[:first], key=lambda replica: replica.inside)

    def _start(self, replica: Replica, now: float) -> None:
        if replica.busy:
            return
        wave = replica.cut(now, self._batch)
        if wave:
            rows = next((rows for rows in ROWS if rows >= len(wave)), len(wave))
            ends = now + self._speeds[wave[0].steps].wave_seconds(rows)
            replica.busy = True
            heapq.heappush(self._landings, (ends, next(self._orders), replica, wave))


def simulate(
    replicas: int, policy: Policy, *, rate: float, speeds: Mapping[int, Speed], mix: Mapping[int, float],
    requests: int, room: float = inf, seed: int = 0, ignored: float = 0.2,
) -> list[tuple[int, float]]:  # fmt: skip
    """Return (steps, seconds) of requests that arrive at random, `rate` a second in all; the first share is ignored."""
    random, now = Random(seed), 0.0
    fleet = Fleet(replicas, policy, {steps: speeds[steps] for steps in mix}, random, room=room)
    for number in range(requests):
        now += random.expovariate(rate)
        steps = random.choices([*mix], [*mix.values()])[0]
        fleet.until(now)
        fleet.arrive(Request(steps, now, steps, counts=number >= ignored * requests))
    fleet.until(inf)
    return [(request.steps, seconds) for request, seconds in fleet.answered if request.counts]
