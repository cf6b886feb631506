"""When requests arrive: as often as asked, in the pattern asked for, and the same way again."""

from itertools import islice, takewhile
from random import Random
from typing import get_args

import pytest

from benchmarks.load.arrivals import Process, arrivals


@pytest.mark.parametrize("process", get_args(Process))
def test_arrivals_rise_and_come_at_the_rate(process: Process) -> None:
    times = list(takewhile(lambda at: at < 1000, arrivals(process, 20, Random(1))))
    assert times == sorted(times) and times[0] > 0
    assert len(times) == pytest.approx(20_000, rel=0.05)


def test_poisson_arrivals_do_not_know_of_each_other() -> None:
    times = list(islice(arrivals("poisson", 5, Random(2)), 20_000))
    gaps = sorted(later - earlier for earlier, later in zip(times, times[1:], strict=False))
    assert gaps[len(gaps) // 2] == pytest.approx(0.2 * 0.693, rel=0.05)  # the median of an exponential
    assert sum(gap > 0.4 for gap in gaps) / len(gaps) == pytest.approx(0.135, rel=0.1)


def test_bursts_leave_pauses_empty_and_keep_the_mean_rate() -> None:
    times = takewhile(lambda at: at < 4000, arrivals("bursts", 6, Random(3), burst_seconds=0.5, pause_seconds=1.5))
    found = list(times)
    assert all(at % 2.0 <= 0.5 for at in found)
    assert len(found) == pytest.approx(24_000, rel=0.05)


def test_the_same_seed_gives_the_same_arrivals() -> None:
    first, second = (list(islice(arrivals("bursts", 3, Random("4")), 50)) for _ in range(2))
    assert first == second
