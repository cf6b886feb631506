"""Who is next: nobody starves, and what is predicted holds. Pure rules under a clock of their own."""

import asyncio
from collections import Counter
from dataclasses import dataclass
from itertools import count, cycle
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.plans import Hop, Plan, student_plan, teacher_plan
from server.lanes import PATIENCE, Lanes
from server.load import Load
from server.pace import DECODER, Pace
from server.samples import Sample
from server.tickets import Drawn, Need, Ticket, rest

WAVE = 0.05
"""Seconds of a wave where the tests do not say otherwise."""
NOBODY = cast(asyncio.Future[Drawn], None)
"""Nobody waits for an image here."""
orders = count()


def ticket(plan: Plan, now: float, *, due: float | None = None, promised: bool = False, slack: float = 0.0) -> Ticket:
    """A ticket that arrives now, and has to start after some slack if it is promised."""
    due = now + PATIENCE if due is None else due
    new = Ticket(Sample(plan, (), seed=1), NOBODY, next(orders), now, due, due if promised else None)
    if promised:
        new.start_by = now + max(0.0, slack)
    return new


@dataclass(frozen=True)
class Rival:
    """Somebody who arrives before a wave and wants to go first."""

    member: str
    steps: int
    promised: bool
    slack: float
    due_in: float


rivals = st.builds(
    Rival,
    member=st.sampled_from(["busy", "busier"]),
    steps=st.integers(1, 4),
    promised=st.booleans(),
    slack=st.sampled_from([-1.0, 0.0, 0.2, 5.0]),
    due_in=st.sampled_from([0.0, 0.1, 1.0]),
)
crowds = st.lists(st.lists(rivals, max_size=4), min_size=1, max_size=20)
"""Who arrives before each wave, over and over."""


def serve(lanes: Lanes, watched: Ticket, crowd: list[list[Rival]]) -> list[tuple[float, int]]:
    """Serve waves while rivals keep coming, until the watched ticket is taken: when, and how many waited, of each wave."""
    now, log = watched.arrived, []
    for arriving in cycle(crowd):
        for rival in arriving:
            plan = student_plan(rival.member, rival.steps)
            lanes.put(ticket(plan, now, due=now + rival.due_in, promised=rival.promised, slack=rival.slack), now)
        lane = lanes.next()
        assert lane is not None
        log.append((now, waiting_in(lanes)))
        taken = lanes.take(lane, now)
        if watched in taken:
            return log
        assert len(log) < 5000, "it starves"
        now += WAVE
        for one in taken:
            one.number += 1
            if one.pending:
                one.start_by = max(one.start_by, now)
                lanes.put(one, now)
    raise AssertionError


def waves_after(log: list[tuple[float, int]], moment: float) -> tuple[int, int]:
    """Waves that began later than the moment, and how many waited when the first of them was cut."""
    later = [waiting for now, waiting in log if now > moment]
    return len(later), later[0] if later else 0


@settings(max_examples=150, deadline=None)
@given(crowds)
def test_a_lane_without_promises_is_served_after_its_patience_and_those_who_waited_then(
    crowd: list[list[Rival]],
) -> None:
    lanes, watched = Lanes(max_wave=2), ticket(student_plan("quiet", 1), 0.0)
    lanes.put(watched, 0.0)
    waves, waiting = waves_after(serve(lanes, watched, crowd), PATIENCE)
    assert waves <= waiting


@settings(max_examples=150, deadline=None)
@given(crowds)
def test_in_a_lane_nobody_is_passed_by_those_who_arrive_after_its_due_time(crowd: list[list[Rival]]) -> None:
    lanes, watched = Lanes(max_wave=2), ticket(student_plan("busy", 1), 0.0, due=1.0)
    lanes.put(watched, 0.0)
    log = serve(lanes, watched, crowd)
    waves, waiting = waves_after(log, 1.0)
    # those ahead have 4 evaluations at most, and every other lane's turn comes between only once its patience is over
    assert waves <= 4 * waiting * (2 + PATIENCE / WAVE)


def test_between_lanes_without_promises_the_one_that_waited_longest_is_next() -> None:
    lanes, served, now = Lanes(max_wave=2), [], 0.0
    for number, member in enumerate(("one", "two", "three")):
        for _ in range(6):
            lanes.put(ticket(student_plan(member, 1), number * 0.001), number * 0.001)
    while lane := lanes.next():
        now += WAVE
        served.append(lane.need.member)
        assert len(lanes.take(lane, now)) == 2
    assert served == ["one", "two", "three"] * 3


