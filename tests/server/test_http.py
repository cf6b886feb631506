"""The HTTP surface, in front of a device that draws names."""

import base64
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from diffusion.family import Family, open_family
from diffusion.plans import Hop, Plan, student_plan, teacher_plan
from server.app import create_app
from server.failures import DeviceLost
from server.samples import Sample
from server.schemas import GenerateRequest
from server.settings import Settings
from tests.server.crowd import FakeDevice, picture_of
from tests.server.tiny import LABELS, UNCONDITIONAL, write_tiny_family

WISH = {"prompt": "a red star on mint", "steps": 4, "seed": 7}


class Desk:
    """A client of an app whose device is a fake."""

    def __init__(self, family: Family, **settings: Any):
        self.device = FakeDevice()
        self.stopped = threading.Event()
        self.settings = Settings(family=family.folder, **settings)
        self.app = create_app(self.settings, family, self.device, stop=self.stopped.set)
        self.client = TestClient(self.app, raise_server_exceptions=False)

    def __enter__(self) -> "Desk":
        self.client.__enter__()
        while self.client.get("/readyz").status_code == 503 and not self.stopped.is_set():
            pass
        return self

    def __exit__(self, *exception: Any) -> None:
        self.device.gate.set()
        self.client.__exit__(*exception)

    def ask(self, wish: Any = WISH, **headers: str) -> Any:
        """POST /generate; a str or bytes wish is the raw body."""
        content = wish if isinstance(wish, str | bytes) else json.dumps(wish)
        return self.client.post("/generate", content=content, headers={"content-type": "application/json"} | headers)


@pytest.fixture
def desk(family: Family) -> Iterator[Desk]:
    with Desk(family) as desk:
        yield desk


def pixels(data: bytes) -> np.ndarray:
    """Decode an image file."""
    return np.asarray(Image.open(io.BytesIO(data)))


