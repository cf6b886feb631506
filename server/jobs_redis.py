"""The job store that all replicas share: a Redis stream for each edition, and a lease that living replicas renew."""

import hashlib
import logging
import time
import uuid
import zlib
from collections.abc import Awaitable, Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from server import jobs_scripts as scripts
from server.errors import problem_of
from server.failures import EditionGone, JobsUnavailable, JobUnreadable
from server.jobs import Accepted, Backlog, Job, Outcome
from server.schemas import GenerateRequest

log = logging.getLogger(__name__)

JOB = scripts.PREFIX + "job:"
NAMES = ("ADD", "TAKE", "RENEW", "FINISH", "GIVE_BACK", "CLOSE", "CANCEL", "BACKLOG", "ABANDON", "MAKE_GROUPS")
"""The scripts."""


class Held(NamedTuple):
    """Where a job that this replica has is in Redis."""

    edition: str
    entry: str
    """Its entry in the edition's stream, named after the millisecond of its acceptance."""


NOWHERE = Held("", "0-0")
"""Where a job is that this replica does not have."""


class RedisJobs:
    """A JobStore in Redis. Its steps are Lua scripts (jobs_scripts.py), so no replica sees half of one.

    Leases run by Redis's clock. When Redis itself was away, every lease looks overdue although its holder lives; so after
    a silence, which Redis notices by itself, nothing is taken from others for one lease, in which the living renew theirs.
    For the same reason a replica gives up the jobs of an edition that nobody serves only after it has been in touch for as
    long as that takes.
    """

    def __init__(
        self,
        client: Redis,
        *,
        max_jobs: int,
        result_seconds: float,
        lease_seconds: float,
        orphan_seconds: float,
    ):
        self._client = client
        self._max_jobs = max_jobs
        self._result_ms = int(result_seconds * 1000)
        self._lease_ms = int(lease_seconds * 1000)
        self._orphan_seconds = orphan_seconds
        self._replica = f"replica-{uuid.uuid4().hex}"
        self._held: dict[str, Held] = {}
        """By job id."""
        self._editions: set[str] = set()
        """Editions of which it has ever taken jobs."""
        self._heard = float("-inf")
        self._in_touch_since = float("inf")
        self._scripts = {name: client.register_script(getattr(scripts, name)) for name in NAMES}

    async def add(self, accepted: Accepted, key: str | None) -> Job | None:
        """As JobStore says."""
        name = _name(key) if key else ""
        # one hop of a plan is much like the next: a tenth is left of many
        packed = zlib.compress(accepted.model_dump_json().encode())
        facts = [accepted.id, packed, self._max_jobs, name, accepted.edition]
        found = await self._run("ADD", facts)
        return await self.find(found.decode()) if found else None

    async def named(self, key: str) -> Job | None:
        """As JobStore says."""
        found = await self._reach(self._client.get(_name(key)))
        return await self.find(found.decode()) if found else None

    async def find(self, job_id: str) -> Job | None:
        """As JobStore says. Raises JobForeign for a job that another version wrote and this one cannot read."""
        async with self._client.pipeline(transaction=False) as pipe:
            pipe.hgetall(JOB + job_id)
            pipe.zrank(scripts.WAITING, job_id)
            fields, position = await self._reach(pipe.execute())
        if b"accepted" not in fields:
            return None
        try:
            return Job(
                accepted=Accepted.model_validate_json(zlib.decompress(fields[b"accepted"])),
                state=fields[b"state"].decode(),
                attempts=fields.get(b"attempts", 0),
                evaluations=fields.get(b"evaluations", 0),
                position=position,
                ended=fields.get(b"ended"),
                outcome=Outcome.model_validate_json(fields.get(b"outcome", "{}")),
            )
        except (ValidationError, zlib.error) as error:
            raise JobForeign("another version of this server took the job, and this replica cannot read it") from error

    async def image(self, job_id: str, index: int) -> bytes | None:
        """As JobStore says."""
        return await self._reach(self._client.get(f"{JOB}{job_id}:image:{index}"))

    async def cancel(self, job_id: str) -> int | None:
        """As JobStore says."""
        done: int | None = await self._run("CANCEL", [job_id, time.time(), self._result_ms])
        return done

    def needs(self, model: str) -> bool:
        """As JobStore says: every replica can draw every job whose edition it serves."""
        return False

    async def backlog(self) -> Backlog:
        """As JobStore says."""
        editions = await self._run("BACKLOG", [])
        orphans = sum(jobs for _, jobs, silent_ms in editions if silent_ms > self._lease_ms)
        return Backlog(jobs=sum(jobs for _, jobs, _ in editions), orphans=orphans)

    async def end_orphans(self) -> int:
        """As JobStore says."""
        if time.monotonic() - self._in_touch_since < self._orphan_seconds:
            return 0
        patience_ms, ended = self._orphan_seconds * 1000, 0
        for edition, jobs, silent_ms in await self._run("BACKLOG", []):
            if jobs and silent_ms > patience_ms:
                outcome = Outcome(problem=problem_of(EditionGone(edition.decode().partition("@")[0])))
                facts = [edition, patience_ms, time.time(), outcome.model_dump_json(), self._result_ms]
                ended += await self._run("ABANDON", facts)
        return ended

    async def take(self, editions: Collection[str]) -> Job | None:
        """As JobStore says."""
        self._editions.update(editions)
        try:
            found = await self._run("TAKE", [self._replica, self._lease_ms, *editions])
        except GroupMissing:
            await self._run("MAKE_GROUPS", [*editions])
            return None
        if found is None:
            return None
        job_id, *place = (part.decode() for part in found)
        self._held[job_id] = Held(*place)
        try:
            job = await self.find(job_id)
            if job:
                GenerateRequest.model_validate(job.accepted.request)
        except (JobForeign, ValidationError):
            await self._pass_over(job_id)
            return None
        return job

    async def renew(self, evaluations: Mapping[str, int], editions: Collection[str]) -> set[str]:
        """As JobStore says."""
        facts: list[str | int] = [self._replica, self._lease_ms, len(editions), *editions]
        places = {job_id: self._held.get(job_id, NOWHERE) for job_id in evaluations}
        for job_id, done in evaluations.items():
            facts += [job_id, *places[job_id], done]
        lost = {job_id.decode() for job_id in await self._run("RENEW", facts)}
        for job_id in lost:
            if self._held.get(job_id) is places[job_id]:  # else it was taken again meanwhile
                del self._held[job_id]
        return lost

    async def finish(
        self, job_id: str, state: Literal["done", "failed"], outcome: Outcome, files: Sequence[bytes]
    ) -> bool:
        """As JobStore says."""
        place = self._held.get(job_id, NOWHERE)
        facts = [self._replica, job_id, *place, state, time.time(), outcome.model_dump_json(), self._result_ms]
        mine = await self._run("FINISH", [*facts, *files])
        self._held.pop(job_id, None)
        return bool(mine)

    async def give_back(self, job_id: str, *, attempted: bool) -> None:
        """As JobStore says."""
        await self._give_back(job_id, uncounted=int(not attempted), to=scripts.NOBODY)

    async def close(self) -> None:
        """As JobStore says."""
        try:
            await self._run("CLOSE", [self._replica, *self._editions])
        except JobsUnavailable:
            log.warning("jobs could not be handed back; other replicas will take them after their leases")

    async def _give_back(self, job_id: str, *, uncounted: int, to: str) -> None:
        place = self._held.get(job_id, NOWHERE)
        await self._run("GIVE_BACK", [self._replica, job_id, *place, uncounted, to])
        self._held.pop(job_id, None)

    async def _pass_over(self, job_id: str) -> None:
        """Let a job that another version wrote wait a lease for a replica that can read it, but not for ever."""
        accepted_at = int(self._held[job_id].entry.partition("-")[0]) / 1000
        if time.time() - accepted_at > self._orphan_seconds:
            await self.finish(job_id, "failed", Outcome(problem=problem_of(JobUnreadable())), ())
            return
        log.error("%s was written by another version and cannot be read; it is left for one that can", job_id)
        await self._give_back(job_id, uncounted=1, to=scripts.LATER)

    async def _run(self, name: str, arguments: Sequence[Any]) -> Any:
        return await self._reach(self._scripts[name](keys=[scripts.WAITING], args=arguments))

    async def _reach(self, asking: Awaitable[Any]) -> Any:
        """Return Redis's answer. Raises JobsUnavailable or GroupMissing."""
        try:
            answer = await asking
        except (RedisError, OSError) as error:
            if isinstance(error, ResponseError) and "NOGROUP" in str(error):
                raise GroupMissing("the job store is being set up") from error
            raise JobsUnavailable("the job store cannot be reached") from error
        now = time.monotonic()
        if 2000 * (now - self._heard) > self._lease_ms:
            self._in_touch_since = now
        self._heard = now
        return answer


class JobForeign(JobsUnavailable):
    """A job is not written as this version writes jobs: a replica of another version may be able to read it."""


class GroupMissing(JobsUnavailable):
    """A stream has no consumer group: Redis is new or was emptied, or nobody has served the edition yet."""


def _name(key: str) -> str:
    return f"{scripts.PREFIX}key:{hashlib.sha256(key.encode()).hexdigest()}"
