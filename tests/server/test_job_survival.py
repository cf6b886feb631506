"""Accepted means not lost: replicas and Redis are killed for real while jobs run, and every job gets its one result.

A killed replica's job is drawn again by another from its first hop; that is harmless because drawing is a pure function
of the sample. The device draws the names of samples, so a neighbour's or a half-done image would be seen.
"""

import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np

from diffusion.family import Family, open_family
from server.content import edition
from server.samples import Sample
from tests.server.crowd import picture_of
from tests.server.desk import pixels
from tests.server.processes import wait_until
from tests.server.redis_server import RedisServer
from tests.server.replicas import Fleet
from tests.server.tiny import write_tiny_family

GROUP = "replicas"
QUICK = {"job_lease_seconds": 0.6, "shutdown_timeout_seconds": 5, "max_wave": 4}


def order(fleet: Fleet, seed: int, steps: int, prompt: str = "a red star on mint") -> str:
    """Order an image, as a careful client does: under a key, so that a lost answer may be asked for again."""
    wish = {"prompt": prompt, "steps": steps, "seed": seed}
    answer = fleet.ask("POST", "/jobs", json=wish, headers={"idempotency-key": f"{seed}"})
    assert answer.status_code in (200, 202), answer.text
    job: str = answer.json()["id"]
    return job


def look(fleet: Fleet, job: str) -> dict[str, Any]:
    """How the job is."""
    found: dict[str, Any] = fleet.ask("GET", f"/jobs/{job}").json()
    return found


def stream_of(family: Family) -> str:
    """Where the jobs of a family wait."""
    return "{stepdial}:jobs:" + edition(family)


def check_all_done(fleet: Fleet, redis: RedisServer, family: Family, jobs: dict[int, tuple[str, int]]) -> None:
    """Wait for the jobs (seed -> id and steps), compare every image, and see that nothing is left and nothing came twice."""
    wait_until(lambda: redis.client.xlen(stream_of(family)) == 0)
    for seed, (job, steps) in jobs.items():
        assert look(fleet, job)["state"] == "done", look(fleet, job)
        image, plan = fleet.ask("GET", f"/jobs/{job}/images/0").content, family.positions[steps]
        assert np.array_equal(pixels(image), picture_of(Sample(plan, (1, 1, 1), seed, 0, family.guidance(plan))))
    assert redis.client.xpending(stream_of(family), GROUP)["pending"] == 0
    assert len(list(redis.client.scan_iter("{stepdial}:job:*:image:*"))) == len(jobs)


def test_replicas_that_are_killed_again_and_again_lose_no_job(
    family_folder: Path, family: Family, redis_server: RedisServer
) -> None:
    dice = random.Random(0)
    jobs: dict[int, tuple[str, int]] = {}
    with Fleet(family_folder, redis_server.url, size=3, job_attempts=50, **QUICK) as fleet:
        for kill in range(12):
            for seed in range(4 * kill, 4 * kill + 4):
                steps = dice.choice((1, 2, 4, 32, 64))
                jobs[seed] = order(fleet, seed, steps), steps
            wait_until(lambda: redis_server.client.xpending(stream_of(family), GROUP)["pending"] > 0)
            busy = [consumer["pending"] for consumer in redis_server.client.xinfo_consumers(stream_of(family), GROUP)]
            assert sum(busy) > 0, "a kill should hit work"
            fleet.replace(kill % 3)
        check_all_done(fleet, redis_server, family, jobs)
        assert len(list(redis_server.client.scan_iter("{stepdial}:job:job_" + "?" * 32))) == len(jobs)
        begun_again = sum(look(fleet, job)["attempts"] > 1 for job, _ in jobs.values())
    assert begun_again > 0, "no kill hit a job that was running"