def problem(answer: Any, status: int) -> dict[str, Any]:
    """Check that the answer is a problem of this status and return it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = answer.json()
    assert found["status"] == status and found["title"] and found["detail"] and found["type"].startswith("/problems/")
    assert "Traceback" not in answer.text and "site-packages" not in answer.text
    return found


def blamed(answer: Any) -> list[str]:
    """Check that the answer is a 422 and return the pointers it blames."""
    return [error["pointer"] for error in problem(answer, 422)["errors"]]


def test_an_image_is_drawn_and_the_answer_says_how(desk: Desk, family: Family) -> None:
    answer = desk.ask().json()
    assert set(answer) == {
        "id", "created", "model", "student", "steps_requested", "steps_used", "degraded", "data", "timings",
    }  # fmt: skip
    assert (answer["model"], answer["student"], answer["steps_used"], answer["degraded"]) == (
        "tiny",
        "student-4",
        4,
        False,
    )
    assert answer["steps_requested"] == 4
    sample = Sample(family.positions[4], (1, 1, 1), seed=7)
    assert np.array_equal(pixels(base64.b64decode(answer["data"][0]["b64_json"])), picture_of(sample))
    assert answer["data"][0]["seed"] == 7 and answer["data"][0]["index"] == 0
    timings = answer["timings"]
    assert set(timings) == {"queue_seconds", "device_seconds", "encode_seconds", "total_seconds"}
    assert sum(timings.values()) - timings["total_seconds"] <= timings["total_seconds"] + 1e-6


def test_several_images_are_the_ones_that_each_index_gives(desk: Desk, family: Family) -> None:
    several = desk.ask(WISH | {"n": 3}).json()["data"]
    for index, image in enumerate(several):
        sample = Sample(family.positions[4], (1, 1, 1), seed=7, index=index)
        assert (image["seed"], image["index"]) == (7, index)
        assert np.array_equal(pixels(base64.b64decode(image["b64_json"])), picture_of(sample))


@pytest.mark.parametrize("name", ["png", "webp", "jpeg"])
def test_an_accept_header_gets_the_bytes_and_the_facts_in_headers(desk: Desk, name: str) -> None:
    answer = desk.ask(accept=f"image/{name}")
    assert answer.headers["content-type"] == f"image/{name}"
    assert Image.open(io.BytesIO(answer.content)).format == name.upper()
    assert answer.headers["x-steps-used"] == "4" and answer.headers["x-seed"] == "7"
    for stage in ("queue", "device", "encode", "total"):
        assert f"{stage};dur=" in answer.headers["server-timing"]
    assert desk.ask(WISH | {"response_format": "file", "output_format": name}).content[:3] == answer.content[:3]


@pytest.mark.parametrize(
    "accept", ["*/*", "application/json, image/png;q=0.5", "text/html", "image/png;q=0", "", "image/*"]
)
def test_other_accept_headers_get_json(desk: Desk, accept: str) -> None:
    assert desk.ask(accept=accept).json()["steps_used"] == 4


def test_a_drawn_seed_is_returned_survives_javascript_and_draws_again(desk: Desk) -> None:
    first = desk.ask({"prompt": "red star"}).json()
    seed = first["data"][0]["seed"]
    assert 0 <= seed < 2**53
    again = desk.ask({"prompt": "red star", "seed": seed}).json()
    assert again["data"] == first["data"]
    assert desk.ask({"prompt": "red star"}).json()["data"][0]["seed"] != seed


def test_the_other_name_of_steps_is_understood_and_contradictions_are_not(desk: Desk) -> None:
    assert desk.ask({"prompt": "red", "num_inference_steps": 2}).json()["steps_used"] == 2
    assert desk.ask({"prompt": "red", "num_inference_steps": 2, "steps": 2}).json()["steps_used"] == 2
    assert blamed(desk.ask({"prompt": "red", "num_inference_steps": 2, "steps": 4})) == ["/num_inference_steps"]


def test_no_step_count_means_four_or_what_is_closest(desk: Desk) -> None:
    assert desk.ask({"prompt": "red"}).json()["steps_used"] == 4
    assert desk.client.get("/models").json()["data"][0]["default_steps"] == 4


def test_a_step_count_that_is_not_served_is_answered_with_those_that_are(desk: Desk) -> None:
    answer = desk.ask(WISH | {"steps": 3})
    assert blamed(answer) == ["/steps"]
    assert answer.json()["available_steps"] == [1, 2, 4, 32, 64, 128, 256, 512]


@pytest.mark.parametrize("field", ["deadline_ms", "min_steps", "max_steps", "plan", "allow_degrade", "stream"])
def test_fields_of_later_are_refused_by_name_never_ignored(desk: Desk, field: str) -> None:
    answer = desk.ask(WISH | {field: 1})
    assert blamed(answer) == [f"/{field}"]
    assert "not offered yet" in answer.json()["detail"]


def test_steps_auto_is_refused_as_not_offered_yet(desk: Desk) -> None:
    answer = desk.ask(WISH | {"steps": "auto"})
    assert blamed(answer) == ["/steps"] and "not offered yet" in answer.json()["detail"]


def test_an_unknown_word_is_answered_with_the_words_that_are_known(desk: Desk) -> None:
    answer = desk.ask(WISH | {"prompt": "a red car on mint"})
    assert blamed(answer) == ["/prompt"]
    for word in ("car", "red", "star", "ring", "navy"):
        assert word in answer.json()["detail"]


def test_guidance_is_taken_by_the_teacher_and_refused_by_students_unless_it_is_theirs(desk: Desk) -> None:
    assert blamed(desk.ask(WISH | {"guidance": 3.0})) == ["/guidance"]
    assert desk.ask(WISH | {"guidance": 1.0}).status_code == 200
    assert desk.ask(WISH | {"steps": 32, "guidance": 3.0}).status_code == 200
    assert desk.device.waves[-1][0].sample.guidance == 3.0


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"colour": "red"}, "/colour"),
        ({"a/b~c": 1}, "/a~1b~0c"),
        ({"steps": True}, "/steps"),
        ({"steps": "4"}, "/steps"),
        ({"steps": 4.5}, "/steps"),
        ({"steps": 0}, "/steps"),
        ({"steps": [4]}, "/steps"),
        ({"steps": 10**30}, "/steps"),
        ({"steps": float("nan")}, "/steps"),
        ({"seed": -1}, "/seed"),
        ({"seed": 2**63}, "/seed"),
        ({"seed": 1.5}, "/seed"),
        ({"n": 0}, "/n"),
        ({"n": 17}, "/n"),
        ({"n": float("inf")}, "/n"),
        ({"guidance": float("nan")}, "/guidance"),
        ({"guidance": float("inf")}, "/guidance"),
        ({"guidance": -1}, "/guidance"),
        ({"prompt": ""}, "/prompt"),
        ({"prompt": "red " * 1000}, "/prompt"),
        ({"prompt": 7}, "/prompt"),
        ({"prompt": "\ud800"}, "/prompt"),
        ({"prompt": None}, "/prompt"),
        ({"label": 1}, "/label"),
        ({"label": {"a": []}}, "/label"),
        ({"determinism": "maybe"}, "/determinism"),
        ({"output_format": "gif"}, "/output_format"),
        ({"response_format": "url"}, "/response_format"),
        ({"n": 2, "response_format": "file"}, "/n"),
        ({"n": 16, "steps": 512}, "/n"),
    ],
)
def test_a_wrong_field_is_pointed_at(desk: Desk, change: dict[str, Any], pointer: str) -> None:
    assert blamed(desk.ask(WISH | change)) == [pointer]


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
fields = st.sampled_from([*GenerateRequest.model_fields, "deadline_ms", "plan", "x"])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(change=st.dictionaries(fields, anything, max_size=4))
def test_whatever_is_in_the_fields_the_answer_is_an_image_or_a_problem_that_is_the_clients(
    desk: Desk, change: dict[str, Any]
) -> None:
    answer = desk.ask(json.dumps(WISH | change))
    if answer.status_code != 200:
        assert answer.status_code in (404, 422)
        problem(answer, answer.status_code)


def test_a_header_and_a_field_that_contradict_each_other_are_refused(desk: Desk) -> None:
    assert blamed(desk.ask(WISH | {"output_format": "webp"}, accept="image/png")) == ["/output_format"]
    assert blamed(desk.ask(WISH | {"n": 2}, accept="image/png")) == ["/n"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"x"',
        b"{",
        b"\xff\xfe",
        b'{"prompt": "\xff"}',
        b"[" * 20000,
        b'{"seed": ' + b"9" * 5000 + b"}",
        b"{}",
    ],
    ids=["empty", "null", "list", "string", "cut off", "binary", "not UTF-8", "deep", "5000 digits", "no fields"],
)
def test_a_body_that_is_no_wish_is_a_client_error(desk: Desk, body: bytes) -> None:
    answer = desk.ask(body)
    problem(answer, answer.status_code)
    assert answer.status_code in (400, 422)


def test_a_body_of_another_type_is_refused(desk: Desk) -> None:
    problem(desk.ask(json.dumps(WISH), **{"content-type": "text/plain"}), 415)
    problem(desk.ask("prompt=red", **{"content-type": "application/x-www-form-urlencoded"}), 415)


def test_a_body_that_is_too_large_is_refused_announced_or_not(desk: Desk) -> None:
    large = json.dumps(WISH | {"prompt": "x" * 70000}).encode()
    found = problem(desk.ask(large), 413)
    assert "65536" in found["detail"]
    pieces = (large[at : at + 1000] for at in range(0, len(large), 1000))
    answer = desk.client.post("/generate", content=pieces, headers={"content-type": "application/json"})
    problem(answer, 413)


def test_an_unknown_model_path_or_method_is_a_problem_too(desk: Desk) -> None:
    problem(desk.ask(WISH | {"model": "other"}), 404)
    problem(desk.client.get("/nowhere"), 404)
    problem(desk.client.get("/page/nowhere.js"), 404)
    problem(desk.client.get("/page/../settings.py"), 404)
    problem(desk.client.get("/generate"), 405)


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

    monkeypatch.setattr("server.routes._json_response", broken)
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
    monkeypatch.setattr(FakeDevice, "prepare", lambda _: ready.wait())
    desk = Desk(family)
    with desk.client:
        assert desk.client.get("/livez").json() == {"status": "alive"}
        refusal = desk.client.get("/readyz")
        problem(refusal, 503)
        assert int(refusal.headers["retry-after"]) >= 1
        problem(desk.ask(), 503)
        ready.set()
        while desk.client.get("/readyz").status_code == 503:
            pass
        assert desk.ask().status_code == 200


def test_the_models_carry_the_dial_with_what_was_measured(desk: Desk) -> None:
    (model,) = desk.client.get("/models").json()["data"]
    assert model["name"] == "tiny" and model["image"] == {"height": 8, "width": 8, "channels": 3}
    assert model["conditioning"]["slots"]["shape"] == ["star", "ring"]
    by_steps = {position["steps"]: position for position in model["positions"]}
    assert by_steps[2]["student"] == "student-2" and by_steps[2]["kind"] == "student"
    assert by_steps[512]["student"] == "teacher" and by_steps[512]["kind"] == "teacher"
    assert by_steps[4]["measured"]["frechet"] == {"mean": 12.0, "spread": 0.1}


def test_the_frontier_is_the_file_and_a_missing_one_a_404(desk: Desk, family: Family) -> None:
    assert desk.client.get("/frontier").json() == json.loads((family.folder / "frontier.json").read_text())
    with Desk(Family(family.folder, family.manifest, None)) as unmeasured:
        problem(unmeasured.client.get("/frontier"), 404)
        assert unmeasured.client.get("/models").json()["data"][0]["positions"][0]["measured"] is None


def test_the_frontier_adds_its_plans_to_the_dial_but_for_those_that_waves_cannot_draw(family: Family) -> None:
    assert family.frontier is not None
    mixed = Plan(hops=(*student_plan("student-4", 4).hops[:2], Hop(member="student-2", t=0.5, s=0.0)))
    first = family.frontier.positions[0]
    added = [
        first.model_copy(update={"steps": 3, "plan": mixed, "source": "searched"}),
        first.model_copy(update={"steps": 39, "plan": teacher_plan("teacher", 39, rule="heun")}),
    ]
    frontier = family.frontier.model_copy(update={"positions": (*family.frontier.positions, *added)})
    with Desk(Family(family.folder, family.manifest, frontier)) as desk:
        answer = desk.ask(WISH | {"steps": 3}).json()
        assert answer["student"] == "student-4+student-2" and answer["steps_used"] == 3
        assert 39 not in desk.ask(WISH | {"steps": 39}).json()["available_steps"]


def test_families_with_labels_or_without_wishes_are_served_too(tmp_path: Path) -> None:
    with Desk(open_family(write_tiny_family(tmp_path / "labels", LABELS, steps=(1,)))) as desk:
        for label in (1, "one", "1"):
            assert desk.ask({"label": label, "steps": 1, "seed": 1}).status_code == 200
        assert desk.device.waves[0][0].sample.condition == (2,)
        assert blamed(desk.ask({"label": "seven"})) == ["/label"]
        assert blamed(desk.ask({"prompt": "one"})) == ["/prompt"]
        assert blamed(desk.ask({})) == ["/label"]
    with Desk(open_family(write_tiny_family(tmp_path / "free", UNCONDITIONAL, steps=(1,)))) as desk:
        assert desk.ask({"seed": 1}).json()["steps_used"] == 1
        assert blamed(desk.ask({"label": 1})) == ["/label"]


def test_every_answer_carries_the_security_headers(desk: Desk) -> None:
    for answer in (
        desk.ask(),
        desk.ask("{"),
        desk.ask("x" * 70000),
        desk.client.get("/"),
        desk.client.get("/page/page.js"),
    ):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "server" not in answer.headers


def test_every_answer_of_the_tests_above_is_in_the_openapi_document(desk: Desk) -> None:
    document = desk.client.get("/openapi.json").json()
    responses = document["paths"]["/generate"]["post"]["responses"]
    assert set(responses) == {"200", "400", "404", "413", "415", "422", "500", "503", "504"}
    assert set(responses["200"]["content"]) == {"application/json", "image/png", "image/webp", "image/jpeg"}
    assert set(responses["422"]["content"]) == {"application/problem+json"}
    text = json.dumps(document)
    references = {part.split('"')[0] for part in text.split('"$ref": "#/components/schemas/')[1:]}
    assert references <= document["components"]["schemas"].keys()
    assert "HTTPValidationError" not in document["components"]["schemas"]


def value(desk: Desk, name: str, /, **labels: str) -> float:
    """Read one metric off /metrics; 0 where there is none yet."""
    for family in text_string_to_metric_families(desk.client.get("/metrics").text):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return sample.value
    return 0.0


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
    assert value(desk, "stepdial_student_quality", steps="4", metric="frechet") == 12.0
    assert value(desk, "stepdial_student_info", network="student-4") == 1
