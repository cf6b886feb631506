"""OpenAI's error object: every problem that a path under /v1 is answered with, in the words of OpenAI's clients."""

from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.contract import problems
from server.openai_schemas import ErrorAnswer, ErrorDetail
from server.schemas import Problem

PREFIX = "/v1/"
"""Every path of the facade begins with it."""
STATUSES = {422: 400}
"""Statuses that OpenAI's API does not use, and those it uses instead."""
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
CODES = {"model-unknown": "model_not_found"}
"""Kinds of problem that have a name of OpenAI's."""


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI responses of these error statuses."""
    documented = problems(*statuses)
    for status, response in documented.items():
        if status == 400:
            response["description"] = "The request is not valid; `param` names the field"
        response["model"] = ErrorAnswer
        del response["content"]
    return documented


def error_answer(problem: Problem) -> ErrorAnswer:
    """Return the problem as OpenAI's error object."""
    slug = problem.type.rpartition("/")[2]
    default = "server_error" if problem.status >= 500 else "invalid_request_error"
    pointer = problem.errors[0].pointer if problem.errors else "/model" if slug == "model-unknown" else ""
    return ErrorAnswer(
        error=ErrorDetail(
            message=problem.detail,
            type=TYPES.get(problem.status, default),
            param=pointer.removeprefix("/").replace("~1", "/").replace("~0", "~") or None,
            code=CODES.get(slug, slug.replace("-", "_")),
        )
    )


class OpenAIErrors:
    """ASGI middleware that turns application/problem+json under /v1 into OpenAI's error object; headers stay."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and the answer back."""
        if scope["type"] != "http" or not scope["path"].startswith(PREFIX):
            return await self._app(scope, receive, send)
        start: Message | None = None
        body = b""

        async def translate(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start" and _is_problem(message):
                start = message
            elif start is None:
                await send(message)
            else:
                body += message.get("body", b"")
                if not message.get("more_body"):
                    await _send_error(start, Problem.model_validate_json(body), send)

        await self._app(scope, receive, translate)


def _is_problem(start: Message) -> bool:
    return MutableHeaders(scope=start).get("content-type") == "application/problem+json"


async def _send_error(start: Message, problem: Problem, send: Send) -> None:
    body = error_answer(problem).model_dump_json(ensure_ascii=True).encode()
    headers = MutableHeaders(scope=start)
    headers["content-type"], headers["content-length"] = "application/json", str(len(body))
    await send({**start, "status": STATUSES.get(problem.status, problem.status)})
    await send({"type": "http.response.body", "body": body})
