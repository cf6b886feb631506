"""Jobs over HTTP, in front of a device that draws names; the store in memory, and in a real Redis."""

import asyncio
import base64
import json
import re
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import pytest

from diffusion.family import Family
from server.jobs_memory import MemoryJobs
from server.jobs_redis import RedisJobs
from server.samples import Sample
from tests.server.crowd import picture_of
from tests.server.desk import WISH, Desk, blamed, pixels, problem, value
from tests.server.processes import wait_until
from tests.server.redis_server import RedisServer
from tests.server.test_deadlines import searched

Opener = Callable[..., Desk]


@pytest.fixture(params=["memory", "redis"])
def open_desk(family: Family, request: pytest.FixtureRequest) -> Iterator[Opener]:
    """Opens desks whose jobs are in the one kind of store or in the other."""
    opened: list[Desk] = []

    def opener(**settings: Any) -> Desk:
        if request.param == "redis":
            settings["redis_url"] = request.getfixturevalue("redis_server").url
        desk = Desk(family, **settings)
        opened.append(desk.__enter__())
        return desk

    yield opener
    for desk in opened:
        desk.__exit__(None, None, None)


def order(desk: Desk, wish: Any = WISH, **headers: str) -> Any:
    """POST /jobs."""
    return desk.client.post("/jobs", json=wish, headers=headers)


def look(desk: Desk, job: str) -> dict[str, Any]:
    """GET /jobs/{id}."""
    found: dict[str, Any] = desk.client.get(f"/jobs/{job}").json()
    return found


def once(desk: Desk, job: str, state: str) -> dict[str, Any]:
    """Return the job once it is in this state."""
    wait_until(lambda: look(desk, job)["state"] == state)
    return look(desk, job)


def test_a_job_is_accepted_drawn_and_fetched(open_desk: Opener, family: Family) -> None:
    desk = open_desk()
    answer = order(desk, WISH | {"n": 2, "output_format": "webp"})
    assert answer.status_code == 202 and answer.headers["location"] == f"/jobs/{answer.json()['id']}"
    job = once(desk, answer.json()["id"], "done")
    assert (job["model"], job["student"], job["steps_used"], job["seed"], job["n"]) == ("tiny", "student-4", 4, 7, 2)
    assert job["evaluations_done"] == job["evaluations_total"] == 8 and job["attempts"] == 1
    assert job["created"] <= job["ended"] and job["position"] is None and job["problem"] is None
    assert job["timings"]["total_seconds"] > 0
    for index, image in enumerate(job["images"]):
        file = desk.client.get(image["url"])
        assert file.headers["content-type"] == "image/webp" and file.headers["x-seed"] == "7"
        assert np.array_equal(pixels(file.content), picture_of(Sample(family.positions[4], (1, 1, 1), 7, index)))
        assert desk.client.get(image["url"], headers={"if-none-match": file.headers["etag"]}).status_code == 304
        other = {"if-none-match": file.headers["etag"].replace(f"-{index}", f"-{1 - index}")}
        assert desk.client.get(image["url"], headers=other).content == file.content
        assert base64.b64decode(image["b64_json"]) == file.content and image["bytes"] == len(file.content)


def test_a_job_that_asks_for_files_has_no_images_in_its_json(open_desk: Opener) -> None:
    desk = open_desk()
    job = once(desk, order(desk, WISH | {"response_format": "file"}).json()["id"], "done")
    assert job["images"][0]["b64_json"] is None and desk.client.get(job["images"][0]["url"]).status_code == 200


def test_the_seed_of_a_job_is_drawn_when_it_is_accepted_and_its_default_steps_are_filled_in(open_desk: Opener) -> None:
    desk = open_desk()
    accepted = order(desk, {"prompt": "red star", "num_inference_steps": 2}).json()
    again = desk.ask({"prompt": "red star", "seed": accepted["seed"], "steps": 2}).json()
    image = once(desk, accepted["id"], "done")["images"][0]
    assert image["b64_json"] == again["data"][0]["b64_json"] and image["seed"] == accepted["seed"]


