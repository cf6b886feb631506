"""Rate limits over all replicas: the same buckets, in Redis."""

import asyncio
import logging
from collections.abc import Sequence
from time import monotonic

from redis.asyncio import Redis
from redis.exceptions import RedisError

from server import metrics
from server.limits import Allowance, Buckets, Limit

log = logging.getLogger(__name__)

TAKE = """
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1e6
local full = math.max(0, tonumber(redis.call('GET', KEYS[1]) or '0') - now)
local evaluations, interval, burst = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local after = full + evaluations * interval
local wait = after - math.max(burst, evaluations) * interval
if wait > 1e-6 then return {tostring(wait), tostring(full)} end
redis.call('SET', KEYS[1], string.format('%.6f', now + after), 'PX', math.max(1, math.ceil(after * 1000)))
return {'0', tostring(after)}
"""
"""`limits.grant` by Redis's own clock, in one step: a key holds when the client's bucket will be full, and no longer."""


GIVE_BACK = """
local full_at, seconds = tonumber(redis.call('GET', KEYS[1]) or '0'), tonumber(ARGV[1])
local clock = redis.call('TIME')
local left = full_at - seconds - (clock[1] + clock[2] / 1e6)
if left <= 0 then return redis.call('DEL', KEYS[1]) end
redis.call('SET', KEYS[1], string.format('%.6f', full_at - seconds), 'PX', math.ceil(left * 1000))
"""
"""The bucket is full so many seconds sooner."""

PATIENCE_SECONDS = 0.25
"""Longest that a request waits for Redis's word."""
REST_SECONDS = 5.0
"""How long Redis is left alone after it did not answer."""


class RedisBuckets:
    """The buckets of all clients of all replicas. While Redis does not answer, each replica counts for itself."""

    def __init__(self, redis: Redis):
        self._take, self._give_back = redis.register_script(TAKE), redis.register_script(GIVE_BACK)
        self._rests_until = 0.0
        self._own = Buckets()

    async def take(self, client: str, limit: Limit, evaluations: int) -> Allowance:
        """Take evaluations out of the client's bucket, if they are there."""
        if monotonic() < self._rests_until:
            return await self._own.take(client, limit, evaluations)
        arguments: Sequence[float] = (evaluations, limit.interval, limit.burst)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                wait, full = await self._take(keys=[_key(client)], args=arguments)
        except (RedisError, OSError) as error:  # of which TimeoutError is one
            self._rest(error)
            return await self._own.take(client, limit, evaluations)
        return Allowance(limit, float(wait), float(full))

    async def give_back(self, client: str, limit: Limit, evaluations: int) -> None:
        """Put evaluations back that the client took and the server did not draw."""
        if monotonic() < self._rests_until:
            return await self._own.give_back(client, limit, evaluations)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await self._give_back(keys=[_key(client)], args=[evaluations * limit.interval])
        except (RedisError, OSError) as error:
            self._rest(error)

    def _rest(self, error: Exception) -> None:
        metrics.LIMIT_ERRORS.inc()
        log.warning("Redis does not keep the rate limits, this replica does: %s", type(error).__name__)
        self._rests_until = monotonic() + REST_SECONDS


def _key(client: str) -> str:
    return f"{{stepdial}}:limit:{client}"
