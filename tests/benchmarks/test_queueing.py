"""Queueing, simulated: where the answer is known, and where it must lie."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.scale.queueing import simulate
from benchmarks.scale.sizing import Speed, mixed

SPEEDS = {steps: Speed(steps, 0.01 * steps, 200 / steps, batch=16) for steps in (1, 4, 16)}
"""A wave of one takes 10 ms, of sixteen 80 ms."""
MIX = {1: 5.0, 4: 3.0, 16: 1.0}


def mean(found: list[tuple[int, float]], steps: int) -> float:
    times = [seconds for position, seconds in found if position == steps]
    return sum(times) / len(times)


def test_a_lone_request_takes_its_own_waves_and_nothing_else():
    found = simulate(1, "leastconn", rate=1e-3, speeds=SPEEDS, mix=MIX, requests=200)
    padded = {steps: steps * speed.wave_seconds(4) for steps, speed in SPEEDS.items()}
    assert all(seconds == pytest.approx(padded[steps]) for steps, seconds in found)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 8), st.floats(0.1, 2.0), st.integers(0, 99), st.sampled_from([4.0, 16.0, float("inf")]))
def test_everybody_is_answered_and_nobody_faster_than_a_wave_of_their_own(
    replicas: int, load: float, seed: int, room: float
):
    rate = load * replicas * mixed(SPEEDS, MIX)
    found = simulate(
        replicas, "leastconn", rate=rate, speeds=SPEEDS, mix=MIX, requests=300, room=room, seed=seed, ignored=0
    )
    assert len(found) == 300
    assert all(seconds >= steps * SPEEDS[steps].wave_seconds(4) * (1 - 1e-9) for steps, seconds in found)


def test_full_waves_do_what_the_frontier_says_and_no_more():
    requests, rate = 4000, 10 * mixed(SPEEDS, MIX)
    found = simulate(1, "leastconn", rate=rate, speeds=SPEEDS, mix=MIX, requests=requests, ignored=0)
    least = requests / mixed(SPEEDS, MIX)  # the arrivals are over after a tenth of it
    assert max(seconds for _, seconds in found) == pytest.approx(0.9 * least, rel=0.1)


def test_the_fewest_requests_are_a_better_choice_than_any():
    rate = 0.7 * 10 * mixed(SPEEDS, MIX)
    fewest, any_of_them = (
        simulate(10, policy, rate=rate, speeds=SPEEDS, mix=MIX, requests=6000) for policy in ("leastconn", "random")
    )
    assert mean(fewest, 16) < mean(any_of_them, 16)


def test_many_replicas_wait_less_than_one_at_the_same_load():
    one, many = (
        simulate(size, "leastconn", rate=0.7 * size * mixed(SPEEDS, MIX), speeds=SPEEDS, mix=MIX, requests=6000)
        for size in (1, 20)
    )
    assert mean(many, 16) < mean(one, 16)


def test_the_same_seed_gives_the_same_times():
    twice = [simulate(3, "random", rate=50, speeds=SPEEDS, mix=MIX, requests=500, seed=7) for _ in range(2)]
    assert twice[0] == twice[1]
