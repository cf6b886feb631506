"""Tracing: OpenTelemetry spans of a request and its stages, sent where OTEL_EXPORTER_OTLP_ENDPOINT says.

The request's span is FastAPI's own; it continues the client's traceparent. Without an endpoint nothing is recorded.
"""

import os
from collections.abc import Sequence
from time import perf_counter, time_ns

from fastapi.telemetry import TelemetryConfig
from opentelemetry import trace

from server.dial import Wish
from server.journal import QUIET
from server.scheduler import Drawn

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
"""Environment variables of which one turns tracing on; the extra `tracing` must be installed."""

_tracer = trace.get_tracer("stepdial")


def telemetry() -> TelemetryConfig:
    """Return what FastAPI is to record: a span for each request that no machine sends all the time."""
    wanted = any(os.environ.get(name) for name in ENDPOINTS)
    if wanted:
        os.environ.setdefault("OTEL_SERVICE_NAME", "stepdial")
    return {
        "auto_configure": wanted,
        "metrics": False,  # Prometheus has them
        "logs": False,  # the journal has them, with the trace's id
        "operation_spans": False,
        "exclude": lambda scope: scope["path"] in QUIET,
    }


def record_stages(wish: Wish, drawn: Sequence[Drawn], *, encoding: float, done: float) -> None:
    """Record the stages of a request that has been drawn as spans below its own; times are perf_counter's."""
    first = min(image.begun for image in drawn)
    facts: dict[str, str | int | float] = {
        "stepdial.model": wish.model,
        "stepdial.steps": wish.steps,
        "stepdial.student": wish.student,
        "stepdial.images": len(drawn),
    }
    device_seconds = max(image.device_seconds for image in drawn)
    _record("queue", wish.arrived, first, facts)
    _record("waves", first, encoding, facts | {"stepdial.device_seconds": device_seconds})
    _record("encode", encoding, done, facts)


def _record(name: str, began: float, ended: float, facts: dict[str, str | int | float]) -> None:
    epoch = time_ns() - int(perf_counter() * 1e9)
    span = _tracer.start_span(name, start_time=epoch + int(began * 1e9), attributes=facts)
    span.end(epoch + int(ended * 1e9))