def test_redis_killed_and_restarted_under_load_loses_no_job_and_no_request_that_needs_none(
    family_folder: Path, family: Family, tmp_path: Path
) -> None:
    jobs: dict[int, tuple[str, int]] = {}
    with RedisServer(tmp_path) as redis, Fleet(family_folder, redis.url, size=2, **QUICK) as fleet:
        for fall in range(3):
            for seed in range(5 * fall, 5 * fall + 5):
                jobs[seed] = order(fleet, seed, 64), 64
            redis.kill()
            for replica in fleet.replicas:
                answer = replica.ask("POST", "/generate", json={"prompt": "red star", "steps": 1})
                assert answer is not None and answer.status_code == 200
                refusal = replica.ask("POST", "/jobs", json={"prompt": "red star", "steps": 1})
                assert refusal is not None and refusal.status_code == 503
                assert refusal.json()["type"] == "/problems/jobs-unavailable" and refusal.headers["retry-after"]
                ready = replica.ask("GET", "/readyz")
                assert ready is not None and ready.status_code == 200
            redis.start()
        check_all_done(fleet, redis, family, jobs)


def test_a_server_that_starts_before_its_redis_draws_at_once_and_takes_jobs_once_it_is_there(
    family_folder: Path, family: Family, tmp_path: Path
) -> None:
    redis = RedisServer(tmp_path)
    with Fleet(family_folder, redis.url, size=1, **QUICK) as fleet:
        assert fleet.ask("POST", "/generate", json={"prompt": "red star", "steps": 1}).status_code == 200
        with redis:
            jobs = {1: (order(fleet, 1, 4), 4)}
            check_all_done(fleet, redis, family, jobs)


def test_a_job_that_kills_its_replicas_is_given_up_and_takes_no_other_with_it(
    family_folder: Path, family: Family, redis_server: RedisServer
) -> None:
    with Fleet(family_folder, redis_server.url, size=2, job_attempts=2, **QUICK) as fleet:
        jobs = {seed: (order(fleet, seed, 64), 64) for seed in range(3)}
        poison = order(fleet, 99, 1, "a blue star on mint")

        def given_up() -> bool:
            for number, replica in enumerate(fleet.replicas):
                if replica.dead:
                    fleet.replace(number)
            return bool(look(fleet, poison)["state"] == "failed")

        wait_until(given_up)
        problem = look(fleet, poison)["problem"]
        assert problem["type"] == "/problems/job-given-up" and "begun 2 times" in problem["detail"]
        check_all_done(fleet, redis_server, family, jobs)


def test_a_frozen_replica_loses_its_job_and_what_it_brings_late_is_thrown_away(
    family_folder: Path, family: Family, redis_server: RedisServer
) -> None:
    with Fleet(family_folder, redis_server.url, size=1, wave_seconds=0.03, **QUICK) as fleet:
        jobs = {1: (order(fleet, 1, 64), 64)}
        wait_until(lambda: look(fleet, jobs[1][0])["evaluations_done"] > 0)
        fleet.replicas[0].send(signal.SIGSTOP)
        with Fleet(family_folder, redis_server.url, size=1, **QUICK) as other:
            wait_until(lambda: look(other, jobs[1][0])["attempts"] == 2)
            fleet.replicas[0].send(signal.SIGCONT)
            check_all_done(other, redis_server, family, jobs)
            assert look(fleet, jobs[1][0])["attempts"] == 2
            metrics = fleet.ask("GET", "/metrics").text
            assert 'stepdial_jobs_total{outcome="lost"} 1.0' in metrics


def test_sigterm_finishes_what_is_begun_hands_back_the_rest_and_others_draw_it(
    family_folder: Path, family: Family, redis_server: RedisServer
) -> None:
    quick = QUICK | {"max_wave": 1, "job_lease_seconds": 60}
    with Fleet(family_folder, redis_server.url, size=1, **quick) as leaving:
        jobs = {seed: (order(leaving, seed, 64), 64) for seed in range(3)}
        wait_until(lambda: look(leaving, jobs[0][0])["evaluations_done"] > 0)
        began = time.monotonic()
        leaving.replicas[0].send(signal.SIGTERM)
        leaving.replicas[0].process.join(30)
        assert leaving.replicas[0].dead and time.monotonic() - began < 6
    assert redis_server.client.hget("{stepdial}:job:" + jobs[0][0], "state") == b"done"
    with Fleet(family_folder, redis_server.url, size=1, **quick) as staying:
        check_all_done(staying, redis_server, family, jobs)
        assert [look(staying, job)["attempts"] for job, _ in jobs.values()] == [1, 1, 1]


