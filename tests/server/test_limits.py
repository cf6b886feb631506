"""Rate limits: the arithmetic of the bucket, and what a server answers."""

import asyncio
import json
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion.family import Family
from server import limits
from server.gate import _address
from server.keys import add_key
from server.limits import Buckets, Limit
from tests.server.desk import WISH, Desk, problem, value
from tests.server.processes import serve_names, wait_until

LIMITS = st.builds(
    Limit, evaluations_per_minute=st.floats(0.5, 10_000), burst_seconds=st.sampled_from([0.1, 1.0, 60.0, 600.0])
)


class Clock:
    """A clock that stands until it is moved."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@given(LIMITS, st.lists(st.tuples(st.floats(0, 100), st.integers(1, 600)), max_size=40))
def test_nobody_gets_more_than_the_burst_and_the_rate_and_what_one_request_may_owe(
    limit: Limit, requests: list[tuple[float, int]]
) -> None:
    clock = Clock()
    buckets, granted = Buckets(clock), 0
    for pause, evaluations in requests:
        clock.now += pause
        if asyncio.run(buckets.take("ann", limit, evaluations)).wait_seconds == 0:
            granted += evaluations
        dearest = max(limit.burst, max(evaluations for _, evaluations in requests))
        assert granted <= dearest + (clock.now - 1000.0) / limit.interval + 1e-3


@given(LIMITS, st.integers(1, 600), st.integers(1, 600))
def test_who_waits_as_long_as_told_is_served_and_not_before(limit: Limit, first: int, second: int) -> None:
    clock = Clock()
    buckets = Buckets(clock)
    assert asyncio.run(buckets.take("ann", limit, first)).wait_seconds == 0
    refused = asyncio.run(buckets.take("ann", limit, second))
    if refused.wait_seconds:
        assert refused.full_seconds == pytest.approx(first * limit.interval)
        clock.now += refused.wait_seconds * 0.9
        assert asyncio.run(buckets.take("ann", limit, second)).wait_seconds > 0
        clock.now += refused.wait_seconds * 0.1 + 1e-6
        assert asyncio.run(buckets.take("ann", limit, second)).wait_seconds == 0


def test_what_is_left_is_told_and_comes_back() -> None:
    clock, limit = Clock(), Limit(60, 60)
    buckets = Buckets(clock)
    assert asyncio.run(buckets.take("ann", limit, 20)).remaining == 40
    assert asyncio.run(buckets.take("bob", limit, 1)).remaining == 59
    clock.now += 10
    assert asyncio.run(buckets.take("ann", limit, 0)).remaining == 50
    clock.now += 1000
    assert asyncio.run(buckets.take("ann", limit, 0)).remaining == 60


def test_only_so_many_clients_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_CLIENTS", 3)
    buckets = Buckets(Clock())
    for client in "abcabd":
        asyncio.run(buckets.take(client, Limit(60, 60), 1))
    assert [*buckets._full_at] == ["a", "b", "d"]


def test_a_caller_above_the_rate_is_a_429_that_says_when_and_headers_say_what_is_left(family: Family) -> None:
    with Desk(family, evaluations_per_minute=10) as desk:
        first = desk.ask()
        assert first.headers["ratelimit-policy"] == '"evaluations";q=10;w=60'
        assert first.headers["ratelimit"].startswith('"evaluations";r=6;t=2')
        assert desk.ask(WISH | {"n": 1}).status_code == 200
        before = value(desk, "stepdial_rejected_total", reason="rate_limited")
        refusal = desk.ask()
        assert problem(refusal, 429)["type"] == "/problems/rate-limited"
        assert 5 <= int(refusal.headers["retry-after"]) <= 12
        assert refusal.headers["ratelimit"].startswith('"evaluations";r=2;')
        assert value(desk, "stepdial_rejected_total", reason="rate_limited") == before + 1
        assert len(desk.device.waves) == 8
        assert "ratelimit" not in desk.client.get("/models").headers


def test_a_request_that_is_wrong_costs_nothing(family: Family) -> None:
    with Desk(family, evaluations_per_minute=4) as desk:
        for _ in range(3):
            problem(desk.ask(WISH | {"steps": 3}), 422)
        assert desk.ask().status_code == 200


@pytest.mark.parametrize("store", ["memory", "redis"])
@pytest.mark.parametrize("wish", [WISH, WISH | {"stream": True}])
def test_what_the_server_turns_away_is_not_charged(
    family: Family, wish: dict[str, Any], store: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.limits_redis.PATIENCE_SECONDS", 60.0)
    url = request.getfixturevalue("redis_server").url if store == "redis" else ""
    with Desk(family, evaluations_per_minute=12, max_evaluations=6, redis_url=url) as desk:
        desk.device.gate.clear()
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(desk.ask)
            wait_until(lambda: value(desk, "stepdial_pending_evaluations") == 4)
            refusals = [desk.ask(wish) for _ in range(4)]
            desk.device.gate.set()
            assert first.result().status_code == 200
        assert {refusal.status_code for refusal in refusals} == {503}
        assert all(";r=8;" in refusal.headers["ratelimit"] for refusal in refusals)
        assert desk.ask(wish).status_code == 200


@pytest.mark.parametrize("wish", [WISH, WISH | {"stream": True}], ids=["JSON", "events"])
def test_who_hangs_up_gets_back_what_was_not_begun_and_no_more(family_folder: Path, wish: dict[str, Any]) -> None:
    body = json.dumps(wish | {"steps": 512}).encode()
    head = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    with serve_names(family_folder, ["--evaluations-per-minute", "1", "--burst-seconds", "36000"]) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head % len(body) + body)
            wait_until(lambda: server.metric("stepdial_wave_duration_seconds_count") >= 3)
        wait_until(lambda: server.metric("stepdial_wasted_evaluations_total") > 0)
        wait_until(lambda: server.metric("stepdial_pending_evaluations") == 0)
        waves = server.metric("stepdial_wave_duration_seconds_count")
        left = re.search(r";r=(\d+);", server.ask(**WISH | {"steps": 1}).headers["ratelimit"])
        assert left and 600 - 1 - (waves + 2) <= int(left[1]) <= 600 - 1 - waves + 2 and waves < 500


def test_what_fails_midway_gives_back_what_was_not_begun(family: Family) -> None:
    with Desk(family, evaluations_per_minute=10) as desk:
        desk.device.failures = [None, RuntimeError("broken")]
        answer = desk.ask()
        assert problem(answer, 500) and ";r=8;" in answer.headers["ratelimit"]


def test_a_key_has_its_own_bucket_and_may_have_its_own_rate(family: Family, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    slow, fast, other = (
        add_key(file, name, evaluations_per_minute=rate)
        for name, rate in (("slow", 4), ("fast", 1000), ("other", None))
    )
    with Desk(family, keys_file=file, evaluations_per_minute=8) as desk:

        def drawn(key: str) -> int:
            answers = [desk.ask(authorization=f"Bearer {key}").status_code for _ in range(4)]
            assert set(answers) <= {200, 429}
            return answers.count(200)

        assert (drawn(slow), drawn(fast), drawn(other)) == (1, 4, 2)


def test_a_position_dearer_than_the_bucket_is_drawn_by_a_full_one(family: Family) -> None:
    with Desk(family, evaluations_per_minute=10) as desk:
        answer = desk.ask(WISH | {"steps": 32})
        assert answer.status_code == 200 and ";r=0;" in answer.headers["ratelimit"]
        assert int(problem_wait(desk)) >= 130


def problem_wait(desk: Desk) -> str:
    refusal = desk.ask()
    problem(refusal, 429)
    wait: str = refusal.headers["retry-after"]
    return wait


def test_addresses_of_one_ipv6_network_are_one_caller() -> None:
    assert _address({"client": ("2001:db8:1:2:3::4", 1)}) == _address({"client": ("2001:db8:1:2::9", 2)})
    assert _address({"client": ("2001:db8:1:3::9", 2)}) == "2001:db8:1:3::/64"
    assert _address({"client": ("192.0.2.1", 1)}) == _address({"client": ("::ffff:192.0.2.1", 1)}) == "192.0.2.1"
    assert _address({"client": ("testclient", 1)}) == "testclient" and _address({}) == "unknown"
