"""The endpoints of jobs: order images now, fetch them later."""

import asyncio
import base64
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, ConfigDict

from server import metrics
from server.contract import problems
from server.errors import problem_of
from server.failures import JobImageMissing, JobsFull, JobsUnavailable, JobUnknown, KeyReused, NotReady
from server.feeder import Feeder
from server.gate import charged
from server.images import Format
from server.jobs import ENDED, Accepted, Job, JobState, JobStore, accept, fingerprint, patient
from server.outcomes import outcome_of
from server.roster import Roster
from server.scheduler import Scheduler
from server.schemas import GenerateRequest, Problem, Timings

INLINE_BYTES = 65536
"""Results up to this size are in the job's JSON as well."""
WATCH_SECONDS = 0.2
"""How often the events look at a job; states that pass faster are not seen."""
JOB_ID = re.compile(r"job_[0-9a-f]{32}")

Key = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=255)]


class JobImage(BaseModel):
    """One image of a job that is done."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    url: str
    """Where its bytes are."""
    seed: int
    index: int
    bytes: int
    """Size of the file."""
    b64_json: str | None = None
    """The file, base64, if all images of the job together are small and the request did not ask for files."""


class JobLinks(BaseModel):
    """Where to go from here."""

    self: str
    events: str


class JobInfo(BaseModel):
    """A job as clients see it."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    id: str
    state: JobState
    created: int
    """Seconds since 1970, UTC."""
    ended: int | None
    """Seconds since 1970, UTC; how long it is known from then on is the server's setting."""
    position: int | None
    """Jobs ahead of it in the queue, over all replicas; only while it is queued."""
    evaluations_done: int
    """Network evaluations that its images have had, as last heard from the replica that draws."""
    evaluations_total: int
    attempts: int
    """How often it was begun; more than once when a replica died with it, which changes nothing about the images."""
    model: str
    student: str
    """The networks that draw, in the order of their hops, joined by +."""
    steps_requested: int | Literal["auto"]
    steps_used: int
    """Network evaluations per image; a job waits rather than take fewer than asked for."""
    seed: int
    n: int
    output_format: Format
    images: list[JobImage]
    """There when it is done."""
    timings: Timings | None
    """Of the attempt that succeeded."""
    problem: Problem | None
    """Why it failed."""
    links: JobLinks


