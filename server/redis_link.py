"""The link to Redis: one client, which connects when it is first used and again whenever it has to."""

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff

CONNECT_SECONDS = 1.0
"""Longest that connecting may take."""
ANSWER_SECONDS = 2.0
"""Longest that Redis may take for an answer, or a request may wait for a connection."""
MAX_CONNECTIONS = 16
"""Connections of one replica. A burst waits for one rather than open more: Redis has 10,000 for all replicas."""


def connect(url: str) -> Redis:
    """Return a client of the Redis at this URL; Redis need not be there yet. One quick retry bridges a lost connection."""
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=MAX_CONNECTIONS,
        timeout=ANSWER_SECONDS,
        protocol=2,
        socket_connect_timeout=CONNECT_SECONDS,
        socket_timeout=ANSWER_SECONDS,
        retry=Retry(ExponentialBackoff(cap=0.1, base=0.02), 1),
    )
    return Redis.from_pool(pool)
