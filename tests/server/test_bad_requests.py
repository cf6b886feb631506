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