def test_a_job_of_auto_steps_is_settled_when_it_is_accepted_and_has_no_deadline(open_desk: Opener) -> None:
    desk = open_desk()
    job = order(desk, {"prompt": "red star", "steps": "auto", "max_steps": 2, "allow_degrade": True}).json()
    assert (job["steps_requested"], job["steps_used"], job["evaluations_total"]) == ("auto", 2, 2)
    assert once(desk, job["id"], "done")["steps_used"] == 2
    assert blamed(order(desk, WISH | {"deadline_ms": 1000})) == ["/deadline_ms"]
    assert blamed(order(desk, WISH | {"stream": True})) == ["/stream"]


def test_waiting_jobs_know_their_position_and_running_ones_their_progress(open_desk: Opener) -> None:
    desk = open_desk(max_wave=1)
    desk.device.seconds = 0.01
    first, second, third = (order(desk, WISH | {"steps": 64, "seed": seed}).json()["id"] for seed in range(3))
    wait_until(lambda: 0 < look(desk, first)["evaluations_done"] < 64)
    desk.device.gate.clear()
    assert look(desk, first)["state"] == "running" and look(desk, first)["position"] is None
    assert [look(desk, job)["position"] for job in (second, third)] == [0, 1]
    assert problem(desk.client.get(f"/jobs/{first}/images/0"), 404)["detail"].startswith("the job is running")
    desk.device.seconds = 0
    desk.device.gate.set()
    once(desk, third, "done")
    assert look(desk, first)["state"] == look(desk, second)["state"] == "done"


def test_cancelling_ends_waiting_and_running_jobs_frees_their_work_and_may_be_repeated(open_desk: Opener) -> None:
    desk = open_desk(max_wave=1)
    desk.device.gate.clear()
    running, waiting = (order(desk, WISH | {"steps": 512, "seed": seed}).json()["id"] for seed in range(2))
    once(desk, running, "running")
    for _ in range(2):
        assert desk.client.delete(f"/jobs/{waiting}").json()["state"] == "cancelled"
        assert desk.client.delete(f"/jobs/{running}").json()["state"] == "cancelled"
    wait_until(lambda: value(desk, "stepdial_pending_evaluations") == 0)
    desk.device.gate.set()
    done = once(desk, order(desk).json()["id"], "done")["id"]
    assert desk.client.delete(f"/jobs/{done}").json()["state"] == "done"
    assert look(desk, running)["state"] == "cancelled" and len(desk.device.waves) < 10


def test_an_idempotency_key_stands_for_one_job_of_one_body_and_one_caller(open_desk: Opener) -> None:
    desk = open_desk()
    key = {"idempotency-key": "order 66"}
    first = order(desk, {"prompt": "red star"}, **key)
    again = order(desk, {"prompt": "red star"}, **key)
    assert again.status_code in (200, 202) and again.headers["location"] == first.headers["location"]
    once(desk, first.json()["id"], "done")
    assert order(desk, {"prompt": "red star"}, **key).status_code == 200
    refusal = order(desk, {"prompt": "green star"}, **key)
    assert problem(refusal, 409)["type"] == "/problems/idempotency-key-reused"
    assert refusal.headers["x-should-retry"] == "false"
    assert order(desk, {"prompt": "green star"}, **key, authorization="Bearer else").status_code == 202
    assert order(desk, {"prompt": "red star"}).json()["id"] != first.json()["id"]
    problem(order(desk, **{"idempotency-key": "x" * 300}), 422)


