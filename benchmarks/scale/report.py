"""The report: tables of sizing and scale between their marks in Markdown files, so that no number is ever typed."""

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from benchmarks.scale.costs import Measured, Redis
from benchmarks.scale.facts import Facts
from benchmarks.scale.fleet import Limits, components, pending_slope, per_replica, series_per_replica
from benchmarks.scale.sizing import (
    MIX,
    UTILISATION,
    Server,
    evaluations_per_request,
    first_objective,
    in_flight,
    mixed,
    replicas_for,
    speeds_of,
    survivors,
)
from benchmarks.scale.trials import CROWDED, LOADS, REPLICAS, Trial
from benchmarks.tables import fill, table
from diffusion.frontier import Frontier

FLEETS = (10, 100, 1000)
"""Numbers of replicas in the tables."""
FASTER = 10
"""How many times faster replicas are in the second column of limits."""
MILLION = 1_000_000


def sizing_table(facts: Facts) -> str:
    """Return what each dial position asks of a replica."""
    return positions_table(facts.frontier, facts.server, UTILISATION)


def positions_table(frontier: Frontier, server: Server, utilisation: float) -> str:
    """Return what each dial position of a family asks of a replica that is planned to be used so much."""
    rows, speeds = [], speeds_of(frontier.positions)
    for steps, speed in sorted(speeds.items()):
        capacity = server.capacity(speed.images_per_second)
        planned = utilisation * capacity
        times = (speed.alone_seconds, steps * speed.wave_seconds(speed.batch))
        rates = (speed.images_per_second, capacity, planned, steps * planned)
        hours = MILLION / planned / 3600
        cells = [f"{1000 * time:,.0f} ms" for time in times]
        rows.append([str(steps), *cells, f"{first_objective(speed):g} s", *map(_few, rates), _few(hours)])
    head = [
        "steps", "one image alone", "one image in full waves", "first objective", "images/s (frontier)",
        "requests/s, with HTTP and encoding",
        f"planned requests/s ({utilisation:.0%})", "evaluations/s then", "replica-hours per million images then",
    ]  # fmt: skip
    shared = f" of {server.cores} cores, which waves use too" if server.cores else " of the event loop"
    note = (
        f"Speeds: the frontier of {frontier.family}, measured on {frontier.positions[0].timed.device}, in waves of "
        f"{max(speed.batch for speed in speeds.values())}; of positions measured in several ways the slowest. HTTP and encoding: "
        f"{1000 * server.overhead_seconds:.1f} ms of processor time a request{shared} (benchmarks/results/scale-costs.json)."
    )
    return table(head, rows) + f"\n{note}\n"


def load_lines(
    frontier: Frontier, server: Server, mix: Mapping[int, float], rate: float, *, utilisation: float, spare: int,
    price: float | None,
) -> list[str]:  # fmt: skip
    """Return how many replicas a load takes, and what that comes to. Raises ValueError for a position that was not measured."""
    speeds = speeds_of(frontier.positions)
    missing = sorted(set(mix) - set(speeds))
    if missing:
        raise ValueError(f"not measured: {missing[0]} steps; measured are {', '.join(map(str, sorted(speeds)))}")
    capacity = server.capacity(mixed(speeds, mix))
    replicas = replicas_for(rate, capacity, utilisation=utilisation, spare=spare)
    evaluations = evaluations_per_request(mix)
    hours = MILLION * replicas / rate / 3600
    lines = [
        f"a request takes {evaluations:.2f} evaluations; a replica answers {capacity:.1f} requests/s at most",
        f"{rate:g} requests/s ({rate * evaluations:,.0f} evaluations/s): {replicas} replicas, "
        f"each at {rate / capacity / replicas:.0%}",
        f"when {spare} of them is gone: {survivors(rate, capacity, replicas, spare):.0%}"
        if spare
        else "no replica to spare",
        f"replica-hours per million images, at this rate: {hours:.2f}",
    ]
    return lines + ([f"price of a million images: {hours * price:.2f}"] if price else [])


def costs_table(facts: Facts) -> str:
    """Return what was measured, one line for each thing."""
    costs = facts.costs
    things: Mapping[str, Redis] = {
        "a replica that has nothing to do, per second": costs.idle_replica,
        "three of them, per second": costs.three_idle_replicas,
        "a request answered from the cache": costs.hit,
        "the same by a key with a rate limit": costs.limited_hit,
        "a request that is drawn and kept": costs.miss,
        "a job of one image, from order to end": costs.job,
        "fetching it, with its image": costs.fetch,
        "following a job's events, per second": costs.watch,
    }
    rows = [
        [what, _few(c.commands), _few(c.calls), _micro(c.cpu_seconds), f"{c.bytes_in:,.0f}", f"{c.bytes_out:,.0f}"]
        for what, c in things.items()
    ]
    head = ["of Redis", "commands sent", "commands run", "main thread", "bytes in", "bytes out"]
    how = (
        f"Mean ± standard deviation over {costs.hit.cpu_seconds.rounds} rounds, in processor time, which does not count what the "
        f"machine was busy with otherwise. {costs.machine}; Redis {costs.versions['redis-server']} with its log "
        f"(`appendonly`), HAProxy {costs.versions['haproxy']}, Prometheus {costs.versions['prometheus']}; `{costs.command}`, "
        f"commit {costs.commit}, {costs.measured_at[:10]}."
    )
    return "\n".join([table(head, rows), table(["of the others", ""], _others(facts)), how, ""])


