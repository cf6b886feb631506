"""The journal: one line a request, what is in it, and what never is."""

import io
import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from diffusion.family import Family
from server import journal
from server.keys import add_key
from tests.server.desk import WISH, Desk, problem
from tests.server.processes import serve_names

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Logs as JSON, at level debug, for the test's duration; gives all lines so far, parsed."""
    root, stream = logging.getLogger(), io.StringIO()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()  # only a process whose log nobody has configured takes ours
    monkeypatch.setattr(sys, "stderr", stream)
    journal.configure("debug", "json")
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers[:] = handlers
    root.setLevel(level)


def requests(lines: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return [line for line in lines() if line["message"] == "request" and line["route"] not in journal.QUIET]


def test_a_request_is_one_line_that_says_what_was_asked_for_and_how_it_ended(
    family: Family, tmp_path: Path, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    file = tmp_path / "keys.json"
    secret = add_key(file, "ann")
    with Desk(family, keys_file=file) as desk:
        desk.ask(authorization=f"Bearer {secret}")
        desk.ask(WISH | {"steps": 3}, authorization=f"Bearer {secret}")
        desk.ask()
        desk.client.get("/no/such%0Aplace", headers={"authorization": f"Bearer {secret}"})
    drawn, refused, denied, lost = requests(lines)
    assert (drawn["method"], drawn["route"], drawn["status"], drawn["outcome"]) == ("POST", "/generate", 200, "ok")
    assert (drawn["model"], drawn["steps"], drawn["key"]) == ("tiny", 4, "ann")
    assert 0 < drawn["seconds"] < 100 and drawn["level"] == "info"
    assert (refused["status"], refused["outcome"], refused["key"]) == (422, "invalid", "ann")
    assert (denied["status"], denied["outcome"], denied.get("key")) == (401, "denied", None)
    assert (lost["status"], lost["route"]) == (404, "-")


def test_prompts_keys_and_paths_are_never_logged(
    family: Family, tmp_path: Path, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    file = tmp_path / "keys.json"
    secret = add_key(file, "ann")
    with Desk(family, keys_file=file) as desk:
        headers = {"authorization": f"Bearer {secret}"}
        desk.ask(**headers)
        desk.ask(WISH | {"prompt": "a secret wish"}, **headers)
        desk.ask(b'{"prompt": "a secret wish"', **headers)
        desk.device.failures = [RuntimeError("inner words")]
        desk.ask(**headers)
        desk.client.get("/secret/path?token=secret", headers=headers)
        desk.ask(authorization="Bearer secretguess")
    everything = json.dumps([line for line in lines() if line["logger"].startswith("server")])
    assert "inner words" in everything  # a failure's cause is for the log
    for word in (secret, "secret", "red star", "mint"):
        assert word not in everything, word


def test_a_client_may_name_its_request_within_reason(desk: Desk, lines: Callable[[], list[dict[str, Any]]]) -> None:
    answer = desk.ask(**{"x-request-id": "Order-7.a_b"})
    assert answer.headers["x-request-id"] == "Order-7.a_b" == requests(lines)[-1]["request_id"]
    for wild in ("a b", "x" * 200, "é", 'a"b', ""):
        answer = desk.client.get("/models", headers={"x-request-id": wild.encode()})
        assert answer.headers["x-request-id"] == requests(lines)[-1]["request_id"] != wild
        assert len(answer.headers["x-request-id"]) == 32
    assert desk.client.get("/nowhere").headers["x-request-id"] != desk.client.get("/nowhere").headers["x-request-id"]


def test_a_trace_goes_on_and_a_broken_one_begins_anew(desk: Desk, lines: Callable[[], list[dict[str, Any]]]) -> None:
    desk.ask(traceparent=PARENT)
    assert requests(lines)[-1]["trace_id"] == TRACE
    for broken in ("", "00-0-0-00", PARENT.replace(TRACE, "0" * 32), f"ff{PARENT[2:]}", f"{PARENT}-more", "x" * 1000):
        desk.ask(traceparent=broken)
        assert requests(lines)[-1]["trace_id"] not in (TRACE, "0" * 32)
        assert len(requests(lines)[-1]["trace_id"]) == 32


def test_every_line_of_a_request_carries_its_marks_and_a_traceback_stays_in_its_line(
    desk: Desk, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    desk.device.failures = [RuntimeError("inner words")]
    answer = desk.ask(traceparent=PARENT)
    (failure,) = [line for line in lines() if line["level"] == "error"]
    assert failure["trace_id"] == TRACE and failure["request_id"] == answer.headers["x-request-id"]
    assert "inner words" in failure["exception"] and "Traceback" in failure["exception"]
    assert "/generate" in failure["message"]


def test_a_bug_is_answered_and_logged_like_any_other_failure(
    desk: Desk, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    async def broken() -> None:
        raise KeyError("inner words")

    for path in ("/broken", "/v1/broken"):
        desk.app.add_api_route(path, broken)
    own, theirs = desk.client.get("/broken"), desk.client.get("/v1/broken")
    assert problem(own, 500)["type"] == "/problems/internal-error" and "inner" not in own.text + theirs.text
    assert theirs.status_code == 500 and theirs.json()["error"]["code"] == "internal_error"
    assert own.headers["x-content-type-options"] == "nosniff"
    marks = [line["request_id"] for line in lines() if line["level"] == "error"]
    assert marks == [own.headers["x-request-id"], theirs.headers["x-request-id"]]
    assert [line["outcome"] for line in requests(lines)] == ["failed", "failed"]


def test_health_checks_are_quiet(desk: Desk, lines: Callable[[], list[dict[str, Any]]]) -> None:
    for path in journal.QUIET:
        desk.client.get(path)
    levels = {line["level"] for line in lines() if line["message"] == "request"}
    assert levels == {"debug"}


def test_a_process_logs_lines_for_people_unless_told_otherwise(family_folder: Path) -> None:
    with serve_names(family_folder) as server:  # tests/server/test_tracing.py reads the other form
        server.ask(prompt="a red star on mint", steps=1)
        server.stop()
    (line,) = [line for line in server.lines if "/generate" in line]
    assert "INFO server.access: request method=POST route=/generate status=200" in line
    assert "steps=1" in line and "trace_id=" in line
