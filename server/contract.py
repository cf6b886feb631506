"""The OpenAPI document: what the framework derives, plus the problems that every endpoint answers with."""

import json
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from server.schemas import Problem

DESCRIPTIONS = {
    400: "The request cannot be read",
    401: "This server wants an API key, and the request carries none that it knows",
    403: "The API key lacks the scope that this takes",
    404: "No such model or job, or nothing measured",
    408: "The body took too long to arrive",
    409: "The family's state does not allow this; or the idempotency key was used with another body, `x-should-retry: false`",
    413: "The body is too large",
    415: "The body is not application/json",
    422: "The request is not valid; `errors` points at the fields, `available_steps` lists the dial",
    429: (
        "The rate limit is reached, `Retry-After` says when this would be granted; or nothing that the request allows "
        "can be ready by its deadline, `min_feasible_ms` could be promised now"
    ),
    500: "The device could not draw this",
    503: "The queue is full, jobs cannot be reached, or the server is starting or stopping; `Retry-After` says when to try again",
    504: "Not drawn by the request's deadline, or within the server's time limit",
    507: "The family does not fit into the memory allowed; `detail` names the sizes",
}
REFERENCE = {"$ref": "#/components/schemas/Problem"}


EVENTS: dict[str, Any] = {
    "text/event-stream": {
        "itemSchema": {
            "type": "object",
            "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
            "required": ["event", "data"],
        }
    }
}
"""The content of an answer that is server-sent events."""


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI responses of these error statuses."""
    return {status: _problem(status) for status in statuses}


def described(headers: Mapping[str, str]) -> dict[str, Any]:
    """Return the OpenAPI headers of a response, from their names and what they say."""
    return {name: {"description": text, "schema": {"type": "string"}} for name, text in headers.items()}


def _problem(status: int) -> dict[str, Any]:
    response: dict[str, Any] = {
        "description": DESCRIPTIONS[status],
        "content": {"application/problem+json": {"schema": REFERENCE}},
    }
    if status in (429, 503):
        response["headers"] = {"Retry-After": {"description": "Seconds", "schema": {"type": "integer"}}}
    return response


def document_text(app: FastAPI) -> str:
    """Return the OpenAPI document as it is committed: docs/openapi.json."""
    return json.dumps(app.openapi(), indent=2) + "\n"


def describe(app: FastAPI) -> None:
    """Give the app an OpenAPI document that knows the Problem schema."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            _forget_the_frameworks_own_errors(document)
            schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
            document["security"] = [{}, {"key": []}]  # a key is wanted only where the server has a file of keys
            components = document.setdefault("components", {})
            components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            components["schemas"] = components.get("schemas", {}) | schema.pop("$defs") | {"Problem": schema}
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the document


def _forget_the_frameworks_own_errors(document: dict[str, Any]) -> None:
    """Take out the 422 that the framework adds to every operation with input: none is answered in that shape."""
    own = {"$ref": "#/components/schemas/HTTPValidationError"}
    for operation in (operation for path in document["paths"].values() for operation in path.values()):
        invalid = operation["responses"].get("422", {}).get("content", {}).get("application/json", {})
        if invalid.get("schema") == own:
            del operation["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
