"""Rate limits that replicas share, in front of a real Redis."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from diffusion.family import Family
from server.limits import Allowance, Limit, grant
from server.limits_redis import RedisBuckets
from tests.server.desk import WISH, Desk, problem, value
from tests.server.redis_server import RedisServer


@pytest.fixture(autouse=True, scope="module")
def patience() -> Iterator[None]:
    """A machine that is busy with other things must not make Redis look gone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("server.limits_redis.PATIENCE_SECONDS", 60.0)
        yield


def with_redis(url: str, work: Callable[[Redis], Awaitable[Any]]) -> Any:
    """Run work with a client of this Redis that has all the time in the world."""

    async def main() -> Any:
        redis = Redis.from_url(url, protocol=2)
        try:
            return await work(redis)
        finally:
            await redis.aclose()

    return asyncio.run(main())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 200), min_size=1, max_size=6), st.sampled_from([1.0, 10.0, 60.0]))
def test_redis_grants_what_the_arithmetic_grants(redis_server: RedisServer, wishes: list[int], burst: float) -> None:
    limit = Limit(evaluations_per_minute=6.0, burst_seconds=burst * 60)  # slow, so that the test's own time is nothing

    async def ask(redis: Redis) -> list[Allowance]:
        await redis.flushdb()
        buckets = RedisBuckets(redis)
        return [await buckets.take("ann", limit, evaluations) for evaluations in wishes]

    full = 0.0
    for evaluations, given_ in zip(wishes, with_redis(redis_server.url, ask), strict=True):
        expected = grant(limit, evaluations, full)
        assert given_.wait_seconds == pytest.approx(expected.wait_seconds, abs=2)
        assert given_.full_seconds == pytest.approx(expected.full_seconds, abs=2)
        full = given_.full_seconds


def test_forty_at_once_get_no_more_than_the_bucket_holds(redis_server: RedisServer) -> None:
    async def ask(redis: Redis) -> int:
        await redis.flushdb()
        replicas = [RedisBuckets(redis) for _ in range(4)]
        limit = Limit(evaluations_per_minute=10, burst_seconds=60)
        takes = [replicas[number % 4].take("ann", limit, 1) for number in range(40)]
        return sum(allowance.wait_seconds == 0 for allowance in await asyncio.gather(*takes))

    assert with_redis(redis_server.url, ask) == 10


def test_buckets_that_are_full_again_are_forgotten(redis_server: RedisServer) -> None:
    async def ask(redis: Redis) -> int:
        await redis.flushdb()
        await RedisBuckets(redis).take("ann", Limit(evaluations_per_minute=6000, burst_seconds=60), 5)
        assert await redis.dbsize() == 1
        await asyncio.sleep(0.2)
        return int(await redis.dbsize())

    assert with_redis(redis_server.url, ask) == 0


@pytest.mark.parametrize("leave", [RedisServer.kill, RedisServer.freeze], ids=["killed", "frozen"])
def test_two_replicas_share_a_limit_and_each_counts_alone_while_redis_is_gone(
    redis_server: RedisServer, family: Family, monkeypatch: pytest.MonkeyPatch, leave: Callable[[RedisServer], None]
) -> None:
    monkeypatch.setattr("server.limits_redis.REST_SECONDS", 0.1)
    monkeypatch.setattr("server.limits_redis.PATIENCE_SECONDS", 3.0)
    shared = {"redis_url": redis_server.url, "evaluations_per_minute": 8}
    redis_server.client.flushdb()
    with Desk(family, **shared) as one, Desk(family, **shared) as other:
        assert one.ask().status_code == 200
        assert other.ask(WISH | {"seed": 8}).status_code == 200
        problem(one.ask(WISH | {"seed": 9}), 429)
        before = value(one, "stepdial_limit_errors_total")
        leave(redis_server)
        try:
            assert one.ask(WISH | {"seed": 10}).status_code == 200
            assert value(one, "stepdial_limit_errors_total") == before + 1
        finally:
            redis_server.start() if leave is RedisServer.kill else redis_server.thaw()
        time.sleep(0.2)
        problem(other.ask(WISH | {"seed": 11}), 429)
