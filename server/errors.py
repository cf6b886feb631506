"""From failures to answers: one table, application/problem+json (RFC 9457), never a traceback or a path."""

import logging
import math
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from server import metrics
from server.failures import (
    ClientGone,
    DeadlinePassed,
    DeadlineUnattainable,
    DeviceLost,
    DrawFailed,
    EditionGone,
    FamilyConflict,
    FieldRefused,
    JobGivenUp,
    JobImageMissing,
    JobsFull,
    JobsUnavailable,
    JobUnknown,
    JobUnreadable,
    KeyRefused,
    KeyReused,
    MemoryExceeded,
    ModelUnknown,
    NotMeasured,
    NotReady,
    Overloaded,
    RateLimited,
    ScopeMissing,
    StepsNotServed,
    TimedOut,
    shown,
)
from server.journal import note
from server.schemas import FieldProblem, Problem

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """How a kind of failure is told, and what the requests metric calls it."""

    status: int
    type: str
    title: str
    outcome: str


TABLE: dict[type[Exception], Answer] = {
    StepsNotServed: Answer(422, "steps-not-served", "This step count is not served", "invalid"),
    FieldRefused: Answer(422, "field-refused", "A field asks for something that is not done here", "invalid"),
    RequestValidationError: Answer(422, "invalid-request", "The request is not valid", "invalid"),
    ModelUnknown: Answer(404, "model-unknown", "No such model", "invalid"),
    FamilyConflict: Answer(409, "family-conflict", "The family cannot be loaded or unloaded now", "invalid"),
    MemoryExceeded: Answer(507, "memory-exceeded", "The family does not fit into the memory allowed", "invalid"),
    KeyRefused: Answer(401, "key-refused", "An API key is needed", "denied"),
    ScopeMissing: Answer(403, "scope-missing", "The API key is not good for this", "denied"),
    RateLimited: Answer(429, "rate-limited", "The rate limit is reached", "rejected"),
    NotMeasured: Answer(404, "not-measured", "Nothing was measured", "invalid"),
    NotReady: Answer(503, "not-ready", "The server is not ready", "rejected"),
    Overloaded: Answer(503, "queue-full", "The queue is full", "rejected"),
    DeadlineUnattainable: Answer(429, "deadline-unattainable", "The deadline cannot be kept", "rejected"),
    DeadlinePassed: Answer(504, "deadline-passed", "The deadline passed", "timeout"),
    TimedOut: Answer(504, "timed-out", "Not drawn in time", "timeout"),
    DrawFailed: Answer(500, "draw-failed", "The device could not draw this", "failed"),
    DeviceLost: Answer(503, "device-lost", "The device is lost", "failed"),
    JobUnknown: Answer(404, "job-unknown", "No such job", "invalid"),
    JobImageMissing: Answer(404, "job-image-missing", "No such image", "invalid"),
    JobsFull: Answer(503, "jobs-full", "Too many jobs are waiting", "rejected"),
    JobsUnavailable: Answer(503, "jobs-unavailable", "Jobs cannot be reached", "rejected"),
    JobGivenUp: Answer(500, "job-given-up", "The job was given up", "failed"),
    JobUnreadable: Answer(500, "job-unreadable", "No replica can read the job", "failed"),
    EditionGone: Answer(410, "edition-gone", "The family of the job is not served any more", "failed"),
    KeyReused: Answer(409, "idempotency-key-reused", "The idempotency key was used with another body", "invalid"),
    ClientGone: Answer(499, "client-gone", "The client has gone", "cancelled"),
}
"""Every failure that has an answer of its own; whatever else is raised is a plain 500."""

STARTING_RETRY_SECONDS = 2
"""When to try again a server that is starting, or one whose replacement is."""


def answer_for(error: Exception) -> Answer:
    """Return the table's entry of the error's class or nearest ancestor, or that of a bug."""
    for ancestor in type(error).__mro__:
        if ancestor in TABLE:
            return TABLE[ancestor]
    return Answer(500, "internal-error", "Something broke", "failed")


def failure_headers(error: Exception) -> dict[str, str]:
    """Return the headers that go with a failure: when to try again, whole seconds, from the backlog where that is why;
    that it is of no use; which key would be of use."""
    if isinstance(error, KeyRefused):
        return {"WWW-Authenticate": 'Bearer error="invalid_token"' if error.given else "Bearer"}
    if isinstance(error, ScopeMissing):
        return {"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{error.scope}"'}
    if isinstance(error, RateLimited):
        return {"Retry-After": str(math.ceil(error.wait_seconds))}
    if isinstance(error, Overloaded | JobsFull):
        return {"Retry-After": str(max(1, math.ceil(error.backlog_seconds)))}
    if isinstance(error, NotReady | DeviceLost | JobsUnavailable):
        return {"Retry-After": str(STARTING_RETRY_SECONDS)}
    if isinstance(error, DeadlineUnattainable | KeyReused):  # OpenAI's clients would send it again, for nothing
        return {"X-Should-Retry": "false"}
    return {}


def problem_response(problem: Problem, headers: dict[str, str] | None = None) -> Response:
    """Return the problem as a response."""
    body = problem.model_dump_json(exclude_none=True, ensure_ascii=True)
    return Response(body, problem.status, headers, "application/problem+json")


def install(app: FastAPI) -> None:
    """Make the app answer every error with problem+json."""
    for kind in TABLE:
        app.add_exception_handler(kind, _invalid if kind is RequestValidationError else failure_response)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, failure_response)


