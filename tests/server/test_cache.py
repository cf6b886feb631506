"""The result cache: what it answers, what it does not, and that nobody needs it."""

import asyncio
from collections.abc import Iterator

import pytest

from diffusion.family import Family
from server.cache import ENTRY_BYTES, MemoryCache
from tests.server.desk import WISH, Desk, value
from tests.server.redis_server import RedisServer
from tests.server.test_deadlines import searched

CACHE = 10**6
"""Bytes."""


@pytest.fixture
def desk(family: Family) -> Iterator[Desk]:
    """A client of an app with a result cache."""
    with Desk(family, cache_bytes=CACHE) as desk:
        yield desk


def counted(desk: Desk) -> dict[str, float]:
    """What the cache metric says."""
    results = ("hit", "miss", "bypass", "error")
    return {result: value(desk, "stepdial_cache_requests_total", result=result) for result in results}


def test_what_was_drawn_is_answered_again_from_the_cache_and_says_so(desk: Desk) -> None:
    before = counted(desk)
    first = desk.ask(WISH | {"n": 2})
    assert "x-cache" not in first.headers
    waves = len(desk.device.waves)
    again = desk.ask(WISH | {"n": 2})
    assert again.headers["x-cache"] == "hit" and again.json()["data"] == first.json()["data"]
    assert again.json()["timings"]["device_seconds"] == 0 and len(desk.device.waves) == waves
    raw = desk.ask(accept="image/png")
    assert raw.headers["x-cache"] == "hit"
    after = counted(desk)
    assert (after["hit"], after["miss"]) == (before["hit"] + 2, before["miss"] + 1)
    assert value(desk, "stepdial_cache_bytes") > 0


def test_only_the_images_that_are_missing_are_drawn(desk: Desk, family: Family) -> None:
    two = desk.ask(WISH | {"n": 2}).json()["data"]
    drawn = value(desk, "stepdial_images_total", steps="4")
    answer = desk.ask(WISH | {"n": 3})
    assert answer.json()["data"][:2] == two and "x-cache" not in answer.headers
    assert value(desk, "stepdial_images_total", steps="4") == drawn + 1
    with Desk(family) as fresh:
        assert fresh.ask(WISH | {"n": 3}).json()["data"] == answer.json()["data"]


def test_whatever_changes_the_bytes_is_a_miss(desk: Desk) -> None:
    desk.ask()
    for other in ({"seed": 8}, {"steps": 2}, {"prompt": "a green star on mint"}, {"output_format": "webp"}):
        assert "x-cache" not in desk.ask(WISH | other).headers
    desk.ask(WISH | {"steps": 32})
    assert "x-cache" not in desk.ask(WISH | {"steps": 32, "guidance": 2.0}).headers


def test_an_image_that_may_end_sooner_is_kept_where_it_did_not(family: Family) -> None:
    with Desk(searched(family), cache_bytes=CACHE) as desk:
        first = desk.ask(WISH | {"allow_degrade": True})
        assert first.status_code == 200 and first.json()["steps_used"] == 4
        for wish in (WISH, WISH | {"allow_degrade": True}):
            again = desk.ask(wish)
            assert again.headers["x-cache"] == "hit" and again.json()["data"] == first.json()["data"]


def test_fast_images_and_a_cache_that_is_turned_off_are_bypassed(desk: Desk, family: Family) -> None:
    before = counted(desk)["bypass"]
    for _ in range(2):
        assert "x-cache" not in desk.ask(WISH | {"determinism": "fast"}).headers
    assert counted(desk)["bypass"] == before + 2
    with Desk(family) as off:
        off.ask()
        assert "x-cache" not in off.ask().headers


def test_an_image_whose_seed_the_server_drew_is_not_kept(desk: Desk) -> None:
    before = counted(desk)["bypass"]
    drawn = desk.ask({"prompt": "red star", "steps": 1}).json()["data"][0]
    assert counted(desk)["bypass"] == before + 1
    again = desk.ask({"prompt": "red star", "steps": 1, "seed": drawn["seed"]})
    assert "x-cache" not in again.headers and again.json()["data"][0] == drawn


def test_the_cache_in_memory_is_bounded_and_keeps_what_was_used_last() -> None:
    async def use() -> None:
        cache = MemoryCache(2 * (100 + ENTRY_BYTES))
        await cache.put({"a": b"a" * 100, "b": b"b" * 100})
        assert await cache.get(["a"]) == [b"a" * 100]
        await cache.put({"c": b"c" * 100})
        assert await cache.get(["a", "b", "c"]) == [b"a" * 100, None, b"c" * 100]
        await cache.put({"huge": b"x" * 1000})
        assert await cache.get(["a", "c", "huge"]) == [None, None, None]

    asyncio.run(use())


def test_servers_with_one_redis_share_results_for_a_time(family: Family, redis_server: RedisServer) -> None:
    shared = {"redis_url": redis_server.url, "cache_bytes": CACHE}
    with Desk(family, **shared) as one, Desk(family, **shared) as other:
        first = one.ask()
        again = other.ask()
        assert again.headers["x-cache"] == "hit" and again.json()["data"] == first.json()["data"]
        assert not other.device.waves
    (key,) = (key for key in redis_server.client.keys() if b":result:" in key)
    assert 0 < redis_server.client.ttl(key) <= one.settings.cache_seconds


def test_without_its_redis_the_cache_lets_requests_be_drawn_and_counts_it(
    family: Family, redis_server: RedisServer
) -> None:
    with Desk(family, redis_url=redis_server.url, cache_bytes=CACHE) as desk:
        desk.ask()
        errors = counted(desk)["error"]
        redis_server.freeze()
        try:
            assert desk.ask().status_code == 200
            assert desk.ask().status_code == 200
        finally:
            redis_server.thaw()
        assert counted(desk)["error"] == errors + 2 and len(desk.device.waves) == 12
    with Desk(family, redis_url="redis://127.0.0.1:1/0", cache_bytes=CACHE) as desk:
        assert desk.ask().status_code == 200
