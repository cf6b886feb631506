"""The OpenAPI document: what the framework derives, plus the problems that every endpoint answers with."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from server.schemas import Problem

DESCRIPTIONS = {
    400: "The request cannot be read",
    404: "No such model, or nothing measured",
    413: "The body is too large",
    415: "The body is not application/json",
    422: "The request is not valid; `errors` points at the fields, `available_steps` lists the dial",
    429: "Nothing that the request allows can be ready by its deadline; `min_feasible_ms` could be promised now",
    500: "The device could not draw this",
    503: "The queue is full, or the server is starting or stopping; `Retry-After` says when to try again",
    504: "Not drawn by the request's deadline, or within the server's time limit",
}
REFERENCE = {"$ref": "#/components/schemas/Problem"}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI responses of these error statuses."""
    return {status: _problem(status) for status in statuses}


def _problem(status: int) -> dict[str, Any]:
    response: dict[str, Any] = {
        "description": DESCRIPTIONS[status],
        "content": {"application/problem+json": {"schema": REFERENCE}},
    }
    if status == 503:
        response["headers"] = {"Retry-After": {"description": "Seconds", "schema": {"type": "integer"}}}
    return response


def describe(app: FastAPI) -> None:
    """Give the app an OpenAPI document that knows the Problem schema."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
            document["components"]["schemas"] |= schema.pop("$defs") | {"Problem": schema}
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the document
