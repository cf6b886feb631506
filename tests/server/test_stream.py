"""POST /generate as server-sent events: previews, images, done."""

import base64
import json
from typing import Any

import httpx2
import numpy as np
import pytest

from diffusion.family import Family
from diffusion.plans import teacher_plan
from server.failures import DeviceLost
from server.samples import Sample
from tests.server.crowd import picture_of
from tests.server.desk import WISH, Desk, blamed, pixels, problem, value
from tests.server.processes import PATIENCE, serve_names, wait_until
from tests.server.test_deadlines import SlowDesk

STREAM = WISH | {"stream": True}


def events_of(text: str) -> list[tuple[str, Any]]:
    """Read an event stream."""
    blocks = [dict(line.split(": ", 1) for line in block.split("\n")) for block in text.strip().split("\n\n")]
    return [(block["event"], json.loads(block["data"])) for block in blocks]


def test_previews_come_after_each_hop_but_the_last_then_images_then_the_facts(desk: Desk, family: Family) -> None:
    answer = desk.ask(STREAM | {"n": 2})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    events = events_of(answer.text)
    assert [name for name, _ in events] == ["preview"] * 6 + ["image"] * 2 + ["done"]
    assert sorted((data["index"], data["hop"]) for name, data in events if name == "preview") == [
        (0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (1, 3),
    ]  # fmt: skip
    for name, data in events[:-1]:
        picture = picture_of(Sample(family.positions[4], (1, 1, 1), seed=7, index=data["index"]))
        assert np.array_equal(pixels(base64.b64decode(data["b64_json"])), picture ^ np.uint8(data.get("hop", 0)))
        assert data["hops" if name == "preview" else "seed"] == (4 if name == "preview" else 7)
    done = events[-1][1]
    assert done["steps_used"] == 4 and done["timings"]["total_seconds"] > 0 and "data" not in done


def test_a_hop_of_two_evaluations_has_one_preview(family: Family) -> None:
    assert family.frontier
    heun = teacher_plan("teacher", 5, rule="heun")
    first = family.frontier.positions[0].model_copy(update={"steps": 5, "plan": heun, "source": "searched"})
    frontier = family.frontier.model_copy(update={"positions": (*family.frontier.positions, first)})
    with Desk(Family(family.folder, family.manifest, frontier)) as desk:
        events = events_of(desk.ask(STREAM | {"steps": 5}).text)
        partial = desk.client.post(
            "/v1/images/generations", json={"prompt": WISH["prompt"], "steps": 5, "stream": True, "partial_images": 3}
        )
    assert [(data["hop"], data["hops"]) for name, data in events if name == "preview"] == [(1, 3), (2, 3)]
    assert events[-1][1]["steps_used"] == 5
    assert [name.rpartition(".")[2] for name, _ in events_of(partial.text)] == ["partial_image"] * 2 + ["completed"]


def test_the_last_event_says_what_was_drawn_of_what_was_asked_for(family: Family) -> None:
    with SlowDesk(family, 1.0) as desk:
        late = STREAM | {"deadline_ms": 3000}
        done = events_of(desk.ask(late | {"allow_degrade": True}).text)[-1][1]
        assert (done["steps_requested"], done["steps_used"], done["student"]) == (4, 2, "student-2")
        assert (done["degraded"], done["degrade_reason"], done["deadline_met"]) == (True, "deadline", True)
        assert problem(desk.ask(late), 429)["min_feasible_ms"] > 3000


def test_a_deadline_that_passes_amid_a_stream_is_its_last_event(family: Family) -> None:
    with SlowDesk(family, 0.001) as desk:
        desk.device.seconds = 0.05
        *previews, (name, found) = events_of(desk.ask(STREAM | {"steps": 32, "deadline_ms": 400}).text)
        assert {name for name, _ in previews} == {"preview"} and name == "error"
        assert found["status"] == 504 and found["deadline_met"] is False
        assert value(desk, "stepdial_pending_evaluations") == 0


def test_the_streamed_images_are_those_of_the_json_answer(desk: Desk) -> None:
    streamed = [data for name, data in events_of(desk.ask(STREAM | {"n": 3}).text) if name == "image"]
    assert streamed == desk.ask(WISH | {"n": 3}).json()["data"]


def test_previews_beside_a_cached_image_are_those_of_the_images_that_are_drawn(family: Family) -> None:
    with Desk(family, cache_bytes=2**20) as desk:
        desk.ask(WISH)
        events = events_of(desk.ask(STREAM | {"n": 2}).text)
    assert [data["index"] for name, data in events if name == "preview"] == [1, 1, 1]
    assert [data["index"] for name, data in events if name == "image"] == [0, 1]


def test_an_accept_header_asks_for_events_too_and_one_step_has_no_previews(desk: Desk) -> None:
    answer = desk.ask(WISH | {"steps": 1}, accept="text/event-stream")
    assert [name for name, _ in events_of(answer.text)] == ["image", "done"]


def test_a_stream_of_a_file_is_refused(desk: Desk) -> None:
    assert blamed(desk.ask(STREAM | {"response_format": "file"})) == ["/response_format"]
    assert blamed(desk.ask(STREAM, accept="image/png")) == ["/stream"]


def test_what_fails_before_the_first_event_is_an_ordinary_problem(desk: Desk) -> None:
    assert blamed(desk.ask(STREAM | {"steps": 3})) == ["/steps"]
    desk.device.failures = [RuntimeError("at /secret/place")]
    problem(desk.ask(STREAM), 500)
    assert value(desk, "stepdial_requests_total", steps="4", outcome="failed") >= 1


@pytest.mark.parametrize("failure", [RuntimeError("at /secret/place"), DeviceLost("gone")])
def test_what_fails_midway_is_an_event_with_the_problem(desk: Desk, failure: Exception) -> None:
    failed = value(desk, "stepdial_requests_total", steps="4", outcome="failed")
    desk.device.failures = [None, failure]
    answer = desk.ask(STREAM)
    assert answer.status_code == 200
    (_, _), (name, found) = events_of(answer.text)
    assert name == "error" and found["status"] == (503 if isinstance(failure, DeviceLost) else 500)
    assert "secret" not in answer.text
    assert value(desk, "stepdial_requests_total", steps="4", outcome="failed") == failed + 1


def test_a_waiting_stream_is_kept_alive(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.events.PING_SECONDS", 0.01)
    desk.device.seconds = 0.05
    text = desk.ask(STREAM).text
    assert ": ping\n\n" in text
    assert [name for name, _ in events_of(text.replace(": ping\n\n", ""))] == ["preview"] * 3 + ["image", "done"]


def test_a_client_that_leaves_a_stream_frees_its_work(family: Family) -> None:
    with serve_names(family.folder) as names:
        body = STREAM | {"steps": 512}
        with httpx2.stream("POST", names.url + "/generate", json=body, timeout=PATIENCE) as answer:
            lines = answer.iter_lines()
            assert next(lines) == "event: preview"
            assert names.metric("stepdial_pending_evaluations") > 0
        wait_until(lambda: names.metric("stepdial_pending_evaluations") == 0)
        assert 'outcome="cancelled",steps="512"} 1.0' in names.get("/metrics").text
        waves = names.metric("stepdial_wave_duration_seconds_count")
        assert waves < 512
        assert names.ask(prompt="red star", steps=1).status_code == 200
        assert names.metric("stepdial_wave_duration_seconds_count") == waves + 1
