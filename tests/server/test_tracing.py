"""Spans, as a collector gets them from a real server."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from server.tracing import ENDPOINTS, telemetry
from tests.server.processes import serve_names

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Span]]:
    """What a collector of OpenTelemetry's protocol has received; servers started meanwhile send to it."""
    spans: list[Span] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # noqa: N802
            data = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                import gzip

                data = gzip.decompress(data)
            assert self.path == "/v1/traces"
            for resource in ExportTraceServiceRequest.FromString(data).resource_spans:
                spans.extend(span for scope in resource.scope_spans for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield spans
    server.shutdown()


def test_a_request_and_its_stages_are_spans_of_the_clients_trace(family_folder: Path, collector: list[Span]) -> None:
    with serve_names(family_folder, ["--log-format", "json"]) as server:
        answer = httpx2.post(
            f"{server.url}/generate",
            json={"prompt": "a red star on mint", "steps": 4, "seed": 1},
            headers={"traceparent": f"00-{TRACE}-{PARENT}-01"},
        )
        assert answer.status_code == 200
        server.get("/metrics")
        server.stop()
    spans = {span.name: span for span in collector}
    assert spans.keys() == {"POST /generate", "queue", "waves", "encode"}
    request = spans["POST /generate"]
    assert request.trace_id.hex() == TRACE and request.parent_span_id.hex() == PARENT
    for stage in ("queue", "waves", "encode"):
        assert spans[stage].trace_id.hex() == TRACE and spans[stage].parent_span_id == request.span_id
    times = [time for stage in ("queue", "waves", "encode") for time in _times(spans[stage])]
    slack = 1_000_000  # nanoseconds; each span reads the two clocks anew
    assert all(before <= after + slack for before, after in zip(times, times[1:], strict=False))
    assert request.start_time_unix_nano <= times[0] + slack and times[-1] <= request.end_time_unix_nano + slack
    waves = spans["waves"].end_time_unix_nano - spans["waves"].start_time_unix_nano
    assert waves >= 4 * 20_000_000 - slack  # four waves of 20 ms
    facts = {entry.key: entry.value for entry in spans["waves"].attributes}
    assert facts["stepdial.steps"].int_value == 4 and facts["stepdial.model"].string_value == "tiny"
    assert "red" not in str(collector)
    assert all(json.loads(line)["message"] for line in server.lines)
    (line,) = [json.loads(line) for line in server.lines if '"/generate"' in line]
    assert line["trace_id"] == TRACE


def _times(span: Span) -> tuple[int, int]:
    return span.start_time_unix_nano, span.end_time_unix_nano


@pytest.mark.parametrize("name", ENDPOINTS)
def test_nothing_is_recorded_unless_somebody_says_where_to_send_it(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for endpoint in ENDPOINTS:
        monkeypatch.delenv(endpoint, raising=False)
    assert not telemetry()["auto_configure"]
    monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert telemetry()["auto_configure"]
