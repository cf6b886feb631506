"""Every metric, declared once. Base units; the label `model` is a family's name, `network` a member's, `steps` how many
network evaluations an image takes."""

from collections.abc import Iterable

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics

disable_created_metrics()  # when a series began is a series more for each that counts, and Prometheus has no use for it

LATENCY_BUCKETS = tuple(float(f"{0.001 * 1.5**power:.3g}") for power in range(32))
"""From 1 ms to five minutes, each 1.5 times the one before: fine enough to see that 4 steps cost 4 times 1 step."""

REQUESTS = Counter("stepdial_requests", "Requests to draw, by how they ended", ["model", "steps", "outcome"])
REQUEST_SECONDS = Histogram(
    "stepdial_request_duration_seconds",
    "From the body read to the images encoded; jobs, which nobody waits for, are left out",
    ["model", "steps"],
    buckets=LATENCY_BUCKETS,
)
STAGE_SECONDS = Histogram(
    "stepdial_stage_duration_seconds",
    "Where a request's time went: queue (waiting for waves), device (in waves), encode",
    ["model", "steps", "stage"],
    buckets=LATENCY_BUCKETS,
)
IMAGES = Counter("stepdial_images", "Images drawn and encoded", ["model", "steps_requested", "steps"])
REJECTED = Counter("stepdial_rejected", "Requests refused at the door", ["reason"])
LIMIT_ERRORS = Counter("stepdial_limit_errors", "Times that Redis could not be asked for a rate limit")

DEGRADED = Counter(
    "stepdial_degraded", "Requests that consented to fewer steps and got them", ["model", "steps_requested", "reason"]
)
BROWNOUT_LEVEL = Gauge("stepdial_brownout_level", "0 is none; each level halves the steps of consenting requests")
DEADLINES = Counter(
    "stepdial_deadlines", "Accepted requests with a deadline, by whether it was kept", ["model", "steps", "result"]
)

WAVE_SECONDS = Histogram(
    "stepdial_wave_duration_seconds",
    "One network evaluation over a wave and the update after it",
    ["model", "network"],
    buckets=LATENCY_BUCKETS,
)
WAVE_SAMPLES = Histogram(
    "stepdial_wave_samples",
    "Samples in a wave, whatever their steps; told once for each step count among them",
    ["model", "network", "steps"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
)
WAVE_ROWS = Counter(
    "stepdial_wave_rows",
    "Rows that waves had after padding to a bucket, shared equally by their samples",
    ["model", "network", "steps"],
)
WAVE_PADDING = Counter(
    "stepdial_wave_padding",
    "Rows of waves that only padded them to a bucket, shared equally by their samples",
    ["model", "network", "steps"],
)
DEVICE_SECONDS = Counter(
    "stepdial_device_seconds",
    "Time spent in waves, shared equally by their samples; its rate is utilisation",
    ["model", "network", "steps"],
)
WASTED_EVALUATIONS = Counter(
    "stepdial_wasted_evaluations", "Evaluations of samples that were never delivered", ["reason"]
)
SHORTENED_SAMPLES = Counter(
    "stepdial_shortened_samples", "Samples that ended by a shorter plan they had consented to", ["reason"]
)

SAMPLES_WAITING = Gauge("stepdial_num_samples_waiting", "Accepted samples that were in no wave yet")
SAMPLES_RUNNING = Gauge("stepdial_num_samples_running", "Accepted samples between their first wave and their answer")
PENDING_EVALUATIONS = Gauge("stepdial_pending_evaluations", "Evaluations that accepted samples still need")
PENDING_LIMIT = Gauge("stepdial_pending_evaluations_limit", "Pending evaluations above which requests are refused")
BACKLOG_SECONDS = Gauge("stepdial_backlog_seconds", "Time the pending evaluations will take, as measured")

JOBS = Counter("stepdial_jobs", "Jobs that this replica accepted, refused, finished or lost to another", ["outcome"])
JOBS_BEGUN = Counter("stepdial_jobs_begun", "Jobs begun by this replica; again: by somebody before, too", ["again"])
JOBS_BACKLOG = Gauge("stepdial_jobs_backlog", "Jobs that wait or run, over all replicas")
JOBS_ORPHANS = Gauge(
    "stepdial_jobs_orphans", "Jobs whose family, as it was when they were accepted, no living replica serves"
)
JOBS_RUNNING = Gauge("stepdial_jobs_running", "Jobs that this replica draws")
JOBS_REACHABLE = Gauge("stepdial_jobs_reachable", "1 while the job store answers")

CACHE_REQUESTS = Counter(
    "stepdial_cache_requests", "Requests by what the result cache had for them: hit, miss, bypass, error", ["result"]
)
CACHE_BYTES = Gauge("stepdial_cache_bytes", "Image files in the result cache in memory")

BUILD_INFO = Gauge("stepdial_build_info", "1 for the code and the device that serve", ["commit", "device"])
READY = Gauge("stepdial_ready", "1 once every network is loaded, warm and checked")
STUDENT_INFO = Gauge("stepdial_student_info", "1 for each network served", ["model", "network", "sha256"])
STUDENT_QUALITY = Gauge(
    "stepdial_student_quality",
    "Quality of a dial position, from the frontier file",
    ["model", "steps", "metric", "dataset"],
)
FRONTIER_SECONDS = Gauge(
    "stepdial_frontier_latency_seconds",
    "Time of one image alone at a dial position, from the frontier file",
    ["model", "steps"],
)
FRONTIER_MEASURED = Gauge(
    "stepdial_frontier_measured_timestamp_seconds",
    "When a dial position's quality was measured, from the frontier file",
    ["model", "steps"],
)
FRONTIER_TRAINED = Gauge(
    "stepdial_frontier_trained_timestamp_seconds",
    "When the networks of a measured dial position were trained, the last of them; after it was measured: measure again",
    ["model", "steps"],
)

DRAWING = frozenset({"/generate", "/v1/images/generations"})
"""Paths of requests to draw."""


def count_unread(path: str, outcome: str) -> None:
    """Count a request that ended before its body was understood, if it was one to draw or to order."""
    if path in DRAWING:
        REQUESTS.labels("none", "none", outcome).inc()
    elif path == "/jobs":
        JOBS.labels(outcome).inc()


def begin(model: str, positions: Iterable[object]) -> None:
    """Let the requests of a family count from 0 on, at each of these positions."""
    for steps in positions:
        for outcome in ("ok", "rejected", "timeout", "cancelled", "failed"):
            REQUESTS.labels(model, str(steps), outcome)


for _counter, _values in {
    WASTED_EVALUATIONS: ("cancelled", "failed"),
    SHORTENED_SAMPLES: ("brownout", "deadline"),
    JOBS: ("accepted", "invalid", "denied", "rejected", "done", "failed", "cancelled", "lost"),
    JOBS_BEGUN: ("false", "true"),
    CACHE_REQUESTS: ("hit", "miss", "bypass", "error"),
}.items():
    for _value in _values:
        _counter.labels(_value)  # from 0 on: rate() cannot see the first event of a series that begins with it
