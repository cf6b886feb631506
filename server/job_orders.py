"""Orders: a request becomes a job, once under each idempotency key, charged once; and orders are taken back."""

from fastapi import Request

from server import metrics
from server.failures import JobsFull, KeyReused, NotReady
from server.feeder import Feeder
from server.gate import Ledger, charged
from server.jobs import Accepted, Job, JobStore, accept, fingerprint, patient
from server.roster import Roster
from server.scheduler import Scheduler
from server.schemas import GenerateRequest


class Orders:
    """Takes orders for jobs, and takes them back."""

    def __init__(self, roster: Roster, store: JobStore, feeder: Feeder, scheduler: Scheduler, ledger: Ledger):
        self._roster, self._store, self._feeder, self._scheduler = roster, store, feeder, scheduler
        self._ledger = ledger

    async def place(self, body: GenerateRequest, request: Request, key: str | None) -> Job:
        """Return the job of an order: a new one, or the one that the key stands for.

        Raises KeyReused, NotReady, JobsFull, JobsUnavailable, and what turning and charging a request raise.
        """
        job = await self._store.named(key) if key else None
        if job is None:  # a repetition is not drawn, so it is neither charged nor refused for what has changed since
            served = self._roster.find(body.model)
            wish = served.dial.turn(patient(body))
            async with charged(request, wish) as bill:
                accepted = accept(body, wish, served.edition, bill.charge)
                job = await self._queue(accepted, key)
                bill.waived = job.id != accepted.id  # another replica was faster with the same order
        if job.accepted.fingerprint != fingerprint(body):
            raise KeyReused("this idempotency key stands for a job whose body was another")
        return job

    async def cancel(self, job: Job) -> None:
        """End a job that has not ended; who paid for it gets back the evaluations not done. Raises JobsUnavailable."""
        done = await self._store.cancel(job.id)
        if done is None:
            return
        metrics.JOBS.labels("cancelled").inc()
        if charge := job.accepted.charge:
            await self._ledger.give_back(charge.client, charge.limit, job.accepted.evaluations - done)

    async def _queue(self, accepted: Accepted, key: str | None) -> Job:
        if self._feeder.closing:
            raise NotReady("this server is ending")
        job = await self._store.add(accepted, key)
        if job is None:
            raise JobsFull(self._scheduler.backlog_seconds)
        if job.id == accepted.id:
            metrics.JOBS.labels("accepted").inc()
            self._feeder.wake()
        return job
