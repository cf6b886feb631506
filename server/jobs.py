"""Jobs: requests that are kept until somebody draws them, and results that are kept until somebody fetches them.

Drawing is a pure function of the samples, and the seed is fixed when a job is accepted. So a job whose replica died may be
begun again, and even be drawn twice: the images are the same, and the store takes only one answer. Everything here
rests on that. It holds among replicas whose family is the same, so a job carries its family's edition (content.py) and the
plan that was chosen for it, and only a replica that serves the edition takes it.
"""

import hashlib
import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict

from diffusion.plans import Plan
from server.dial import Wish
from server.failures import FieldRefused
from server.images import Format
from server.limits import Charge
from server.schemas import GenerateRequest, Problem, Timings

JobState = Literal["queued", "running", "done", "failed", "cancelled"]
"""How far a job is; the last three are final."""

ENDED: tuple[JobState, ...] = ("done", "failed", "cancelled")
"""The final states."""


class Accepted(BaseModel):
    """What a job is, from its acceptance to its end."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    id: str
    """job_ and 128 random bits, in hex: who knows it may read and cancel the job."""
    created: float
    """Seconds since 1970, UTC."""
    request: dict[str, Any]
    """The body, with model, steps and seed filled in. Not a GenerateRequest: a replica of another version may have written it."""
    fingerprint: str
    """SHA-256 of the body as it came, to tell whether two bodies under one idempotency key are the same."""
    model: str
    """Family that draws."""
    edition: str
    """Edition of the family: a replica that does not serve it leaves the job to others."""
    plan: Plan
    """The hops of each image. They stay, whatever is measured between acceptance and drawing."""
    student: str
    """The networks that draw, joined by +."""
    steps_requested: int | Literal["auto"]
    """Dial position that was asked for."""
    steps: int
    """Dial position that it stands for."""
    seed: int
    n: int
    """Images."""
    output_format: Format
    charge: Charge | None = None
    """Who was charged for it; None where there is no rate limit."""

    @property
    def evaluations(self) -> int:
        """Network evaluations that it takes in all."""
        return self.n * self.steps


class Outcome(BaseModel):
    """How a job ended."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    problem: Problem | None = None
    """Why it failed."""
    timings: Timings | None = None
    """Where the time of the successful attempt went."""
    sizes: tuple[int, ...] = ()
    """Bytes of each image file."""


class Job(BaseModel):
    """A job as it stands."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    accepted: Accepted
    state: JobState = "queued"
    attempts: int = 0
    """How often the job was begun; handing it back in order takes its attempt back."""
    evaluations: int = 0
    """Network evaluations done in this attempt, as last reported."""
    position: int | None = None
    """Jobs that are ahead of this one in the queue; None when it is not queued."""
    ended: float | None = None
    """When it ended, in seconds since 1970, UTC."""
    outcome: Outcome = Outcome()

    @property
    def id(self) -> str:
        """The job's id."""
        return self.accepted.id


def patient(body: GenerateRequest) -> GenerateRequest:
    """Return the request as a job's: it waits rather than take fewer steps. Raises FieldRefused for a deadline."""
    if body.stream:
        raise FieldRefused("stream", "a job is not waited for; GET /jobs/{id}/events tells how it goes")
    if body.deadline_ms is not None:
        raise FieldRefused(
            "deadline_ms",
            f"deadline_ms is {body.deadline_ms:g}; a job is not waited for and has none, POST /generate keeps one",
        )
    return body.model_copy(update={"allow_degrade": False})


def fingerprint(body: GenerateRequest) -> str:
    """Return what tells whether two bodies are the same."""
    return hashlib.sha256(body.model_dump_json().encode()).hexdigest()


def accept(body: GenerateRequest, wish: Wish, edition: str, charge: Charge | None = None) -> Accepted:
    """Return the job of a patient request that the dial of this edition understands as this wish, nothing left open."""
    filled = patient(body).model_copy(
        update={
            "model": wish.model,
            "steps": wish.steps,
            "seed": wish.seed,
            **dict.fromkeys(("plan", "num_inference_steps", "min_steps", "max_steps")),
        }
    )
    return Accepted(
        id=f"job_{secrets.token_hex(16)}",
        created=time.time(),
        request=filled.model_dump(mode="json", exclude_unset=True, exclude_none=True),
        fingerprint=fingerprint(body),
        model=wish.model,
        edition=edition,
        plan=wish.samples[0].plan,
        student=wish.student,
        steps_requested=wish.steps_requested,
        steps=wish.steps,
        seed=wish.seed,
        n=len(wish.samples),
        output_format=body.output_format,
        charge=charge,
    )


class Backlog(NamedTuple):
    """The jobs that have not ended."""

    jobs: int
    orphans: int
    """Those of them whose edition no living replica serves."""


class JobStore(Protocol):
    """Where jobs wait and results are kept. Every method raises JobsUnavailable when the store cannot be reached.

    A job that was taken belongs to the taker until it is finished, given back or cancelled, or until the taker has not
    renewed it for a lease: then the next one may take it. Accepted jobs are never dropped.
    """

    async def add(self, accepted: Accepted, key: str | None) -> Job | None:
        """Queue a job; return it, or the job that the idempotency key already stands for, or None: the queue is full."""

    async def named(self, key: str) -> Job | None:
        """Return the job that the idempotency key stands for; None when it stands for none."""

    async def find(self, job_id: str) -> Job | None:
        """Return the job; None when it is not known, or no longer."""

    async def image(self, job_id: str, index: int) -> bytes | None:
        """Return an image file of a job that is done."""

    async def cancel(self, job_id: str) -> int | None:
        """End the job if it has not ended; return the evaluations done for it then, None when there was nothing to end."""

    def needs(self, model: str) -> bool:
        """Return whether a job that only this server can draw needs the family."""

    async def backlog(self) -> Backlog:
        """Return how many jobs have not ended."""

    async def end_orphans(self) -> int:
        """Fail the jobs whose edition no replica has served for long; return how many."""

    async def take(self, editions: Collection[str]) -> Job | None:
        """Return the next job of these editions, now running and the caller's; None when there is none."""

    async def renew(self, evaluations: Mapping[str, int], editions: Collection[str]) -> set[str]:
        """Say that the caller lives: job id -> evaluations done for all its jobs, and the editions that it serves.

        Returns the ids of those jobs that are no longer its own.
        """

    async def finish(
        self, job_id: str, state: Literal["done", "failed"], outcome: Outcome, files: Sequence[bytes]
    ) -> bool:
        """End the caller's job; False when it is no longer the caller's, and what it brings is thrown away."""

    async def give_back(self, job_id: str, *, attempted: bool) -> None:
        """Queue the caller's job again, before those that came later; attempted says whether the attempt counts."""

    async def close(self) -> None:
        """Give back whatever the caller still has, and let go of the store."""