def test_in_a_lane_the_earliest_due_go_first_and_short_work_passes_long_work() -> None:
    lanes = Lanes(max_wave=2)
    late, soon, middle = (ticket(student_plan("whole", 1), 0.0, due=due) for due in (3.0, 1.0, 2.0))
    for one in (late, soon, middle):
        lanes.put(one, 0.0)
    lane = lanes.next()
    assert lane and lanes.take(lane, 0.1) == [soon, middle]
    assert lanes.take(lane, 0.2) == [late] and lanes.next() is None


def waiting_in(lanes: Lanes) -> int:
    """How many samples wait."""
    return sum(len(lane.tickets) for lane in lanes._lanes.values())


def test_who_leaves_waits_no_more() -> None:
    lanes, one = Lanes(max_wave=2), ticket(student_plan("one", 1), 0.0)
    lanes.drop(one)
    lanes.put(one, 0.0)
    lanes.drop(one)
    assert lanes.next() is None and waiting_in(lanes) == 0


def composed(*members: str) -> Plan:
    """A plan that visits these members."""
    times = [1.0 - number / len(members) for number in range(len(members))] + [0.0]
    return Plan(hops=tuple(Hop(member=m, t=t, s=s) for m, t, s in zip(members, times, times[1:], strict=False)))


plans = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=6).map(lambda members: composed(*members))


def finish(lanes: Lanes, pace: Pace, flying: list[Ticket], awaited: list[Ticket], now: float) -> float:
    """Serve everybody, nobody comes; return when the last of the awaited is drawn. `flying` are in a wave that began."""
    while True:
        now += pace.wave_seconds(flying[0].need.member, False, len(flying))
        now += pace.decode_seconds(sum(one.pending == 1 for one in flying))
        for one in flying:
            one.number += 1
            if one.pending:
                lanes.put(one, now)
        if not any(one.pending for one in awaited):
            return now
        lane = lanes.next()
        assert lane is not None
        flying = lanes.take(lane, now)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(plans, max_size=12),
    st.lists(plans, min_size=1, max_size=4),
    st.booleans(),
    st.integers(1, 4),
    st.sampled_from([None, 0.02]),
)
def test_if_nobody_else_comes_it_takes_no_longer_than_predicted(
    crowd: list[Plan], wanted: list[Plan], is_busy: bool, max_wave: int, decoding: float | None
) -> None:
    pace, lanes = Pace(max_wave), Lanes(max_wave)
    if decoding:
        pace.observe(DECODER, False, 1, decoding)
    for member, seconds in (("a", 0.01), ("b", 0.03), ("c", 0.002)):
        pace.observe(member, False, 1, seconds)
        pace.observe(member, False, max_wave, seconds * (1 + max_wave) / 2)
    present = [ticket(plan, 0.0) for plan in crowd]
    for one in present:
        lanes.put(one, 0.0)
    lane = lanes.next() if is_busy else None
    flying = lanes.take(lane, 0.0) if lane else []
    mine = [Ticket(Sample(plan, (), seed=1), NOBODY, next(orders), 0.0, 1e9) for plan in wanted]  # at the very end
    predicted = Load(present, pace).seconds_until_drawn([rest(one.sample) for one in mine])
    for one in mine:
        lanes.put(one, 0.0)
    if not flying:
        lane = lanes.next()
        assert lane
        flying = lanes.take(lane, 0.0)
    assert finish(lanes, pace, flying, mine, 0.0) <= predicted * (1 + 1e-9)


def test_alone_on_the_device_the_prediction_is_exact() -> None:
    pace = Pace(4)
    pace.observe("a", False, 1, 0.01)
    pace.observe("a", False, 4, 0.02)
    assert Load([], pace).seconds_until_drawn([rest(Sample(composed("a", "a"), (), 1))]) == pytest.approx(0.02)
    pace.observe("a", True, 1, 0.03)
    half = Sample(teacher_plan("a", 2, guided=(0.25, 0.75)), (), 1, guidance=1.0)
    assert Load([], pace).seconds_until_drawn([rest(half)]) == pytest.approx(0.01 + 0.03)
    assert rest(half, 1) == Counter({Need("", "a", True): 1})  # guidance acts in its second hop alone
    five: list[Any] = [rest(Sample(composed("a"), (), seed)) for seed in range(5)]
    assert Load([], pace).seconds_until_drawn(five) == pytest.approx(0.04)
    crowd = Load([ticket(composed("a"), 0.0) for _ in range(8)], pace)
    assert crowd.backlog_seconds == pytest.approx(0.04)
    pace.observe(DECODER, False, 1, 0.1)
    assert Load([], pace).seconds_until_drawn(five) == pytest.approx(0.54)
    assert crowd.backlog_seconds == pytest.approx(0.84)
    assert Load([], pace).rest_seconds(five[0]) == pytest.approx(1.2 * 0.11)