def _others(facts: Facts) -> list[list[str]]:
    costs, memory, replica = facts.costs, facts.costs.memory, facts.costs.replica
    drawing = ", ".join(f"{s}: {1000 * t:.1f}" for s, t in replica.drawing_cpu_seconds.items())
    positions = facts.traffic().positions
    small = (replica.hit_cpu_seconds, replica.check_cpu_seconds, replica.scrape_cpu_seconds)
    return [
        ["Redis: main thread, a second, of each replica with nothing to do and each job in others' hands",
         f"{1e6 * pending_slope(costs.pending):.3f} µs"],
        ["Redis: memory of a job of 512 steps that waits, a job that is done, an image in the cache",
         f"{memory.waiting_job:,.0f}, {memory.done_job:,.0f}, {memory.cached_image:,.0f} bytes"],
        ["Redis: connections of a quiet replica, and after a burst of "
         f"{costs.connections.burst} requests at once", f"{costs.connections.idle}, {costs.connections.after_burst}"],
        ["balancer: a request", _micro(costs.balancer.request_cpu_seconds)],
        ["balancer: a health check", _micro(costs.balancer.check_cpu_seconds)],
        ["replica: an image by steps, waves full, HTTP and encoding too", f"{drawing} ms"],
        ["replica: a request answered from the cache, a health check, a scrape",
         ", ".join(f"{1000 * s:.2f}" for s in small) + " ms"],
        [f"Prometheus: series of a replica with {positions} positions in use, the balancer's about it too",
         f"{series_per_replica(costs, positions):,.0f}; {replica.bytes_per_series:.0f} bytes of text each"],
        ["Prometheus: memory of a series, processor time of a sample",
         f"{costs.prometheus.memory_bytes_per_series / 1024:.1f} KiB, {1e6 * costs.prometheus.cpu_seconds_per_sample:.1f} µs"],
    ]  # fmt: skip


def short_list(facts: Facts) -> str:
    """Return what comes first when a fleet grows, in a few lines."""
    costs, traffic = facts.costs, facts.traffic()
    parts = sorted(components(costs, traffic, Limits()), key=lambda part: part.saturates_at)
    thread = next(part for part in parts if part.quadratic or part.name == "Redis: main thread")
    requests = costs.balancer.request_cpu_seconds.mean
    idle = costs.idle_replica.cpu_seconds.mean
    first = "; then ".join(
        f"{p.name.replace(': ', ', ')} ({_amount(p.limit, p.unit)}), at {_replicas(p.saturates_at)}" for p in parts[:3]
    )
    lines = [
        f"Reached first, in replicas of {traffic.rate:.0f} requests/s each: {first}.",
        f"Redis's one thread: {1000 * idle:.1f} ms a second of each replica that has nothing to do, "
        f"{1e6 * costs.limited_hit.cpu_seconds.mean:.0f} µs of a request that is charged and answered from the cache, "
        f"{1000 * costs.job.cpu_seconds.mean:.2f} ms of a job; {_share(thread.share(10))} of it is taken by 10 such replicas.",
        f"The balancer: one core for {1 / requests:,.0f} requests/s. Checks of one balancer take "
        f"{_share(1000 * costs.balancer.check_cpu_seconds.mean)} of a core for 1,000 replicas.",
        f"Prometheus: {series_per_replica(costs, traffic.positions):,.0f} series of each replica.",
    ]
    return "\n".join(f"- {line}" for line in lines) + "\n"


def fleet_table(facts: Facts) -> str:
    """Return what fleets take of everything that is shared."""
    traffic, limits = facts.traffic(), Limits()
    rows = [["requests/s", "", *(f"{traffic.rate * size:,.0f}" for size in FLEETS)]]
    commands = per_replica(facts.costs, traffic, "commands")
    rows.append(["Redis: commands/s", "", *(f"{commands * size:,.0f}" for size in FLEETS)])
    for part in components(facts.costs, traffic, limits):
        cells = [f"{_amount(part.load(size), part.unit)} ({_share(part.share(size))})" for size in FLEETS]
        rows.append([part.name, _amount(part.limit, part.unit), *cells])
    hours = MILLION / traffic.rate / 3600
    rows.append(["replica-hours per million images", "", *[_few(hours)] * len(FLEETS)])
    head = ["", "limit", *(f"{size:,} replicas" for size in FLEETS)]
    return table(head, rows) + "\n" + _traffic(facts) + "\n"


