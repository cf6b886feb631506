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


PATIENCE_SECONDS = 0.25
"""Longest that a request waits for Redis's word."""
REST_SECONDS = 5.0
"""How long Redis is left alone after it did not answer."""


class RedisBuckets:
    """The buckets of all clients of all replicas. While Redis does not answer, each replica counts for itself."""

    def __init__(self, redis: Redis):
        self._take = redis.register_script(TAKE)
        self._rests_until = 0.0
        self._own = Buckets()

    async def take(self, client: str, limit: Limit, evaluations: int) -> Allowance:
        """Take evaluations out of the client's bucket, if they are there."""
        if monotonic() < self._rests_until:
            return await self._own.take(client, limit, evaluations)
        arguments: Sequence[float] = (evaluations, limit.interval, limit.burst)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                wait, full = await self._take(keys=[f"{{stepdial}}:limit:{client}"], args=arguments)
        except (RedisError, OSError) as error:  # of which TimeoutError is one
            metrics.LIMIT_ERRORS.inc()
            log.warning("Redis does not keep the rate limits, this replica does: %s", type(error).__name__)
            self._rests_until = monotonic() + REST_SECONDS
            return await self._own.take(client, limit, evaluations)
        return Allowance(limit, float(wait), float(full))
