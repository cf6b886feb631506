"""What clients see when the server is starting, full, slow or broken, and what the metrics tell."""

import json
import threading
from typing import Any

import pytest

from diffusion.family import Family
from server.failures import DeviceLost
from tests.server.crowd import FakeDevice
from tests.server.desk import WISH, Desk, problem, value


def test_a_full_queue_is_a_503_that_says_when_to_come_back(family: Family) -> None:
    with Desk(family, max_evaluations=40) as desk:
        desk.device.gate.clear()
        waiting = threading.Thread(target=desk.ask, args=(WISH | {"steps": 32},))
        waiting.start()
        while not desk.device.waves:
            pass
        refusal = desk.ask(WISH | {"n": 3})
        assert problem(refusal, 503)["type"] == "/problems/queue-full"
        assert int(refusal.headers["retry-after"]) >= 1
        desk.device.gate.set()
        waiting.join()
        assert desk.ask(WISH | {"n": 3}).status_code == 200


def test_a_request_that_takes_too_long_is_a_504_and_its_work_is_dropped(family: Family) -> None:
    with Desk(family, request_timeout_seconds=0.05) as desk:
        desk.device.gate.clear()
        problem(desk.ask(), 504)
        assert value(desk, "stepdial_pending_evaluations") == 0


def test_a_failing_wave_is_a_500_without_its_inner_words_and_the_next_request_is_drawn(desk: Desk) -> None:
    desk.device.failures = [RuntimeError("at /secret/place")]
    assert "secret" not in problem(desk.ask(), 500)["detail"]
    assert desk.ask().status_code == 200


def test_a_bug_is_a_500_without_its_inner_words(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("at /secret/place")

    monkeypatch.setattr("server.routes.json_answer", broken)
    assert "secret" not in json.dumps(problem(desk.ask(), 500))


def test_a_lost_device_fails_the_request_the_checks_and_the_process(desk: Desk) -> None:
    desk.device.failures = [DeviceLost("gone")]
    problem(desk.ask(), 503)
    assert desk.stopped.wait(10)
    problem(desk.client.get("/livez"), 503)
    problem(desk.client.get("/readyz"), 503)
    problem(desk.ask(), 503)


def test_before_the_networks_are_ready_only_liveness_is_given(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = threading.Event()
    monkeypatch.setattr(FakeDevice, "prepare", lambda _: ready.wait() and ())
    desk = Desk(family)
    with desk.client:
        assert desk.client.get("/livez").json() == {"status": "alive"}
        refusal = desk.client.get("/readyz")
        problem(refusal, 503)
        assert int(refusal.headers["retry-after"]) >= 1
        for wish in (WISH, WISH | {"steps": "auto", "deadline_ms": 300}):
            assert "being loaded" in problem(desk.ask(wish), 503)["detail"]
        ready.set()
        while desk.client.get("/readyz").status_code == 503:
            pass
        assert desk.ask().status_code == 200


def test_the_metrics_move(desk: Desk) -> None:
    watched: list[tuple[str, dict[str, str]]] = [
        ("stepdial_requests_total", {"steps": "4", "outcome": "ok"}),
        ("stepdial_requests_total", {"steps": "none", "outcome": "invalid"}),
        ("stepdial_request_duration_seconds_count", {"steps": "4"}),
        ("stepdial_stage_duration_seconds_count", {"steps": "4", "stage": "queue"}),
        ("stepdial_stage_duration_seconds_count", {"steps": "4", "stage": "device"}),
        ("stepdial_stage_duration_seconds_count", {"steps": "4", "stage": "encode"}),
        ("stepdial_images_total", {"steps": "4"}),
        ("stepdial_wave_duration_seconds_count", {"network": "student-4"}),
        ("stepdial_wave_samples_count", {"network": "student-4"}),
        ("stepdial_device_seconds_total", {"network": "student-4"}),
        ("stepdial_wasted_evaluations_total", {"reason": "failed"}),
    ]
    before = [value(desk, name, **labels) for name, labels in watched]
    desk.ask()
    desk.ask(WISH | {"steps": 77})
    desk.device.failures = [RuntimeError()]
    desk.ask()
    for (name, labels), old in zip(watched, before, strict=True):
        assert value(desk, name, **labels) > old, (name, labels)
    assert value(desk, "stepdial_ready") == 1
    assert value(desk, "stepdial_pending_evaluations_limit") == desk.settings.max_evaluations
    assert value(desk, "stepdial_student_quality", model="tiny", steps="4", metric="frechet") == 12.0
    assert value(desk, "stepdial_student_info", model="tiny", network="student-4") == 1
