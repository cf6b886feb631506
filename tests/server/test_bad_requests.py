"""Requests that are refused: with which status, blaming which field, in which words."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.schemas import GenerateRequest
from tests.server.desk import WISH, Desk, blamed, problem


def test_a_step_count_that_is_not_served_is_answered_with_those_that_are(desk: Desk) -> None:
    answer = desk.ask(WISH | {"steps": 3})
    assert blamed(answer) == ["/steps"]
    assert answer.json()["available_steps"] == [1, 2, 4, 32, 64, 128, 256, 512]


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
        ({"deadline_ms": 0}, "/deadline_ms"),
        ({"deadline_ms": "100"}, "/deadline_ms"),
        ({"deadline_ms": 1e12}, "/deadline_ms"),
        ({"min_steps": 0}, "/min_steps"),
        ({"min_steps": 8, "max_steps": 2}, "/max_steps"),
        ({"steps": 4, "min_steps": 8}, "/min_steps"),
        ({"steps": 4, "max_steps": 2}, "/max_steps"),
        ({"plan": "best"}, "/plan"),
        ({"plan": "searched"}, "/plan"),
        ({"allow_degrade": 1}, "/allow_degrade"),
        ({"steps": "auto", "min_steps": 5, "max_steps": 31}, "/steps"),
        ({"steps": "auto", "guidance": 3.0}, "/steps"),
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
fields = st.sampled_from([*GenerateRequest.model_fields, "x"])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(change=st.dictionaries(fields, anything, max_size=4))
def test_whatever_is_in_the_fields_the_answer_is_an_image_or_a_problem_that_is_the_clients(
    desk: Desk, change: dict[str, Any]
) -> None:
    answer = desk.ask(json.dumps(WISH | change))
    if answer.status_code != 200:
        late = (429, 504) if "deadline_ms" in change else ()
        assert answer.status_code in (404, 422, *late)
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


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"n": 0}, "got 0, it should be greater than or equal to 1"),
        ({"n": 17}, "n is 17; at most 16 images can be asked for at once"),
        ({"n": 16, "steps": 512}, "n is 16, of 512 steps each; at most 4096 network evaluations fit"),
        ({"steps": "four"}, """got "four", it should be a valid integer, or it should be 'auto'"""),
        ({"output_format": "gif"}, """got "gif", it should be 'png', 'webp' or 'jpeg'"""),
        ({"steps": [4]}, "got a list, "),
        ({"prompt": "red " * 1000}, 'got "red red '),
        ({"guidance": float("nan")}, "got NaN, "),
        ({"min_steps": 8}, "min_steps is 8, which excludes the 4 steps that are asked for"),
        ({"guidance": 3.0}, "3 is not drawn: guidance is baked into student-4 at 1"),
    ],
)
def test_a_refusal_says_what_was_there_and_what_is_allowed(desk: Desk, change: dict[str, Any], told: str) -> None:
    answer = desk.ask(WISH | change)
    (error,) = problem(answer, 422)["errors"]
    assert error["detail"].startswith(told) and len(error["detail"]) < 200
    assert told in answer.json()["detail"]


def test_a_value_that_may_be_a_secret_is_not_repeated(desk: Desk) -> None:
    assert "hunter2" not in desk.ask(WISH | {"password": "hunter2"}).text
    refused = desk.client.post("/jobs", json=WISH, headers={"idempotency-key": "hunter2" * 100})
    assert problem(refused, 422) and "hunter2" not in refused.text


def test_a_model_that_is_not_served_is_named_beside_those_that_are(desk: Desk) -> None:
    assert (
        problem(desk.ask(WISH | {"model": "other"}), 404)["detail"]
        == """model "other" is not served; served is 'tiny'"""
    )


def test_a_body_of_no_type_is_refused_as_one_of_another_is(desk: Desk) -> None:
    body = json.dumps(WISH).encode()
    for content in (body, iter([body])):  # announced, and in chunks
        answer = desk.client.request("POST", "/generate", content=content)
        assert "content-type" not in answer.request.headers
        assert "application/json" in problem(answer, 415)["detail"]
    problem(desk.client.post("/generate"), 422)
    problem(desk.client.get("/jobs/job_" + "0" * 32 + "/images/x", headers={"content-type": "text/plain"}), 404)


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
