"""The endpoints of jobs: order images now, fetch them later."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from server import metrics
from server.contract import described, problems
from server.errors import problem_of
from server.etags import tag_headers, unchanged
from server.failures import JobImageMissing, JobsUnavailable, JobUnknown
from server.feeder import Feeder
from server.job_info import JobInfo, show, tell
from server.job_orders import Orders
from server.jobs import ENDED, Job, JobStore
from server.outcomes import outcome_of
from server.schemas import GenerateRequest

WATCH_SECONDS = (0.2, 2.0)
"""How soon the events look at a job again, after a change and after long without one; states that pass faster are not seen."""
JOB_ID = re.compile(r"job_[0-9a-f]{32}")

Key = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=255)]


def job_routes(orders: Orders, store: JobStore, feeder: Feeder) -> APIRouter:
    """The routes of jobs."""
    router = APIRouter(prefix="/jobs", tags=["jobs"])
    _ordering(router, orders, store)
    known = _known_in(store)
    _keeping(router, orders, store, known)
    _fetching(router, store, feeder, known)
    return router


def _ordering(router: APIRouter, orders: Orders, store: JobStore) -> None:
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
            job = await orders.place(body, request, key and f"{authorization}\n{key}")
        except Exception as error:
            metrics.JOBS.labels(outcome_of(error)).inc()
            raise
        response.headers["Location"] = f"/jobs/{job.id}"
        response.status_code = 200 if job.state in ENDED else 202
        return await show(job, store)


def _known_in(store: JobStore) -> Callable[[str], Awaitable[Job]]:
    """What finds the job of a path. It raises JobUnknown."""

    async def known(job_id: str) -> Job:
        return _known(await store.find(job_id) if JOB_ID.fullmatch(job_id) else None)

    return known


def _keeping(router: APIRouter, orders: Orders, store: JobStore, known: Callable[[str], Awaitable[Job]]) -> None:
    Known = Annotated[Job, Depends(known)]

    @router.get("/{job_id}", summary="How a job is", responses=problems(401, 403, 404, 422, 503))
    async def get(job: Known) -> JobInfo:
        """Tell state, position and progress; small results are in the answer."""
        return await show(job, store)

    @router.delete("/{job_id}", summary="Cancel a job", responses=problems(401, 403, 404, 422, 503))
    async def delete(job: Known) -> JobInfo:
        """Cancel the job if it has not ended; its evaluations stop within a second on whichever replica has it."""
        await orders.cancel(job)
        return await show(_known(await store.find(job.id)), store)


def _fetching(router: APIRouter, store: JobStore, feeder: Feeder, known: Callable[[str], Awaitable[Job]]) -> None:
    Known = Annotated[Job, Depends(known)]

    @router.get(
        "/{job_id}/images/{index}",
        summary="An image of a job that is done",
        response_class=Response,
        responses=IMAGE_RESPONSES,
    )
    async def image(job: Known, index: int, request: Request) -> Response:
        """Send the file. A job has one result, so its ETag never changes, and If-None-Match spares sending it again."""
        there, tag = job.state == "done" and 0 <= index < job.accepted.n, f'"{job.id}-{index}"'
        if there and (same := unchanged(request, tag)):
            return same
        file = await store.image(job.id, index) if there else None
        if file is None:
            raise JobImageMissing(
                f"the job is {job.state}; when it is done it has images 0 to {job.accepted.n - 1}, index is {index}"
            )
        headers = {"X-Seed": str(job.accepted.seed), "X-Steps-Used": str(job.accepted.steps)}
        return Response(file, headers=headers | tag_headers(tag), media_type=f"image/{job.accepted.output_format}")

    @router.get(
        "/{job_id}/events",
        summary="A job's changes as server-sent events",
        response_class=EventSourceResponse,
        responses=problems(401, 403, 404, 422, 503),
    )
    async def events(job: Known) -> AsyncIterator[ServerSentEvent]:
        """Send the job, named by its state, now and whenever it has changed, until it ends; images only as URLs."""
        async for event in _changes(job.id, store, feeder):
            yield event


async def _changes(job_id: str, store: JobStore, feeder: Feeder) -> AsyncIterator[ServerSentEvent]:
    shortest, longest = WATCH_SECONDS
    last, pause = None, shortest
    while not feeder.closing:  # a client that is cut off comes back, to another replica
        try:
            found = _known(await store.find(job_id))
        except (JobsUnavailable, JobUnknown) as error:
            yield ServerSentEvent(event="error", data=problem_of(error))
            return
        if found != last:
            yield ServerSentEvent(event=found.state, data=tell(found))
        if found.state in ENDED:
            return
        pause = shortest if found != last else min(longest, 1.5 * pause)
        last = found
        await asyncio.sleep(pause)


def _known(job: Job | None) -> Job:
    if job is None:
        raise JobUnknown("there is no such job, or it ended so long ago that it is forgotten")
    return job


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
        "headers": described({"ETag": "Names the file", "X-Seed": "The seed", "X-Steps-Used": "Network evaluations"}),
    },
    304: {"description": "If-None-Match names the file"},
    **problems(401, 403, 404, 422, 503),
}