def limits_table(facts: Facts) -> str:
    """Return at how many replicas each limit is reached, the nearest first."""
    limits = Limits()
    slow, fast = (components(facts.costs, facts.traffic(faster), limits) for faster in (1, FASTER))
    pairs = sorted(zip(slow, fast, strict=True), key=lambda pair: pair[0].saturates_at)
    rows = [[a.name, _amount(a.limit, a.unit), _replicas(a.saturates_at), _replicas(b.saturates_at)] for a, b in pairs]
    return table(["reached first", "limit", "replicas as measured", f"replicas {FASTER} times as fast"], rows)


def queueing_table(facts: Facts) -> str:
    """Return how long requests take, simulated."""
    found = facts.trials
    head = ["load", *(f"{steps} steps, {size} replica{'s' * (size > 1)}" for size in REPLICAS for steps in MIX)]
    rows = []
    for load in LOADS:
        chosen = [t for size in REPLICAS for t in found.trials if _is(t, size, load)]
        rows.append([f"{load:.0%}", *(_times(t, steps) for t in chosen for steps in MIX)])
    first = table(head, rows)
    rows = []
    for name, policy, room in POLICIES:
        chosen = [t for size in REPLICAS for t in found.trials if _is(t, size, CROWDED, policy, room)]
        rows.append([name, *(_times(t, steps) for t in chosen for steps in MIX)])
    second = table([f"at {CROWDED:.0%}", *head[1:]], rows)
    note = (
        "Median / 99th percentile in milliseconds, without HTTP and encoding. Load is a share of what the replicas could do "
        f"with full waves: {found.capacity:.1f} requests/s each. Waves as timed on {found.device}; `{found.command}`."
    )
    return f"{first}\n{second}\n{note}\n"


POLICIES = (
    ("fewest requests (leastconn)", "leastconn", None),
    ("any (random)", "random", None),
    ("leastconn, at most 64 inside a replica", "leastconn", 64),
    ("leastconn, at most 16 inside a replica", "leastconn", 16),
)


def _is(trial: Trial, size: int, load: float, policy: str = "leastconn", room: int | None = None) -> bool:
    return (trial.replicas, trial.load, trial.policy, trial.room) == (size, load, policy, room)


def _times(trial: Trial, steps: int) -> str:
    times = trial.by_steps[steps]
    return f"{times.p50:,.0f} / {times.p99:,.0f}"


def _traffic(facts: Facts) -> str:
    """Say what each replica is asked for."""
    t = facts.traffic()
    mix = ", ".join(f"{steps} steps: {weight / sum(MIX.values()):.0%}" for steps, weight in MIX.items())
    return (
        f"Each replica: {t.rate:.1f} requests/s ({mix}; {evaluations_per_request(MIX):.1f} evaluations each; "
        f"{UTILISATION:.0%} of {facts.server.capacity(mixed(facts.speeds, MIX)):.1f}), {in_flight(t.rate, t.seconds):.1f} of "
        f"them inside ({1000 * t.seconds:.0f} ms, simulated). {t.job_share:.0%} are jobs, half of them followed for "
        f"{t.watched_seconds:g} s; {t.seeded_share:.0%} of the others name their seed, {t.hit_share:.0%} of which the "
        f"cache has; all are charged to a rate limit; images are kept for {t.cache_seconds / 60:g} minutes, results for "
        f"{t.result_seconds / 3600:g} h; scrapes every {Limits().scrape_seconds:g} s."
    )


TABLES = {
    "short": short_list,
    "sizing": sizing_table,
    "costs": costs_table,
    "fleet": fleet_table,
    "limits": limits_table,
    "queueing": queueing_table,
}
"""What may stand between `<!-- KIND -->` and `<!-- end -->`, by kind."""


def write_tables(facts: Facts, file: Path) -> None:
    """Replace what stands between the file's marks by its tables. Raises ValueError where there are no marks, OSError."""
    fill(file, {kind: partial(made, facts) for kind, made in TABLES.items()})


def _few(number: float) -> str:
    """Two or three digits that matter."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _micro(seconds: Measured) -> str:
    return f"{1e6 * seconds.mean:,.0f} ± {1e6 * seconds.spread:,.0f} µs"


def _share(share: float) -> str:
    return f"{share:.0%}" if share >= 0.1 else f"{share:.1%}"


def _replicas(number: float) -> str:
    return "never" if math.isinf(number) else f"{math.floor(number):,}"


def _amount(number: float, unit: str) -> str:
    """A number in its unit: bytes in MiB, GiB; bytes a second in MB/s."""
    if unit == "bytes":
        return f"{number / 2**30:,.1f} GiB" if number >= 2**30 else f"{number / 2**20:,.0f} MiB"
    if unit == "bytes/s":
        return f"{number / 1e6:,.1f} MB/s"
    return f"{_few(number)} {unit}"