def job_routes(roster: Roster, store: JobStore, feeder: Feeder, scheduler: Scheduler) -> APIRouter:
    """The routes of jobs."""
    router = APIRouter(prefix="/jobs", tags=["jobs"])

    async def known(job_id: str) -> Job:
        return _known(await store.find(job_id) if JOB_ID.fullmatch(job_id) else None)

    Known = Annotated[Job, Depends(known)]

    @router.post("", status_code=202, summary="Order images", responses=POST_RESPONSES)
    async def post(
        body: GenerateRequest,
        request: Request,
        response: Response,
        key: Key = None,
        authorization: Annotated[str, Header()] = "",
    ) -> JobInfo:
        """Take the body of POST /generate, but no deadline. Accepted jobs are not lost and are drawn once there is time.

        With an Idempotency-Key a repeated request is answered with the job of the first; 200 once that has ended.
        """
        try:
            job = await _add(body, request, key and f"{authorization}\n{key}")
        except Exception as error:
            metrics.JOBS.labels(outcome_of(error)).inc()
            raise
        response.headers["Location"] = f"/jobs/{job.id}"
        response.status_code = 200 if job.state in ENDED else 202
        return await _show(job, store)

    async def _add(body: GenerateRequest, request: Request, key: str | None) -> Job:
        job = await store.named(key) if key else None
        if job is None:  # a repetition is not drawn, so it is neither charged nor refused for what has changed since
            wish = roster.find(body.model).dial.turn(patient(body))
            async with charged(request, wish):
                job = await _queue(accept(body, wish), key)
        if job.accepted.fingerprint != fingerprint(body):
            raise KeyReused("this idempotency key stands for a job whose body was another")
        return job

    async def _queue(accepted: Accepted, key: str | None) -> Job:
        if feeder.closing:
            raise NotReady("this server is ending")
        job = await store.add(accepted, key)
        if job is None:
            raise JobsFull(scheduler.backlog_seconds)
        if job.id == accepted.id:
            metrics.JOBS.labels("accepted").inc()
            feeder.wake()
        return job

    @router.get("/{job_id}", summary="How a job is", responses=problems(401, 403, 404, 422, 503))
    async def get(job: Known) -> JobInfo:
        """Tell state, position and progress; small results are in the answer."""
        return await _show(job, store)

    @router.delete("/{job_id}", summary="Cancel a job", responses=problems(401, 403, 404, 422, 503))
    async def delete(job: Known) -> JobInfo:
        """Cancel the job if it has not ended; its evaluations stop within a second on whichever replica has it."""
        after = _known(await store.cancel(job.id))
        if job.state not in ENDED and after.state == "cancelled":
            metrics.JOBS.labels("cancelled").inc()
        return await _show(after, store)

    @router.get(
        "/{job_id}/images/{index}",
        summary="An image of a job that is done",
        response_class=Response,
        responses=IMAGE_RESPONSES,
    )
    async def image(job: Known, index: int) -> Response:
        file = await store.image(job.id, index) if job.state == "done" and 0 <= index < job.accepted.n else None
        if file is None:
            raise JobImageMissing(f"the job is {job.state}; when it is done it has images 0 to {job.accepted.n - 1}")
        headers = {"X-Seed": str(job.accepted.seed), "X-Steps-Used": str(job.accepted.steps)}
        return Response(file, headers=headers, media_type=f"image/{job.accepted.output_format}")

    @router.get(
        "/{job_id}/events",
        summary="A job's changes as server-sent events",
        response_class=EventSourceResponse,
        responses=problems(401, 403, 404, 422, 503),
    )
    async def events(job: Known) -> AsyncIterator[ServerSentEvent]:
        """Send the job, named by its state, now and whenever it has changed, until it ends; images only as URLs."""
        last = None
        while not feeder.closing:  # a client that is cut off comes back, to another replica
            try:
                found = _known(await store.find(job.id))
            except (JobsUnavailable, JobUnknown) as error:
                yield ServerSentEvent(event="error", data=problem_of(error))
                return
            if found != last:
                yield ServerSentEvent(event=found.state, data=_info(found))
            if found.state in ENDED:
                return
            last = found
            await asyncio.sleep(WATCH_SECONDS)

    return router


def _known(job: Job | None) -> Job:
    if job is None:
        raise JobUnknown("there is no such job, or it ended so long ago that it is forgotten")
    return job


async def _show(job: Job, store: JobStore) -> JobInfo:
    """The job, with its images in it if they are small."""
    info = _info(job)
    wanted = job.accepted.request.get("response_format", "b64_json") == "b64_json"
    if wanted and sum(job.outcome.sizes) <= INLINE_BYTES:
        for image in info.images:
            file = await store.image(job.id, image.index)
            image.b64_json = base64.b64encode(file).decode() if file else None
    return info


def _info(job: Job) -> JobInfo:
    accepted, outcome, own = job.accepted, job.outcome, f"/jobs/{job.id}"
    total = accepted.n * accepted.steps
    return JobInfo(
        **accepted.model_dump(include={"id", "model", "student", "steps_requested", "seed", "n", "output_format"}),
        state=job.state,
        steps_used=accepted.steps,
        created=int(accepted.created),
        ended=int(job.ended) if job.ended else None,
        position=job.position if job.state == "queued" else None,
        evaluations_done=total if job.state == "done" else job.evaluations,
        evaluations_total=total,
        attempts=job.attempts,
        images=[
            JobImage(url=f"{own}/images/{index}", seed=accepted.seed, index=index, bytes=size)
            for index, size in enumerate(outcome.sizes)
        ],
        timings=outcome.timings,
        problem=outcome.problem,
        links=JobLinks(self=own, events=f"{own}/events"),
    )


LOCATION = {"Location": {"description": "The job", "schema": {"type": "string"}}}
POST_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The job of an earlier request with this key; it has ended",
        "model": JobInfo,
        "headers": LOCATION,
    },
    202: {"description": "The job, accepted now or earlier under this key", "headers": LOCATION},
    **problems(400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 500, 503),
}
IMAGE_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The image file",
        "content": {
            f"image/{name}": {"schema": {"type": "string", "format": "binary"}} for name in ("png", "webp", "jpeg")
        },
    },
    **problems(401, 403, 404, 422, 503),
}