def problem_of(error: Exception) -> Problem:
    """Return the problem that tells of an error."""
    answer = answer_for(error)
    problem = Problem(type=_type(answer.type), title=answer.title, status=answer.status, detail=_detail(error, answer))
    if isinstance(error, FieldRefused):
        problem.errors = [FieldProblem(pointer=f"/{error.field}", detail=str(error))]
    if isinstance(error, StepsNotServed):
        problem.available_steps = list(error.available)
    if isinstance(error, DeadlineUnattainable):
        problem.min_feasible_ms = error.min_feasible_ms
    if isinstance(error, DeadlinePassed):
        problem.deadline_met = False
    return problem


def logged_problem(request: Request, error: Exception) -> Problem:
    """Return the problem that tells of an error; one that is the server's fault is logged."""
    answer = answer_for(error)
    note(request, outcome=answer.outcome)
    if answer.status == 500:
        log.error(
            "%s %s: %s", request.method, getattr(request.scope.get("route"), "path", "-"), answer.title, exc_info=error
        )
    return problem_of(error)


async def failure_response(request: Request, error: Exception) -> Response:
    """Return the answer to a failure."""
    if isinstance(error, ClientGone):
        note(request, outcome=answer_for(error).outcome)
        return Response(status_code=499)
    return problem_response(logged_problem(request, error), failure_headers(error))


def _detail(error: Exception, answer: Answer) -> str:
    """The failure's own sentence; of a bug nothing, since its words were not written for strangers."""
    if answer.type == "internal-error":
        return "The server met an error that it did not expect; it is in the server's log."
    return str(error) or answer.title


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    metrics.count_unread(request.url.path, "invalid")
    if error.errors()[0]["loc"][:1] == ("body",) and not _is_json(request):
        return http_problem(HTTPException(415, "send the body with Content-Type: application/json"))
    sentences: dict[str, list[str]] = {}
    for item in error.errors():
        pointer, sentence = _blame(item)
        sentences.setdefault(pointer, []).append(sentence)
    got = {_pointer(item): _got(item) for item in error.errors()}
    fields = [
        FieldProblem(pointer=pointer, detail=got[pointer] + ", or ".join(found)) for pointer, found in sentences.items()
    ]
    answer = TABLE[RequestValidationError]
    detail = "; ".join(f"{field.pointer or 'body'}: {field.detail}" for field in fields[:3])
    return problem_response(
        Problem(type=_type(answer.type), title=answer.title, status=422, detail=detail, errors=fields)
    )


def _is_json(request: Request) -> bool:
    """Whether the body is said to be JSON, or there is none."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not media_type:
        return request.headers.get("content-length", "0") == "0" and "transfer-encoding" not in request.headers
    return media_type == "application/json" or media_type.endswith("+json")


def _pointer(item: dict[str, Any]) -> str:
    """The field's: every field is flat, what follows in pydantic's location names a branch of a union."""
    field = [str(part)[:100] for part in item["loc"][1:2] if isinstance(part, str)]
    return "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in field)


def _got(item: dict[str, Any]) -> str:
    """What was there instead. Nothing of headers or of fields that nobody knows: those may hold secrets."""
    told = item["loc"][0] != "header" and item["type"] not in ("missing", "extra_forbidden", "json_invalid")
    return f"got {shown(item['input'])}, " if told and _pointer(item) else ""


def _blame(item: dict[str, Any]) -> tuple[str, str]:
    """Pointer and sentence of one of pydantic's errors."""
    pointer = _pointer(item)
    if item["type"] == "json_invalid":
        return "", "the body is not valid JSON"
    if item["type"] == "missing":
        return pointer, "it is needed" if pointer else "a JSON object is needed"
    if item["type"] == "model_attributes_type":
        return pointer, "it should be a JSON object"
    if item["type"] == "extra_forbidden":
        return pointer, "there is no such field"
    return pointer, item["msg"].replace("Input should", "it should")


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = http_problem(error)
    if error.status_code == 405:  # the framework names the methods of the first route of a path, not of all
        response.headers["Allow"] = ", ".join(sorted(_methods(request)))
    return response


def _methods(request: Request) -> set[str]:
    """Return the methods that the routes of this path know."""
    routers = [request.app.router, *(getattr(route, "original_router", None) for route in request.app.routes)]
    routes = (route for router in routers if router for route in router.routes)
    known = (route for route in routes if route.matches(request.scope)[0] is not Match.NONE)
    return set().union(*(getattr(route, "methods", None) or () for route in known))


def http_problem(error: HTTPException) -> Response:
    """Return the problem of an error that the framework found: unknown path, wrong method, a body it cannot take."""
    slugs = {
        404: "not-found",
        405: "method-not-allowed",
        408: "too-slow",
        413: "body-too-large",
        415: "unsupported-media-type",
    }
    slug = slugs.get(error.status_code, "bad-request")
    title = slug.replace("-", " ").capitalize()
    problem = Problem(type=_type(slug), title=title, status=error.status_code, detail=str(error.detail))
    return problem_response(problem, dict(error.headers or {}))


def _type(slug: str) -> str:
    return f"/problems/{slug}"
