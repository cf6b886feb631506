"""From answers to numbers."""

import pytest

from benchmarks.load.client import Answer
from benchmarks.load.loops import Run
from benchmarks.load.summary import Spread, summarise


def answer(due: float, latency: float, steps: int = 4, outcome: str = "200", **more: object) -> Answer:
    images = {"images": 1, "steps_used": steps} if outcome == "200" else {}
    return Answer(steps, due, due, due + latency, outcome, **(images | more))  # type: ignore[arg-type]


def test_percentiles_are_those_of_the_definition() -> None:
    found = Spread.of([number / 1000 for number in range(1, 101)])
    assert found is not None
    assert (found.count, found.mean, found.p50, found.p95, found.max) == (100, 50.5, 50.5, 95.05, 100)
    assert Spread.of([]) is None


def test_throughput_counts_what_arrived_while_it_was_measured_and_goodput_what_was_asked_then() -> None:
    answers = [
        answer(0.5, 1.0),  # asked in the warm-up, arrived while measuring
        answer(1.5, 0.1),
        answer(2.0, 0.5),
        answer(2.5, 9.0),  # arrived long after
        answer(2.6, 0.1, outcome="503", retry_after=2.0),
    ]
    found = summarise(Run(answers, 1.0, 3.0, 0.1), rate=2, clients=None, slo={"all": 0.3})
    assert found.answered_per_second == pytest.approx(3 / 2)
    assert found.goodput_per_second == pytest.approx(1 / 2) and found.goodput_share == pytest.approx(1 / 4)
    assert found.total.outcomes == {"200": 3, "503": 1} and found.retry_after_seconds == (2.0, 2.0)
    assert found.total.latency_ms is not None and found.total.latency_ms.count == 3


def test_an_objective_may_differ_by_position() -> None:
    answers = [answer(0.1, 0.2, 1), answer(0.2, 0.2, 4)]
    assert summarise(Run(answers, 0, 1, 0.1), rate=2, clients=None, slo={"1": 0.1, "4": 0.3}).goodput_per_second == 1


def test_requested_and_used_steps_are_told_apart() -> None:
    answers = [answer(0.1, 0.2, 16, steps_used=4, degraded=True), answer(0.2, 0.2, 4), answer(0.3, 1, 2, "504")]
    found = summarise(Run(answers, 0, 1, 0.1), rate=2, clients=None, slo=None)
    assert {steps: position.requests for steps, position in found.by_steps_requested.items()} == {
        "2": 1,
        "4": 1,
        "16": 1,
    }
    assert [*found.by_steps_requested] == ["2", "4", "16"]
    assert {steps: position.requests for steps, position in found.by_steps_used.items()} == {"4": 2}
    assert found.degraded_share == 0.5 and found.goodput_per_second is None


def test_kept_deadlines_are_a_share_of_all_that_were_asked_for() -> None:
    answers = [
        answer(0.1, 0.2, deadline_met=True),
        answer(0.2, 0.2, deadline_met=False),
        answer(0.3, 0.1, outcome="429"),
    ]
    run = Run(answers, 0, 1, 0.1)
    assert summarise(run, rate=3, clients=None, slo=None, has_deadline=True).deadline_met_share == pytest.approx(
        1 / 3, abs=1e-3
    )
    assert summarise(run, rate=3, clients=None, slo=None).deadline_met_share is None


def test_stages_are_those_of_the_server() -> None:
    stages = {"queue": 0.1, "device": 0.2, "encode": 0.01, "total": 0.3}
    found = summarise(Run([answer(0.1, 0.4, stages=stages)], 0, 1, 0.1), rate=1, clients=None, slo=None)
    assert {name: spread.p50 for name, spread in found.total.stages_ms.items()} == {
        "queue": 100, "device": 200, "encode": 10, "total": 300,
    }  # fmt: skip


def test_a_client_that_uses_its_whole_core_is_saturated() -> None:
    assert summarise(Run([answer(0.1, 0.4)], 0, 1, 0.95), rate=1, clients=None, slo=None).client.saturated
    assert not summarise(Run([answer(0.1, 0.4)], 0, 1, 0.5), rate=1, clients=None, slo=None).client.saturated
