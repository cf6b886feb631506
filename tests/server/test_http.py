"""What the endpoints answer, in front of a device that draws names."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion.family import Family, open_family
from diffusion.plans import Hop, Plan, student_plan, teacher_plan
from server.samples import Sample
from tests.server.crowd import picture_of
from tests.server.desk import WISH, Desk, blamed, pixels, problem
from tests.server.tiny import LABELS, UNCONDITIONAL, write_tiny_family


def test_an_image_is_drawn_and_the_answer_says_how(desk: Desk, family: Family) -> None:
    answer = desk.ask().json()
    assert set(answer) == {
        "id", "created", "model", "student", "steps_requested", "steps_used", "degraded", "degrade_reason",
        "deadline_met", "data", "timings",
    }  # fmt: skip
    assert (answer["model"], answer["student"], answer["steps_used"], answer["degraded"]) == (
        "tiny",
        "student-4",
        4,
        False,
    )
    assert answer["steps_requested"] == 4 and answer["degrade_reason"] is None and answer["deadline_met"] is None
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
    assert answer.headers["x-steps-requested"] == "4" and answer.headers["x-degraded"] == "false"
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


def test_an_unknown_model_path_or_method_is_a_problem_too(desk: Desk) -> None:
    problem(desk.ask(WISH | {"model": "other"}), 404)
    problem(desk.client.get("/nowhere"), 404)
    problem(desk.client.get("/page/nowhere.js"), 404)
    problem(desk.client.get("/page/../settings.py"), 404)
    for path in ("/generate/", "/jobs/"):  # a redirect would go to whatever host was named
        problem(desk.client.post(path, json=WISH, follow_redirects=False), 404)
    problem(desk.client.get("/generate"), 405)
    refused = desk.client.put("/jobs/job_0")
    assert refused.status_code == 405 and refused.headers["Allow"] == "DELETE, GET"


@pytest.mark.parametrize(
    "path", ["/", "/livez", "/readyz", "/models", "/metrics", "/page/page.js", "/generate", "/nowhere"]
)
def test_head_is_answered_as_get_is_without_the_body(desk: Desk, path: str) -> None:
    whole, head = desk.client.get(path), desk.client.head(path)
    assert (head.status_code, head.content) == (whole.status_code, b"")
    assert head.headers["content-type"] == whole.headers["content-type"]


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


def test_the_frontier_adds_its_plans_to_the_dial_composed_and_second_order_ones_too(family: Family) -> None:
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
        answer = desk.ask(WISH | {"steps": 39}).json()
        assert answer["student"] == "teacher" and answer["steps_used"] == 39


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
    refused = (400, 401, 403, 404, 408, 413, 415, 422, 429, 500, 503, 504)
    assert set(responses) == {"200", "304", *map(str, refused)}
    assert set(responses["200"]["content"]) == {
        "application/json", "image/png", "image/webp", "image/jpeg", "text/event-stream",
    }  # fmt: skip
    assert set(responses["422"]["content"]) == {"application/problem+json"}
    text = json.dumps(document)
    references = {part.split('"')[0] for part in text.split('"$ref": "#/components/schemas/')[1:]}
    assert references <= document["components"]["schemas"].keys()
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_the_page_has_no_link_to_metrics_that_are_elsewhere(desk: Desk, family: Family) -> None:
    assert 'href="/metrics"' in desk.client.get("/").text
    with Desk(family, admin_port=0) as split:
        page = split.client.get("/")
        assert page.headers["content-type"].startswith("text/html") and 'href="/frontier"' in page.text
        assert "metrics" not in page.text and split.client.get("/metrics").status_code == 404
