"""Sizing: arithmetic that an operator would do by hand, and what must hold whatever was measured."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.scale.sizing import (
    BUCKETS,
    Server,
    Speed,
    evaluations_per_request,
    first_objective,
    in_flight,
    mixed,
    replicas_for,
    survivors,
)
from server.metrics import LATENCY_BUCKETS

rates = st.floats(min_value=0.01, max_value=1e5)
shares = st.floats(min_value=0.05, max_value=0.95)


def speed(steps: int, images_per_second: float, alone_seconds: float = 0.01) -> Speed:
    return Speed(steps, alone_seconds, images_per_second, batch=16)


def test_a_mix_takes_as_long_as_its_images_one_after_the_other():
    speeds = {1: speed(1, 100), 4: speed(4, 25)}
    assert mixed(speeds, {1: 1, 4: 1}) == pytest.approx(40)  # 10 ms and 40 ms: 50 ms for two
    assert evaluations_per_request({1: 1, 4: 1}) == 2.5


@given(st.dictionaries(st.integers(1, 512), st.tuples(rates, st.floats(0.1, 100)), min_size=1, max_size=6))
def test_a_mix_is_never_slower_than_its_slowest_position_nor_faster_than_its_fastest(found: dict):
    speeds = {steps: speed(steps, rate) for steps, (rate, _) in found.items()}
    together = mixed(speeds, {steps: weight for steps, (_, weight) in found.items()})
    every = [s.images_per_second for s in speeds.values()]
    assert min(every) * (1 - 1e-9) <= together <= max(every) * (1 + 1e-9)


def test_a_wave_takes_what_was_measured_of_one_and_of_many():
    found = Speed(4, alone_seconds=0.04, images_per_second=50, batch=16)
    assert found.wave_seconds(1) == pytest.approx(0.01)
    assert found.wave_seconds(16) == pytest.approx(0.08)  # 16 images of 4 evaluations in 0.32 s
    assert found.wave_seconds(1) < found.wave_seconds(8) < found.wave_seconds(16)


@given(rates, st.floats(1e-5, 1), st.integers(1, 64))
def test_http_and_encoding_take_of_the_same_cores_as_waves_but_beside_a_gpu_only_of_their_own(
    images: float, overhead: float, cores: int
):
    on_cpu, beside_gpu = Server(overhead, cores).capacity(images), Server(overhead, None).capacity(images)
    assert on_cpu < images and beside_gpu == min(images, 1 / overhead)
    assert on_cpu * (1 / images + overhead / cores) == pytest.approx(1)


@given(rates, rates, shares, st.integers(0, 5))
def test_so_many_replicas_stay_below_the_plan_and_survive_the_loss_of_the_spare_ones(
    rate: float, capacity: float, utilisation: float, spare: int
):
    replicas = replicas_for(rate, capacity, utilisation=utilisation, spare=spare)
    assert rate / (capacity * replicas) <= utilisation * (1 + 1e-9)
    assert survivors(rate, capacity, replicas, spare) <= 1 + 1e-9
    fewer = replicas - 1
    certainly = rate * (1 + 1e-9)  # a bound that is met but for rounding may be rounded up
    enough = (
        fewer >= 1 + spare and certainly <= capacity * fewer * utilisation and certainly <= capacity * (fewer - spare)
    )
    assert not enough


def test_a_first_objective_is_a_bound_of_the_servers_buckets_and_not_below_what_is_wanted():
    assert BUCKETS == LATENCY_BUCKETS
    assert (
        first_objective(speed(1, 160)) == 0.438
    )  # 16 images in 0.1 s, three times that is 0.3 s, above the bound of 0.292
    assert math.isinf(first_objective(speed(512, 0.001)))


def test_nobody_is_left_when_all_replicas_are_lost():
    assert math.isinf(survivors(10, 10, 2, lost=2))


def test_littles_law_counts_who_is_inside():
    assert in_flight(30, 0.5) == 15
