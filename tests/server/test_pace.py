"""The latency model: monotone, interpolated, quick to follow the machine, deaf to one outlier."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.pace import DECODER, RECENT, Pace

observations = st.lists(st.tuples(st.integers(1, 32), st.floats(1e-4, 10.0)), min_size=1, max_size=40)


def pace_of(points: dict[int, float], network: str = "student") -> Pace:
    """A pace that was shown each point once, as warm-up does."""
    pace = Pace(max_wave=16)
    for rows, seconds in points.items():
        pace.observe(network, False, rows, seconds)
    return pace


@given(observations)
def test_a_larger_wave_is_never_predicted_to_be_quicker(seen: list[tuple[int, float]]) -> None:
    pace = Pace(max_wave=16)
    for rows, seconds in seen:
        pace.observe("student", False, rows, seconds)
    predicted = [pace.wave_seconds("student", False, rows) for rows in range(1, 40)]
    assert all(0 < small <= large * (1 + 1e-9) for small, large in zip(predicted, predicted[1:], strict=False))


def test_between_two_measured_sizes_the_prediction_is_between_their_times() -> None:
    pace = pace_of({4: 0.1, 8: 0.3})
    assert pace.wave_seconds("student", False, 6) == pytest.approx(0.2)
    assert pace.wave_seconds("student", False, 1) == pytest.approx(0.1)
    assert pace.wave_seconds("student", False, 16) == pytest.approx(0.6)


@given(st.floats(0.0, 1000.0), st.sampled_from([1, 3, 8, 16]))
def test_one_outlier_hardly_moves_it(outlier: float, rows: int) -> None:
    pace = pace_of({1: 0.01, 8: 0.05, 16: 0.1})
    before = [pace.wave_seconds("student", False, size) for size in (1, 8, 16)]
    pace.observe("student", False, rows, outlier)
    after = [pace.wave_seconds("student", False, size) for size in (1, 8, 16)]
    assert after == pytest.approx(before, rel=0.2)


def test_a_machine_that_has_become_slower_is_believed_after_a_few_waves_at_every_size() -> None:
    pace = pace_of({1: 0.01, 8: 0.05, 16: 0.1})
    for _ in range(RECENT):
        pace.observe("student", False, 8, 0.15)
    for size, seconds in ((1, 0.03), (8, 0.15), (16, 0.3)):
        assert pace.wave_seconds("student", False, size) == pytest.approx(seconds, rel=0.35)


def test_the_shape_of_the_curve_is_learned_from_traffic() -> None:
    pace = pace_of({1: 0.01, 8: 0.05})
    for _ in range(100):
        pace.observe("student", False, 1, 0.04)
        pace.observe("student", False, 8, 0.05)
    assert pace.wave_seconds("student", False, 1) == pytest.approx(0.04, rel=0.2)
    assert pace.wave_seconds("student", False, 8) == pytest.approx(0.05, rel=0.2)


def test_guided_and_unguided_networks_and_families_are_timed_apart() -> None:
    pace = Pace(max_wave=16)
    pace.observe("teacher", False, 1, 0.1)
    pace.observe("teacher", True, 1, 0.2)
    pace.observe("teacher", True, 1, 0.4, family="other")
    assert pace.wave_seconds("teacher", False, 1) == pytest.approx(0.1)
    assert pace.wave_seconds("teacher", True, 1) == pytest.approx(0.2)
    assert pace.wave_seconds("teacher", True, 1, "other") == pytest.approx(0.4)
    assert pace.wave_seconds("unheard-of", True, 1) == 0.0


def test_a_family_that_was_unloaded_is_forgotten_and_no_other() -> None:
    pace = Pace(max_wave=16)
    for family in ("one", "other"):
        pace.observe("teacher", False, 1, 0.1, family=family)
    pace.forget("one")
    assert pace.wave_seconds("teacher", False, 1, "one") == 0.0
    assert pace.wave_seconds("teacher", False, 1, "other") == pytest.approx(0.1)


def test_decoding_is_timed_apart_and_learned_from_the_waves_that_end_in_images() -> None:
    pace = pace_of({1: 0.01, 16: 0.08})
    assert pace.decode_seconds(3) == 0.0
    pace.observe(DECODER, False, 1, 0.02)
    assert pace.decode_seconds(3) == pytest.approx(0.06)
    pace.observe("student", False, 1, 0.03, images=1)  # as expected: nothing to learn
    assert pace.decode_seconds(1) == pytest.approx(0.02)
    for _ in range(100):
        pace.observe("student", False, 1, 0.01)  # no images: says nothing about decoding
        pace.observe("student", False, 1, 0.06, images=1)
    assert pace.wave_seconds("student", False, 1) + pace.decode_seconds(1) == pytest.approx(0.06, rel=0.2)
    assert pace.decode_seconds(1, "other") == 0.0
    pace.forget("")
    assert pace.decode_seconds(1) == 0.0