def test_sigterm_hands_back_what_would_take_too_long(
    family_folder: Path, family: Family, redis_server: RedisServer
) -> None:
    quick = QUICK | {"shutdown_timeout_seconds": 0, "job_lease_seconds": 60}
    with Fleet(family_folder, redis_server.url, size=1, wave_seconds=0.03, **quick) as leaving:
        jobs = {1: (order(leaving, 1, 64), 64)}
        wait_until(lambda: look(leaving, jobs[1][0])["evaluations_done"] > 0)
        leaving.replicas[0].send(signal.SIGTERM)
        leaving.replicas[0].process.join(30)
    assert redis_server.client.hget("{stepdial}:job:" + jobs[1][0], "state") == b"queued"
    with Fleet(family_folder, redis_server.url, size=1, **quick) as staying:
        check_all_done(staying, redis_server, family, jobs)
        assert look(staying, jobs[1][0])["attempts"] == 1


def test_a_rolling_update_of_a_family_leaves_each_job_to_a_replica_that_can_draw_it(
    family_folder: Path, family: Family, redis_server: RedisServer, tmp_path: Path
) -> None:
    changed = write_tiny_family(tmp_path / "tiny", steps=(1, 2))
    quick = QUICK | {"job_lease_seconds": 60, "max_wave": 1}
    with (
        Fleet(family_folder, redis_server.url, size=1, wave_seconds=0.03, **quick) as old,
        Fleet(changed, redis_server.url, size=1, **quick) as new,
    ):
        jobs = {seed: (order(old, seed, 128), 128) for seed in range(6)}
        later = {seed: (order(new, seed, 2), 2) for seed in range(10, 16)}
        wait_until(lambda: redis_server.client.xlen(stream_of(open_family(changed))) == 0)
        assert {look(old, job)["state"] for job, _ in later.values()} == {"done"}
        assert redis_server.client.xlen(stream_of(family)) > 0, "the old jobs should still be there"
        old.replicas[0].send(signal.SIGTERM)
        old.replicas[0].process.join(30)
        waiting = [job for job, _ in jobs.values() if look(new, job)["state"] == "queued"]
        assert waiting and all(look(new, job)["attempts"] == 0 for job in waiting)
        with Fleet(family_folder, redis_server.url, size=1, **quick) as back:
            check_all_done(back, redis_server, family, jobs | later)
            assert {look(back, job)["attempts"] for job, _ in jobs.values()} == {1}


def test_jobs_of_a_family_that_nobody_serves_any_more_fail_and_say_so(
    family_folder: Path, redis_server: RedisServer, tmp_path: Path
) -> None:
    changed = write_tiny_family(tmp_path / "tiny", steps=(1, 2))
    quick = QUICK | {"shutdown_timeout_seconds": 0, "job_orphan_seconds": 1.5}
    with Fleet(changed, redis_server.url, size=1, **quick) as new:
        with Fleet(family_folder, redis_server.url, size=1, wave_seconds=0.03, **quick) as old:
            job = order(old, 1, 64)
            wait_until(lambda: look(old, job)["evaluations_done"] > 0)
            old.replicas[0].send(signal.SIGTERM)
            old.replicas[0].process.join(30)
        wait_until(lambda: look(new, job)["state"] == "failed")
        told = look(new, job)["problem"]
        assert (
            told["type"] == "/problems/edition-gone"
            and "'tiny'" in told["detail"]
            and "order it again" in told["detail"]
        )
        assert 'stepdial_jobs_total{outcome="failed"} 1.0' in new.ask("GET", "/metrics").text
