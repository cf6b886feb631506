"""The job store of a server that is alone: everything in this process's memory, and gone with it."""

import heapq
import time
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Literal

from server.jobs import ENDED, Accepted, Backlog, Job, JobState, Outcome

RECORD_BYTES = 4096
"""What a job without images is taken to occupy, generously."""


@dataclass(slots=True)
class Record:
    """A job and its results."""

    job: Job
    order: int
    key: str | None
    files: tuple[bytes, ...] = ()

    @property
    def bytes(self) -> int:
        """What the record occupies."""
        return RECORD_BYTES + sum(map(len, self.files))


class MemoryJobs:
    """A JobStore without a server: bounded in jobs that wait and in bytes of results.

    Results expire after result_seconds, and earlier, oldest first, when the records exceed max_bytes.
    """

    def __init__(self, *, max_jobs: int, max_bytes: int, result_seconds: float):
        self._max_jobs = max_jobs
        self._max_bytes = max_bytes
        self._result_seconds = result_seconds
        self._records: dict[str, Record] = {}
        self._keys: dict[str, str] = {}
        self._waiting: list[tuple[int, str]] = []
        self._ended: OrderedDict[str, float] = OrderedDict()
        self._bytes = 0
        self._orders = count()

    async def add(self, accepted: Accepted, key: str | None) -> Job | None:
        """As JobStore says."""
        self._expire()
        if key in self._keys:
            return await self.find(self._keys[key])
        if (await self.backlog()).jobs >= self._max_jobs:
            return None
        record = Record(Job(accepted=accepted), next(self._orders), key)
        self._records[accepted.id] = record
        self._bytes += record.bytes
        if key:
            self._keys[key] = accepted.id
        heapq.heappush(self._waiting, (record.order, accepted.id))
        return await self.find(accepted.id)

    async def named(self, key: str) -> Job | None:
        """As JobStore says."""
        self._expire()
        return await self.find(self._keys[key]) if key in self._keys else None

    async def find(self, job_id: str) -> Job | None:
        """As JobStore says."""
        self._expire()
        record = self._records.get(job_id)
        if record is None:
            return None
        if record.job.state != "queued":
            return record.job
        ahead = sum(order < record.order for order, _ in self._waiting)
        return record.job.model_copy(update={"position": ahead})

    async def image(self, job_id: str, index: int) -> bytes | None:
        """As JobStore says."""
        self._expire()
        record = self._records.get(job_id)
        return record.files[index] if record and index < len(record.files) else None

    async def cancel(self, job_id: str) -> int | None:
        """As JobStore says."""
        return self._records[job_id].job.evaluations if self._end(job_id, "cancelled", Outcome(), ()) else None

    def needs(self, model: str) -> bool:
        """As JobStore says."""
        open_jobs = (record.job for record in self._records.values() if record.job.state not in ENDED)
        return any(job.accepted.model == model for job in open_jobs)

    async def backlog(self) -> Backlog:
        """As JobStore says."""
        return Backlog(jobs=len(self._records) - len(self._ended), orphans=0)

    async def end_orphans(self) -> int:
        """As JobStore says: there are none."""
        return 0

    async def take(self, editions: Collection[str]) -> Job | None:
        """As JobStore says. Whatever waits here is of a family that this server keeps for it: see `needs`."""
        if not self._waiting:
            return None
        _, job_id = heapq.heappop(self._waiting)
        attempts = self._records[job_id].job.attempts + 1
        return self._update(job_id, state="running", attempts=attempts, evaluations=0)

    async def renew(self, evaluations: Mapping[str, int], editions: Collection[str]) -> set[str]:
        """As JobStore says."""
        lost = {job_id for job_id in evaluations if not self._is(job_id, "running")}
        for job_id in evaluations.keys() - lost:
            self._update(job_id, evaluations=evaluations[job_id])
        return lost

    async def finish(
        self, job_id: str, state: Literal["done", "failed"], outcome: Outcome, files: Sequence[bytes]
    ) -> bool:
        """As JobStore says."""
        return self._end(job_id, state, outcome, files)

    async def give_back(self, job_id: str, *, attempted: bool) -> None:
        """As JobStore says."""
        if self._is(job_id, "running"):
            record = self._records[job_id]
            self._update(job_id, state="queued", evaluations=0, attempts=record.job.attempts - (not attempted))
            heapq.heappush(self._waiting, (record.order, job_id))

    async def close(self) -> None:
        """Nothing: the jobs end with the process."""

    def _is(self, job_id: str, state: JobState) -> bool:
        return job_id in self._records and self._records[job_id].job.state == state

    def _update(self, job_id: str, **changes: object) -> Job:
        record = self._records[job_id]
        record.job = record.job.model_copy(update=changes)
        return record.job

    def _end(self, job_id: str, state: JobState, outcome: Outcome, files: Sequence[bytes]) -> bool:
        if job_id not in self._records or self._records[job_id].job.state in ENDED:
            return False
        if self._is(job_id, "queued"):
            self._waiting.remove((self._records[job_id].order, job_id))
            heapq.heapify(self._waiting)
        self._update(job_id, state=state, outcome=outcome, ended=time.time())
        self._records[job_id].files = tuple(files)
        self._bytes += sum(map(len, files))
        self._ended[job_id] = time.monotonic() + self._result_seconds
        self._expire()
        return True

    def _expire(self) -> None:
        """Forget what has ended and is too old, or in the way."""
        while self._ended:
            job_id, expires = next(iter(self._ended.items()))
            if expires > time.monotonic() and self._bytes <= self._max_bytes:
                return
            record = self._records.pop(job_id)
            del self._ended[job_id]
            self._keys.pop(record.key or "", None)
            self._bytes -= record.bytes
