"""The result cache: image files under the hash of everything that they are a function of, so a hit is never stale."""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from redis.asyncio import Redis
from redis.exceptions import RedisError

from server import metrics

log = logging.getLogger(__name__)

PREFIX = "{stepdial}:result:"
ENTRY_BYTES = 200
"""What an entry occupies beside its file."""
PATIENCE_SECONDS = 0.25
"""Longest that Redis may take: after that drawing is the better bet."""
PAUSE_SECONDS = 5.0
"""How long Redis is left alone after an error, so that not every request pays for its absence."""


class ResultCache(Protocol):
    """Keeps image files by content key. It fails open: when it has trouble, it has nothing."""

    async def get(self, keys: Sequence[str]) -> list[bytes | None] | None:
        """Return the file of each key, None for those it does not have; None altogether when it is in trouble."""

    async def put(self, files: Mapping[str, bytes]) -> None:
        """Keep these files, as far as there is room."""


class NoCache:
    """A ResultCache that is turned off."""

    async def get(self, keys: Sequence[str]) -> list[bytes | None] | None:
        """Return that it has none."""
        return [None] * len(keys)

    async def put(self, files: Mapping[str, bytes]) -> None:
        """Keep nothing."""


class MemoryCache:
    """A ResultCache in memory that drops the least recently used files when they exceed max_bytes."""

    def __init__(self, max_bytes: int):
        self._max_bytes = max_bytes
        self._files: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0

    async def get(self, keys: Sequence[str]) -> list[bytes | None] | None:
        """As ResultCache says."""
        for key in keys:
            if key in self._files:
                self._files.move_to_end(key)
        return [self._files.get(key) for key in keys]

    async def put(self, files: Mapping[str, bytes]) -> None:
        """As ResultCache says."""
        for key, file in files.items():
            if key not in self._files:
                self._files[key] = file  # equal keys mean equal bytes
                self._bytes += len(file) + ENTRY_BYTES
        while self._bytes > self._max_bytes:
            self._bytes -= len(self._files.popitem(last=False)[1]) + ENTRY_BYTES
        metrics.CACHE_BYTES.set(self._bytes)


class RedisCache:
    """A ResultCache that replicas share; Redis forgets the files after a time, and earlier where it has to."""

    def __init__(self, client: Redis, *, keep_seconds: int):
        self._client = client
        self._keep_seconds = keep_seconds
        self._paused_until = 0.0

    async def get(self, keys: Sequence[str]) -> list[bytes | None] | None:
        """As ResultCache says."""
        if time.monotonic() < self._paused_until:
            return None
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                files: list[Any] = await self._client.mget([PREFIX + key for key in keys])
                return files
        except (RedisError, OSError) as error:
            self._pause(error)
            return None

    async def put(self, files: Mapping[str, bytes]) -> None:
        """As ResultCache says."""
        if time.monotonic() < self._paused_until:
            return
        try:
            async with asyncio.timeout(PATIENCE_SECONDS), self._client.pipeline(transaction=False) as pipe:
                for key, file in files.items():
                    pipe.set(PREFIX + key, file, ex=self._keep_seconds)
                await pipe.execute()
        except (RedisError, OSError) as error:
            self._pause(error)

    def _pause(self, error: Exception) -> None:
        log.warning("the result cache does without Redis for %g seconds: %r", PAUSE_SECONDS, error)
        self._paused_until = time.monotonic() + PAUSE_SECONDS
