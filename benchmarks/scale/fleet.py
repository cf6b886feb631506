"""The fleet on paper: what so many replicas do to Redis, the balancer and Prometheus, from measured costs. Arithmetic only.

Every load is linear * R + quadratic * R**2 of the number of replicas R, as a share of a limit; what is quadratic, and why,
docs/scale.md says.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.scale.costs import Costs, Pending, Redis

GIB = 2.0**30


@dataclass(frozen=True, slots=True)
class Traffic:
    """What each replica is asked for, and for how long things are kept. Shares are of all requests, 0 to 1."""

    rate: float
    """Requests a second of one replica, of one image each, jobs among them."""
    seconds: float
    """How long a request that is drawn at once is in the server."""
    job_share: float = 0.1
    seeded_share: float = 0.2
    """Of the requests that are no jobs, those that name their seed: others are neither looked for in the cache nor kept."""
    hit_share: float = 0.5
    """Of those, the ones that the cache has."""
    limited_share: float = 1.0
    """Requests of callers with a rate limit."""
    job_seconds: float = 2.0
    """How long a job is in a replica's hands."""
    watched_share: float = 0.5
    """Of the jobs, whose events are followed from order to end."""
    watched_seconds: float = 5.0
    cache_seconds: float = 600.0
    result_seconds: float = 3600.0
    positions: int = 12
    """Dial positions that are asked for."""

    @property
    def jobs(self) -> float:
        """Jobs a second."""
        return self.rate * self.job_share

    @property
    def asked(self) -> float:
        """Requests a second that are no jobs."""
        return self.rate - self.jobs

    @property
    def hands(self) -> float:
        """Jobs in a replica's hands on average: Little's law, and never more than a wave's worth, 16."""
        return min(16.0, self.jobs * self.job_seconds)


@dataclass(frozen=True, slots=True)
class Limits:
    """What there is of everything. Assumptions, to be replaced by one's own."""

    redis_cores: float = 1.0
    """Redis runs commands on one thread."""
    redis_bytes: float = 16 * GIB
    redis_clients: float = 10_000
    """Redis's default maxclients."""
    network_bytes: float = 10e9 / 8
    """Bytes a second in one direction."""
    balancer_cores: float = 4.0
    balancer_connections: float = 4000
    """maxconn in deploy/haproxy/haproxy.cfg."""
    checks_per_second: float = 1.0
    """Health checks of each replica by one balancer."""
    prometheus_cores: float = 4.0
    prometheus_bytes: float = 16 * GIB
    scrape_seconds: float = 15.0


@dataclass(frozen=True, slots=True)
class Component:
    """Something that all replicas share, and what they take of it."""

    name: str
    limit: float
    unit: str
    linear: float
    """Units that each replica takes."""
    quadratic: float = 0.0
    """Units that each pair of replicas takes."""

    def load(self, replicas: float) -> float:
        """Return the units that so many replicas take."""
        return self.linear * replicas + self.quadratic * replicas**2

    def share(self, replicas: float) -> float:
        """Return the share of the limit that so many replicas take; above 1 it does not suffice."""
        return self.load(replicas) / self.limit

    @property
    def saturates_at(self) -> float:
        """Return the number of replicas at which the limit is reached; infinite where it never is."""
        if self.quadratic <= 0:
            return self.limit / self.linear if self.linear > 0 else math.inf
        root = math.sqrt(self.linear**2 + 4 * self.quadratic * self.limit)
        return 2 * self.limit / (self.linear + root)


def pending_slope(pending: Sequence[Pending]) -> float:
    """Return the processor seconds a second that each job in anybody's hands adds to a replica with nothing to do.

    That is what it takes more than beside no jobs: least squares through the value at 0 jobs, and never below 0.
    """
    alone = next((found.cpu_seconds for found in pending if found.jobs == 0), 0.0)
    squares = sum(found.jobs**2 for found in pending)
    more = sum(found.jobs * (found.cpu_seconds - alone) for found in pending)
    return max(0.0, more / squares) if squares else 0.0


def components(costs: Costs, traffic: Traffic, limits: Limits) -> list[Component]:
    """Return everything that replicas share, with what they take of it."""
    return [*_redis(costs, traffic, limits), *_balancer(costs, traffic, limits), *_prometheus(costs, traffic, limits)]


def _redis(costs: Costs, traffic: Traffic, limits: Limits) -> list[Component]:
    kept = (
        traffic.asked
        * traffic.seeded_share
        * (1 - traffic.hit_share)
        * traffic.cache_seconds
        * costs.memory.cached_image
    )
    done = traffic.jobs * traffic.result_seconds * costs.memory.done_job
    flow = max(per_replica(costs, traffic, "bytes_in"), per_replica(costs, traffic, "bytes_out"))
    return [
        Component(
            "Redis: main thread",
            limits.redis_cores,
            "cores",
            per_replica(costs, traffic, "cpu_seconds"),
            pending_slope(costs.pending) * traffic.hands,
        ),
        Component("Redis: memory", limits.redis_bytes, "bytes", kept + done),
        Component("Redis: connections, quiet", limits.redis_clients, "connections", costs.connections.idle),
        Component("Redis: connections, after bursts", limits.redis_clients, "connections", costs.connections.after_burst),
        Component("Redis: network", limits.network_bytes, "bytes/s", flow),
    ]  # fmt: skip


def per_replica(costs: Costs, traffic: Traffic, what: str) -> float:
    """Return what one replica and its requests take of Redis a second: commands, calls, bytes_in, bytes_out or cpu_seconds."""

    def of(cost: Redis) -> float:
        found = getattr(cost, what)
        return float(getattr(found, "mean", found))

    seeded = traffic.hit_share * of(costs.hit) + (1 - traffic.hit_share) * of(costs.miss)
    charge = traffic.limited_share * (of(costs.limited_hit) - of(costs.hit))
    watching = traffic.watched_share * traffic.watched_seconds * of(costs.watch)
    return (
        of(costs.idle_replica)
        + traffic.asked * traffic.seeded_share * seeded
        + traffic.rate * charge
        + traffic.jobs * (of(costs.job) + of(costs.fetch) + watching)
    )


def _balancer(costs: Costs, traffic: Traffic, limits: Limits) -> list[Component]:
    requests = traffic.rate + traffic.jobs  # a job is ordered and fetched
    waiting = traffic.asked * traffic.seconds + traffic.jobs * traffic.watched_share * traffic.watched_seconds
    taken = (
        requests * costs.balancer.request_cpu_seconds.mean
        + limits.checks_per_second * costs.balancer.check_cpu_seconds.mean
    )
    return [
        Component("balancer: processor", limits.balancer_cores, "cores", taken),
        Component("balancer: requests in flight", limits.balancer_connections, "connections", waiting),
    ]


def _prometheus(costs: Costs, traffic: Traffic, limits: Limits) -> list[Component]:
    series = series_per_replica(costs, traffic.positions)
    samples = series / limits.scrape_seconds
    return [
        Component(
            "Prometheus: memory", limits.prometheus_bytes, "bytes", series * costs.prometheus.memory_bytes_per_series
        ),
        Component(
            "Prometheus: processor", limits.prometheus_cores, "cores", samples * costs.prometheus.cpu_seconds_per_sample
        ),
    ]


def series_per_replica(costs: Costs, positions: int) -> float:
    """Return the time series that one replica makes, the balancer's about it among them."""
    own = costs.replica.series_at_start + positions * costs.replica.series_per_position
    return own + costs.balancer.series_per_replica
