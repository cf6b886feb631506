"""The fleet on paper: loads, limits, and where they meet."""

import dataclasses
import math
import os
import threading
import time

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from benchmarks.scale.commands import COSTS
from benchmarks.scale.costs import Pending, read_costs
from benchmarks.scale.fleet import Component, Limits, Traffic, components, pending_slope, per_replica
from benchmarks.scale.processes import cpu_seconds

positive = st.floats(min_value=1e-6, max_value=1e6)


@given(positive, positive, st.one_of(st.just(0.0), positive))
def test_a_limit_is_reached_where_the_model_says(limit: float, linear: float, quadratic: float):
    part = Component("", limit, "", linear, quadratic)
    assert part.share(part.saturates_at) == pytest.approx(1, rel=1e-6)
    assert part.share(part.saturates_at * 0.9) < 1 < part.share(part.saturates_at * 1.1)


def test_what_takes_nothing_is_never_reached():
    assert math.isinf(Component("", 1.0, "", 0.0).saturates_at)


@given(st.floats(0, 1e-3), st.floats(0, 1e-3), st.lists(st.integers(1, 5000), min_size=1, max_size=6))
def test_the_slope_beside_jobs_is_found_again_in_what_it_makes(slope: float, alone: float, jobs: list[int]):
    pending = [Pending(jobs=n, cpu_seconds=alone + slope * n, calls=0) for n in (0, *jobs)]
    assert pending_slope(pending) == pytest.approx(slope, abs=1e-12)


def test_a_slope_is_never_negative_however_noisy_the_measurement():
    assert pending_slope([Pending(jobs=16, cpu_seconds=-1e-6, calls=0)]) == 0
    falls = [Pending(jobs=0, cpu_seconds=2e-4, calls=0), Pending(jobs=16, cpu_seconds=1e-4, calls=0)]
    assert pending_slope(falls) == 0


def test_the_processor_time_of_a_process_counts_threads_that_have_ended():
    def work() -> None:
        until = time.thread_time() + 0.05
        while time.thread_time() < until:
            pass

    before = cpu_seconds(os.getpid())
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert cpu_seconds(os.getpid()) - before >= 0.05
    assert cpu_seconds(os.getpid()) == pytest.approx(time.process_time(), abs=0.05)


def test_jobs_in_hand_follow_littles_law_up_to_a_waves_worth():
    assert Traffic(rate=10, seconds=1, job_share=0.1, job_seconds=3).hands == 3
    assert Traffic(rate=1000, seconds=1, job_share=0.5, job_seconds=3).hands == 16


COMMITTED = read_costs(COSTS)


def part(name: str, traffic: Traffic, limits: Limits | None = None) -> Component:
    return next(p for p in components(COMMITTED, traffic, limits or Limits()) if p.name == name)


def test_of_the_measured_costs_a_quiet_fleet_takes_what_its_idle_replicas_take():
    quiet = Traffic(rate=0, seconds=1)
    thread = part("Redis: main thread", quiet)
    assert thread.load(100) == pytest.approx(100 * COMMITTED.idle_replica.cpu_seconds.mean)
    assert per_replica(COMMITTED, quiet, "commands") == COMMITTED.idle_replica.commands


@given(st.floats(1, 200), st.floats(0, 1), st.floats(0, 1))
def test_more_requests_never_take_less_of_anything(rate: float, jobs: float, hits: float):
    fewer = Traffic(rate=rate, seconds=0.2, job_share=jobs, hit_share=hits)
    more = dataclasses.replace(fewer, rate=2 * rate)
    for less, much in zip(components(COMMITTED, fewer, Limits()), components(COMMITTED, more, Limits()), strict=True):
        assert much.load(10) >= less.load(10)
        assert much.saturates_at <= less.saturates_at


@given(st.floats(1, 200), st.integers(2, 50))
def test_twice_the_limit_carries_twice_the_replicas_where_nothing_is_quadratic(rate: float, times: int):
    traffic = Traffic(rate=rate, seconds=0.2)
    one, many = (
        part("Redis: memory", traffic),
        part("Redis: memory", traffic, Limits(redis_bytes=times * Limits().redis_bytes)),
    )
    assume(one.linear > 0)
    assert many.saturates_at == pytest.approx(times * one.saturates_at)


def test_keeping_images_for_half_as_long_takes_half_the_memory_of_the_cache():
    long, short = (Traffic(rate=10, seconds=0.2, job_share=0, cache_seconds=s) for s in (3600, 1800))
    assert part("Redis: memory", short).linear == pytest.approx(part("Redis: memory", long).linear / 2)
