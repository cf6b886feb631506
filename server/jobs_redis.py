"""The job store that all replicas share: one Redis stream, one consumer group, and a lease that living replicas renew."""

import hashlib
import logging
import time
import uuid
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Literal

from pydantic import ValidationError
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from server import jobs_scripts as scripts
from server.failures import JobsUnavailable
from server.jobs import Accepted, Job, Outcome

log = logging.getLogger(__name__)

JOBS, WAITING, ORDERS = (scripts.PREFIX + name for name in ("jobs", "waiting", "orders"))
JOB = scripts.PREFIX + "job:"
FORGET_REPLICA_MS = 86_400_000
"""Idle time after which a replica that has no jobs is forgotten."""


class RedisJobs:
    """A JobStore in Redis. Its steps are Lua scripts (jobs_scripts.py), so no replica sees half of one.

    Leases run by Redis's clock. When Redis itself was away, every lease looks overdue although its holder lives; so after
    a silence nothing is taken from others for one lease, in which the living renew theirs.
    """

    def __init__(self, client: Redis, *, max_jobs: int, result_seconds: float, lease_seconds: float):
        self._client = client
        self._max_jobs = max_jobs
        self._result_ms = int(result_seconds * 1000)
        self._lease_seconds = lease_seconds
        self._replica = f"replica-{uuid.uuid4().hex}"
        self._entries: dict[str, str] = {}
        """Job id -> stream entry of the jobs this replica has."""
        self._heard = float("-inf")
        self._patient_until = float("-inf")
        self._scripts = {
            name: client.register_script(getattr(scripts, name))
            for name in ("ADD", "TAKE", "RENEW", "FINISH", "GIVE_BACK", "CLOSE", "CANCEL", "MAKE_GROUP")
        }

    async def add(self, accepted: Accepted, key: str | None) -> Job | None:
        """As JobStore says."""
        name = _name(key) if key else ""
        found = await self._run(
            "ADD",
            [JOBS, WAITING, ORDERS, JOB + accepted.id],
            [accepted.id, accepted.model_dump_json(), self._max_jobs, JOB, name],
        )
        return await self.find(found.decode()) if found else None

    async def named(self, key: str) -> Job | None:
        """As JobStore says."""
        found = await self._reach(self._client.get(_name(key)))
        return await self.find(found.decode()) if found else None

    async def find(self, job_id: str) -> Job | None:
        """As JobStore says."""
        async with self._client.pipeline() as pipe:
            pipe.hgetall(JOB + job_id)
            pipe.zrank(WAITING, job_id)
            fields, position = await self._reach(pipe.execute())
        if b"accepted" not in fields:
            return None
        return Job(
            accepted=Accepted.model_validate_json(fields[b"accepted"]),
            state=fields[b"state"].decode(),
            attempts=fields.get(b"attempts", 0),
            evaluations=fields.get(b"evaluations", 0),
            position=position,
            ended=fields.get(b"ended"),
            outcome=Outcome.model_validate_json(fields.get(b"outcome", "{}")),
        )

    async def image(self, job_id: str, index: int) -> bytes | None:
        """As JobStore says."""
        return await self._reach(self._client.get(_image(job_id, index)))

    async def cancel(self, job_id: str) -> Job | None:
        """As JobStore says."""
        await self._run("CANCEL", [JOBS, WAITING, JOB + job_id], [job_id, time.time(), self._result_ms])
        return await self.find(job_id)

    def needs(self, model: str) -> bool:
        """As JobStore says: every replica can draw every job whose family it has."""
        return False

    async def backlog(self) -> int:
        """As JobStore says."""
        return await self._reach(self._client.xlen(JOBS))

    async def take(self) -> Job | None:
        """As JobStore says."""
        now = time.monotonic()
        patient = now < self._patient_until or self._was_silent(now)
        idle_ms = scripts.HANDED_BACK_MS if patient else int(self._lease_seconds * 1000)
        try:
            found = await self._run("TAKE", [JOBS, WAITING], [self._replica, idle_ms, JOB])
        except GroupMissing:
            await self._run("MAKE_GROUP", [JOBS], [])
            return None
        if found is None:
            return None
        job_id, entry = (part.decode() for part in found)
        try:
            job = await self.find(job_id)
        except ValidationError:  # nobody renews it, so that after a lease a replica may take it that can read it
            log.error("%s was written by another version and cannot be read", job_id)
            return None
        self._entries[job_id] = entry
        return job

    async def renew(self, evaluations: Mapping[str, int]) -> set[str]:
        """As JobStore says."""
        lost = set()
        for job_id, done in evaluations.items():
            entry = self._entries.get(job_id, "0-0")
            if not await self._run("RENEW", [JOBS, JOB + job_id], [entry, self._replica, done]):
                lost.add(job_id)
        return lost

    async def finish(
        self, job_id: str, state: Literal["done", "failed"], outcome: Outcome, files: Sequence[bytes]
    ) -> bool:
        """As JobStore says."""
        images = [_image(job_id, index) for index in range(len(files))]
        facts = [self._entries.get(job_id, "0-0"), self._replica, state, time.time(), outcome.model_dump_json()]
        mine = await self._run("FINISH", [JOBS, JOB + job_id, *images], [*facts, self._result_ms, *files])
        self._entries.pop(job_id, None)
        return bool(mine)

    async def give_back(self, job_id: str, *, attempted: bool) -> None:
        """As JobStore says."""
        entry = self._entries.get(job_id, "0-0")
        await self._run("GIVE_BACK", [JOBS, WAITING, JOB + job_id], [job_id, entry, self._replica, int(not attempted)])
        self._entries.pop(job_id, None)

    async def close(self) -> None:
        """As JobStore says."""
        try:
            await self._run("CLOSE", [JOBS, WAITING], [self._replica, JOB, FORGET_REPLICA_MS])
        except JobsUnavailable:
            log.warning("jobs could not be handed back; other replicas will take them after their leases")

    async def _run(self, name: str, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        return await self._reach(self._scripts[name](keys=keys, args=arguments))

    async def _reach(self, asking: Awaitable[Any]) -> Any:
        """Return Redis's answer. Raises JobsUnavailable or GroupMissing."""
        try:
            answer = await asking
        except (RedisError, OSError) as error:
            if isinstance(error, ResponseError) and "NOGROUP" in str(error):
                raise GroupMissing("the job store is being set up") from error
            raise JobsUnavailable("the job store cannot be reached") from error
        now = time.monotonic()
        if self._was_silent(now):
            self._patient_until = now + self._lease_seconds
        self._heard = now
        return answer

    def _was_silent(self, now: float) -> bool:
        return now - self._heard > self._lease_seconds / 2


class GroupMissing(JobsUnavailable):
    """The stream has no consumer group: Redis is new or was emptied."""


def _name(key: str) -> str:
    return f"{scripts.PREFIX}key:{hashlib.sha256(key.encode()).hexdigest()}"


def _image(job_id: str, index: int) -> str:
    return f"{JOB}{job_id}:image:{index}"
