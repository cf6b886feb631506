"""Tables of contests, as Markdown between marks."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean, stdev

from benchmarks.peers.result import Bout, Contest
from benchmarks.tables import fill, table

Contests = Mapping[str, Contest]
"""By the name of the family's variant: students (one for each position), whole (the student for the whole dial alone)."""
MIXED = "32 clients, 1 to 16 steps"


def throughput_table(contest: Contest) -> str:
    """Return images a second of every server under every load, and how many evaluations that was of what the machine does."""
    rows = []
    for server in servers(contest):
        cells = [server]
        for load in loads(contest):
            found = bouts(contest, server, load)
            cells.append(_with_spread([bout.images_per_second for bout in found]))
        rows.append(cells)
    return table(["images/s", *loads(contest)], rows) + _note(contest)


def latency_table(contest: Contest) -> str:
    """Return latencies by dial position under the mixed load, and the goodput."""
    positions = list(contest.networks)
    rows = []
    for server in servers(contest):
        found = bouts(contest, server, MIXED)
        times = [[bout.latency_ms[steps] for bout in found if steps in bout.latency_ms] for steps in positions]
        cells = [
            " / ".join(f"{mean(getattr(one, name) for one in several):,.0f}" for name in ("p50", "p95", "p99"))
            if several
            else "none"
            for several in times
        ]
        rates = [bout.images_per_second for bout in found]
        share = sum(bout.goodput_per_second for bout in found) / (sum(rates) or 1.0)
        evaluations = mean(bout.evaluations_per_second for bout in found)
        rows.append([server, *cells, f"{evaluations:,.0f}", f"{min(share, 1.0):.0%}"])
    head = [MIXED, *(f"{steps} step{'s' * (steps != '1')}" for steps in positions), "evaluations/s", "in time"]
    return table(head, rows) + (
        "\np50 / p95 / p99 in milliseconds, means over rounds. In time: answers within "
        f"{contest.slo:g} times what one image of so many steps takes alone with no server.\n"
    )


def idle_table(contest: Contest) -> str:
    """Return what one client waits at one step, what start-up takes, and the memory."""
    bare = mean(found.bare.alone_ms["1"] for found in contest.rounds)
    rows = [["no server: network and encoding", f"{bare:.1f}", "", "", "", ""]]
    for server in servers(contest):
        found = [bout.latency_ms["1"] for bout in bouts(contest, server, "1 client, 1 step") if bout.latency_ms]
        turns = [turn for one in contest.rounds for turn in one.turnouts if turn.server == server]
        p50 = [one.p50 for one in found]
        rows.append(
            [
                server,
                _with_spread(p50),
                f"{mean(p50) - bare:.1f}" if p50 else "",
                f"{mean(one.p95 for one in found):.1f}" if found else "",
                _with_spread([turn.start_seconds for turn in turns]),
                f"{mean(turn.idle_mib for turn in turns):,.0f} / {mean(turn.busy_mib for turn in turns):,.0f}",
            ]
        )
    head = ["1 client, 1 step", "p50, ms", "added, ms", "p95, ms", "start, s", "memory idle / busy, MiB"]
    return table(head, rows)


def goals_table(contest: Contest) -> str:
    """Return how many times as good as LitServe stepdial was at what it set out for, in either mode."""

    def rate(server: str, load: str) -> float:
        return mean(bout.images_per_second for bout in bouts(contest, server, load))

    def first(server: str, load: str) -> float:
        return mean(bout.latency_ms["1"].p50 for bout in bouts(contest, server, load))

    ours = [server for server in servers(contest) if server.startswith("stepdial")]
    theirs = [server for server in servers(contest) if server.startswith("LitServe")]
    alone = mean(found.bare.alone_ms["1"] for found in contest.rounds)
    rows = []
    for name, goal, load in (
        ("images/s at 4 steps", "≥ 1.3", "32 clients, 4 steps"),
        ("images/s, mixed", "≥ 2", MIXED),
    ):
        for other in theirs:
            rows.append(
                [f"{name}, times {other}", goal, *(f"{rate(one, load) / rate(other, load):.2f}" for one in ours)]
            )
    for other in theirs:
        ratios = [f"1/{first(other, MIXED) / first(one, MIXED):.1f}" for one in ours]
        rows.append([f"median of 1 step in the mix, of that of {other}", "≤ 1/8", *ratios])
    added = [f"{first(one, '1 client, 1 step') - alone:.1f} ms" for one in ours]
    rows.append(["added to network and encoding, one client", "≤ 3 ms", *added])
    return table(["", "goal", *ours], rows)


TABLES: dict[str, Callable[[Contest], str]] = {
    "throughput": throughput_table,
    "latency": latency_table,
    "idle": idle_table,
    "goals": goals_table,
}
"""What may stand between `<!-- peers KIND VARIANT -->` and `<!-- end -->`, by kind."""


def write_tables(contests: Contests, file: Path) -> None:
    """Replace what stands between the file's marks by its tables. Raises ValueError where there are no marks, OSError."""
    named = product(TABLES.items(), contests.items())
    fill(file, {f"peers {kind} {variant}": partial(made, contest) for (kind, made), (variant, contest) in named})


def servers(contest: Contest) -> list[str]:
    """Return the servers' names in the order of the first round."""
    return [turn.server for turn in contest.rounds[0].turnouts]


def loads(contest: Contest) -> list[str]:
    """Return the loads' names in their order."""
    return list(dict.fromkeys(bout.load for bout in contest.rounds[0].bouts))


def bouts(contest: Contest, server: str, load: str) -> list[Bout]:
    """Return what a server did under a load, one bout a round."""
    return [bout for found in contest.rounds for bout in found.bouts if (bout.server, bout.load) == (server, load)]


def _note(contest: Contest) -> str:
    rates = [found.bare.evaluations_per_second for found in contest.rounds]
    bare = ", ".join(f"{mean(rate[size] for rate in rates):,.0f} at {size}" for size in rates[0])
    networks = ", ".join(f"{steps}: {member}" for steps, member in contest.networks.items())
    versions = ", ".join(f"{name} {version}" for name, version in contest.versions.items())
    note = f" {contest.note}" if contest.note else ""
    command = contest.command.partition(" --note")[0]
    return (
        f"\n{_rounds(contest)}; {contest.device}, client included. Networks by steps: {networks}. With no server, "
        f"evaluations/s by batch: {bare}. "
        f"`{command}`, {contest.measured_at[:10]}, commit {contest.commit}; {versions}.{note}\n"
    )


def _rounds(contest: Contest) -> str:
    """How often everything was measured, and for how long."""
    if len(contest.rounds) == 1:
        return f"One round of {contest.seconds:g} s, so no spread is known"
    return f"Means of {len(contest.rounds)} rounds of {contest.seconds:g} s, ± their standard deviation"


def _with_spread(values: Sequence[float]) -> str:
    if not values:
        return "none"
    digits = 0 if mean(values) >= 100 else 1
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):,.{digits}f}{spread}"
