"""A job as clients see it."""

import base64
from typing import Literal

from pydantic import BaseModel, ConfigDict

from server.images import Format
from server.jobs import Job, JobState, JobStore
from server.schemas import Problem, Timings

INLINE_BYTES = 65536
"""Results up to this size are in the job's JSON as well."""


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


async def show(job: Job, store: JobStore) -> JobInfo:
    """Return the job as clients see it, with its images in it if they are small and wanted there."""
    info = tell(job)
    wanted = job.accepted.request.get("response_format", "b64_json") == "b64_json"
    if wanted and sum(job.outcome.sizes) <= INLINE_BYTES:
        for image in info.images:
            file = await store.image(job.id, image.index)
            image.b64_json = base64.b64encode(file).decode() if file else None
    return info


def tell(job: Job) -> JobInfo:
    """Return the job as clients see it, its images as URLs."""
    accepted, outcome, own = job.accepted, job.outcome, f"/jobs/{job.id}"
    total = accepted.evaluations
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
