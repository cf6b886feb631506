"""The journal: one line per request, and every line marked with the request and the trace that it belongs to."""

import json
import logging
import re
import secrets
from contextvars import ContextVar
from datetime import UTC, datetime
from time import perf_counter
from typing import Any, Literal, NamedTuple

from fastapi import Request
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("server.access")

SANE_ID = re.compile(r"[A-Za-z0-9._:+/=@-]{1,128}")
"""Request ids that are taken from clients and balancers, which like colons and base64; any other is replaced."""
QUIET = ("/livez", "/readyz", "/metrics")
"""Routes that machines ask for all the time; their lines are at level debug."""


class Mark(NamedTuple):
    """What a request is known by."""

    request_id: str
    """X-Request-ID, from the client or a balancer, or the trace id."""
    trace_id: str
    """The W3C trace id, 32 hexadecimal digits: the client's, from traceparent, or one made here."""


_mark: ContextVar[Mark | None] = ContextVar("mark", default=None)


def note(request: Request, **facts: Any) -> None:
    """Add facts to the request's line: model, steps, outcome, key."""
    request.scope.get("journal", {}).update(facts)


class Journal:
    """ASGI middleware, the outermost: marks the request, returns X-Request-ID, and logs its line when it is done.

    Never logged: bodies, so no prompt; the Authorization header, so no key; paths, which a client can fill with
    anything, so that the route's template stands for them.
    """

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and log how it ended."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began, status, mark = perf_counter(), 0, _mark_of(Headers(scope=scope))
        facts: dict[str, Any] = {}
        scope["journal"] = facts
        token = _mark.set(mark)

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = mark.request_id
            await send(message)

        try:
            await self._app(scope, receive, send_marked)
        finally:
            route = getattr(scope.get("route"), "path", "-")
            line = {"method": scope["method"], "route": route, "status": status or 500}
            line |= {"seconds": round(perf_counter() - began, 6), "outcome": _outcome(status)} | facts
            log.log(logging.DEBUG if route in QUIET else logging.INFO, "request", extra={"facts": line})
            _mark.reset(token)


def _outcome(status: int) -> str:
    """How a request ended of which nobody noted it."""
    return "ok" if 200 <= status < 400 else "invalid" if 400 <= status < 500 else "failed"


def _mark_of(headers: Headers) -> Mark:
    """Mark a request: the trace is the one that is being recorded, or the client's, or a new one."""
    span = trace.get_current_span().get_span_context()
    if not span.is_valid:
        context = TraceContextTextMapPropagator().extract(dict(headers))
        span = trace.get_current_span(context).get_span_context()
    trace_id = trace.format_trace_id(span.trace_id) if span.is_valid else secrets.token_hex(16)
    asked = headers.get("x-request-id", "")
    return Mark(asked if SANE_ID.fullmatch(asked) else trace_id, trace_id)


def configure(level: str, form: Literal["text", "json"]) -> None:
    """Send the log of this process to standard error, from that level on, in that form."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler])


class TextFormatter(logging.Formatter):
    """Lines for people: time, level, logger, message, facts, and the request's mark."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """Return the line, before any traceback."""
        facts = dict(getattr(record, "facts", {}))
        if mark := _mark.get():
            facts |= mark._asdict()
        return " ".join([super().formatMessage(record), *(f"{name}={value}" for name, value in facts.items())])


class JsonFormatter(logging.Formatter):
    """Lines for machines: one JSON object each, a traceback inside it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= getattr(record, "facts", {})
        if mark := _mark.get():
            line |= mark._asdict()
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