def test_a_repeated_order_is_not_charged_again(open_desk: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.limits_redis.PATIENCE_SECONDS", 60.0)
    desk = open_desk(evaluations_per_minute=4)
    key = {"idempotency-key": "order 67"}
    first = order(desk, **key)
    again = order(desk, **key)
    assert again.status_code in (200, 202) and again.json()["id"] == first.json()["id"]
    problem(order(desk), 429)


def test_a_job_that_is_cancelled_gives_back_what_was_not_drawn_and_only_once(
    open_desk: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.limits_redis.PATIENCE_SECONDS", 60.0)
    desk = open_desk(evaluations_per_minute=0.01, burst_seconds=600_000, max_wave=1)
    assert left(desk.ask()) == 96
    desk.device.gate.clear()
    running, waiting = (order(desk, WISH | {"steps": steps, "seed": steps}) for steps in (32, 64))
    assert left(waiting) == 0
    once(desk, running.json()["id"], "running")
    for _ in range(2):
        desk.client.delete(f"/jobs/{waiting.json()['id']}")
    assert left(order(desk, WISH | {"steps": 1})) == 63
    desk.device.gate.set()


def test_one_order_that_comes_to_two_replicas_at_once_is_one_job_and_charged_once(
    family: Family, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.limits_redis.PATIENCE_SECONDS", 60.0)
    shared = {"redis_url": redis_server.url, "evaluations_per_minute": 20}
    with Desk(family, **shared) as one, Desk(family, **shared) as other:
        both = threading.Barrier(2, timeout=30)
        found = RedisJobs.named

        async def found_together(store: RedisJobs, key: str) -> Any:
            job = await found(store, key)
            await asyncio.to_thread(both.wait)  # neither adds its job before both have looked
            return job

        monkeypatch.setattr(RedisJobs, "named", found_together)
        with ThreadPoolExecutor(2) as pool:
            answers = [*pool.map(lambda desk: order(desk, **{"idempotency-key": "twice"}), (one, other))]
        assert {answer.status_code for answer in answers} <= {200, 202}
        assert len({answer.json()["id"] for answer in answers}) == 1
        assert left(one.ask(WISH | {"steps": 1})) == 15


def left(answer: Any) -> int:
    """The evaluations that the answer says are left of the rate."""
    found = re.search(r";r=(\d+);", answer.headers["ratelimit"])
    assert found
    return int(found[1])


def test_a_full_backlog_is_refused_and_what_was_accepted_is_drawn(open_desk: Opener) -> None:
    desk = open_desk(max_jobs=3)
    desk.device.gate.clear()
    accepted = [order(desk, WISH | {"seed": seed}).json()["id"] for seed in range(3)]
    refusal = order(desk)
    assert problem(refusal, 503)["type"] == "/problems/jobs-full" and int(refusal.headers["retry-after"]) >= 1
    desk.device.gate.set()
    for job in accepted:
        once(desk, job, "done")
    assert order(desk).status_code == 202


def test_jobs_leave_half_of_the_queue_to_clients_who_wait(open_desk: Opener) -> None:
    desk = open_desk(max_evaluations=128)
    desk.device.gate.clear()
    for seed in range(4):
        order(desk, WISH | {"steps": 64, "seed": seed})
    wait_until(lambda: value(desk, "stepdial_pending_evaluations") == 128)
    desk.device.gate.set()
    wait_until(lambda: value(desk, "stepdial_jobs_backlog") == 0)
    assert desk.ask().status_code == 200


def test_a_failed_wave_is_tried_again_and_only_so_often(open_desk: Opener) -> None:
    desk = open_desk(job_attempts=2)
    desk.device.failures = [RuntimeError("at /secret/place")]
    assert once(desk, order(desk).json()["id"], "done")["attempts"] == 2
    desk.device.failures = [RuntimeError("at /secret/place")] * 2
    failed = once(desk, order(desk, WISH | {"steps": 1}).json()["id"], "failed")
    assert failed["problem"]["type"] == "/problems/draw-failed" and "secret" not in json.dumps(failed)
    assert failed["images"] == [] and failed["attempts"] == 2


def test_a_bug_fails_the_job_without_its_inner_words_and_the_next_one_is_drawn(
    open_desk: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = open_desk()

    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("at /secret/place")

    with monkeypatch.context() as patch:
        patch.setattr("server.studio.Studio.make", broken)
        failed = once(desk, order(desk).json()["id"], "failed")
    assert failed["problem"]["type"] == "/problems/internal-error" and "secret" not in json.dumps(failed)
    once(desk, order(desk).json()["id"], "done")


def test_ended_jobs_are_forgotten_with_their_images_and_keys(open_desk: Opener) -> None:
    desk = open_desk(job_result_seconds=0.3)
    first = order(desk, **{"idempotency-key": "k"}).json()["id"]
    wait_until(lambda: desk.client.get(f"/jobs/{first}").status_code == 404)
    problem(desk.client.get(f"/jobs/{first}/images/0"), 404)
    assert order(desk, **{"idempotency-key": "k"}).json()["id"] != first


def test_the_events_tell_every_lasting_state_and_end_with_the_job(open_desk: Opener) -> None:
    desk = open_desk(max_wave=1)
    desk.device.seconds = 0.01
    order(desk, WISH | {"steps": 32})
    job = order(desk, WISH | {"steps": 64}).json()["id"]
    with desk.client.stream("GET", f"/jobs/{job}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in stream.iter_lines() if line]
    events = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    data = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    assert list(dict.fromkeys(events)) == ["queued", "running", "done"]
    assert [found["state"] for found in data] == events and data[-1]["images"][0]["b64_json"] is None
    progress = [found["evaluations_done"] for found in data]
    assert progress == sorted(progress) and progress[-1] == 64


def test_the_head_of_events_does_not_wait_for_the_job(open_desk: Opener) -> None:
    desk = open_desk()
    desk.device.gate.clear()
    job = order(desk).json()["id"]
    head = desk.client.head(f"/jobs/{job}/events")
    assert head.status_code == 200 and head.headers["content-type"].startswith("text/event-stream")
    assert head.content == b"" and look(desk, job)["state"] in ("queued", "running")
    desk.device.gate.set()


def test_unknown_jobs_and_images_are_404_and_bad_orders_422(open_desk: Opener) -> None:
    desk = open_desk()
    for path in ("/jobs/job_0", f"/jobs/job_{'0' * 32}", f"/jobs/job_{'0' * 32}/events", "/jobs/x:image:0"):
        assert problem(desk.client.get(path), 404)["type"] == "/problems/job-unknown"
    problem(desk.client.delete(f"/jobs/job_{'0' * 32}"), 404)
    job = once(desk, order(desk).json()["id"], "done")["id"]
    for index in (1, -1, 2**70):
        assert problem(desk.client.get(f"/jobs/{job}/images/{index}"), 404)["type"] == "/problems/job-image-missing"
    assert blamed(order(desk, WISH | {"steps": 77})) == ["/steps"]
    assert blamed(order(desk, WISH | {"colour": 1})) == ["/colour"]


def test_a_server_that_is_ending_takes_no_new_jobs(open_desk: Opener) -> None:
    desk = open_desk()
    assert desk.client.portal
    desk.client.portal.call(desk.app.state.drain, 1.0)
    assert problem(order(desk), 503)["type"] == "/problems/not-ready"


def test_without_redis_the_oldest_results_make_room_and_waiting_jobs_never_do(family: Family) -> None:
    with Desk(family, job_bytes=12_000) as desk:
        first, second, third = (once(desk, order(desk).json()["id"], "done")["id"] for _ in range(3))
        assert desk.client.get(f"/jobs/{first}").status_code == 404
        assert look(desk, second)["state"] == look(desk, third)["state"] == "done"
        desk.device.gate.clear()
        waiting = [order(desk).json()["id"] for _ in range(10)]
        assert all(desk.client.get(f"/jobs/{job}").status_code == 200 for job in waiting)


def test_a_job_is_drawn_by_the_plan_that_was_chosen_for_it_whatever_is_measured_where_it_is_drawn(
    family: Family, redis_server: RedisServer
) -> None:
    with Desk(searched(family), redis_url=redis_server.url, max_wave=1) as accepting:
        accepting.device.gate.clear()
        order(accepting, WISH | {"steps": 512})
        wait_until(lambda: bool(accepting.device.waves))
        job = order(accepting, WISH | {"plan": "searched"}).json()
        assert look(accepting, job["id"])["state"] == "queued" and job["student"] == "student-4+student-1"
        with Desk(family, redis_url=redis_server.url) as drawing:
            once(drawing, job["id"], "done")
            drawn = {turn.sample.plan for wave in drawing.device.waves for turn in wave}
            assert [plan.members for plan in drawn] == [("student-4", "student-1")]
        accepting.device.seconds = 0
        accepting.device.gate.set()


def test_the_metrics_of_jobs_move(open_desk: Opener) -> None:
    desk = open_desk(max_jobs=1)
    outcomes = ("accepted", "done", "cancelled", "rejected", "invalid")
    before = {outcome: value(desk, "stepdial_jobs_total", outcome=outcome) for outcome in outcomes}
    begun = value(desk, "stepdial_jobs_begun_total", again="false")
    once(desk, order(desk).json()["id"], "done")
    desk.device.gate.clear()
    job = order(desk).json()["id"]
    wait_until(lambda: value(desk, "stepdial_jobs_backlog") == value(desk, "stepdial_jobs_running") == 1)
    order(desk)
    order(desk, WISH | {"steps": 77})
    desk.client.delete(f"/jobs/{job}")
    for outcome in outcomes:
        assert value(desk, "stepdial_jobs_total", outcome=outcome) > before[outcome], outcome
    assert value(desk, "stepdial_jobs_begun_total", again="false") == begun + 2
    assert value(desk, "stepdial_jobs_reachable") == 1


def test_two_servers_with_one_redis_share_jobs_keys_and_cancellation(family: Family, redis_server: RedisServer) -> None:
    url = redis_server.url
    with Desk(family, redis_url=url, max_wave=1) as one, Desk(family, redis_url=url, max_wave=1) as other:
        one.device.gate.clear()
        other.device.gate.clear()
        jobs = [order(one, WISH | {"seed": seed}, **{"idempotency-key": str(seed)}).json()["id"] for seed in range(3)]
        again = order(other, WISH | {"seed": 2}, **{"idempotency-key": "2"})
        assert again.json()["id"] == jobs[2]
        wait_until(lambda: [look(one, job)["state"] for job in jobs] == ["running", "running", "queued"])
        assert look(other, jobs[2])["position"] == 0
        for job in jobs[:2]:  # each server cancels what the other draws, too
            assert other.client.delete(f"/jobs/{job}").json()["state"] == "cancelled"
        wait_until(lambda: look(one, jobs[2])["state"] == "running")
        one.device.gate.set()
        other.device.gate.set()
        once(one, jobs[2], "done")


def test_a_job_whose_end_is_slow_to_be_confirmed_counts_as_done_and_not_as_lost(
    open_desk: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowed(finish: Callable[..., Awaitable[bool]]) -> Callable[..., Awaitable[bool]]:
        async def finish_slowly(*arguments: Any) -> bool:
            mine = await finish(*arguments)
            await asyncio.sleep(1.2)  # at least two beats, in which the job is nobody's any more
            return mine

        return finish_slowly

    for store in (MemoryJobs, RedisJobs):
        monkeypatch.setattr(store, "finish", slowed(store.finish))
    desk = open_desk()
    done, lost = (partial(value, desk, "stepdial_jobs_total", outcome=outcome) for outcome in ("done", "lost"))
    before = done(), lost()
    once(desk, order(desk).json()["id"], "done")
    wait_until(lambda: (done(), lost()) != before)
    assert (done(), lost()) == (before[0] + 1, before[1])


def test_a_server_ends_though_its_store_swallows_the_cancellation_of_a_beat(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    beating = threading.Event()

    async def renew_and_swallow(*_: Any) -> set[str]:
        beating.set()
        with suppress(asyncio.CancelledError):  # as redis-py does when its answer comes at the same moment
            await asyncio.sleep(60)
        return set()

    monkeypatch.setattr(MemoryJobs, "renew", renew_and_swallow)
    desk = Desk(family).__enter__()
    assert beating.wait(30)
    ending = threading.Thread(target=desk.__exit__, args=(None, None, None), daemon=True)
    ending.start()
    ending.join(20)
    assert not ending.is_alive()
