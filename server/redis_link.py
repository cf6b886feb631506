"""The link to Redis: one client, which connects when it is first used and again whenever it has to."""

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff

CONNECT_SECONDS = 1.0
"""Longest that connecting may take."""
ANSWER_SECONDS = 2.0
"""Longest that Redis may take for an answer."""


def connect(url: str) -> Redis:
    """Return a client of the Redis at this URL; Redis need not be there yet. One quick retry bridges a lost connection."""
    return Redis.from_url(
        url,
        protocol=2,
        socket_connect_timeout=CONNECT_SECONDS,
        socket_timeout=ANSWER_SECONDS,
        retry=Retry(ExponentialBackoff(cap=0.1, base=0.02), 1),
    )
