"""Every metric is declared in one place, documented, served, and moves under the traffic that should move it.

A new metric needs a row in docs/serving.md and one in MOVED_BY below.
"""

import json
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx2
import pytest
import redis
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from diffusion.family import open_family
from diffusion.files import write_json
from diffusion.frontier import Rescue
from diffusion.manifest import FRONTIER
from diffusion.plans import Hop, Plan
from server import metrics
from tests.server.desk import Desk, value
from tests.server.processes import ROOT, ServerProcess, serve_names, wait_until
from tests.server.redis_server import RedisServer

Traffic = Callable[[ServerProcess], Iterator[None]]
"""Does something to a server, and yields when there is something to see before it is over."""
Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]
"""(name, labels) -> value."""
WISH = {"prompt": "a red star on mint"}
EARLY_BROWNOUT = ["--brownout-high-seconds", "0.2", "--brownout-low-seconds", "0.1"]
CACHED = ["--cache-bytes", "1000000"]


def start(server: ServerProcess) -> Iterator[None]:
    """Do nothing: what this moves has its value since the server is ready."""
    yield


def three_images(server: ServerProcess) -> Iterator[None]:
    """Have three images of one wish drawn: padded to a wave of four rows."""
    assert server.ask(**WISH, steps=4, n=3).status_code == 200
    yield


def a_full_queue(server: ServerProcess) -> Iterator[None]:
    """Fill the queue to the brim, be refused, and leave."""
    with asking(server, steps=128, n=16), asking(server, steps=128, n=16):
        wait_until(lambda: server.metric("stepdial_pending_evaluations") > 3000)
        wait_until(lambda: server.metric("stepdial_num_samples_running") > 0)
        yield
        assert server.ask(**WISH, steps=512, n=8).status_code == 503
    wait_until(lambda: server.metric("stepdial_pending_evaluations") == 0)


@contextmanager
def asking(server: ServerProcess, **wish: int) -> Iterator[None]:
    """Ask, and hang up at the end of the block."""
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps(WISH | wish).encode()
    head = (
        f"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + body)
        yield


def a_deadline(server: ServerProcess) -> Iterator[None]:
    """Have an image drawn within a minute."""
    assert server.ask(**WISH, steps=4, deadline_ms=60_000).status_code == 200
    yield


def a_brownout(server: ServerProcess) -> Iterator[None]:
    """Begin an image of ten seconds that may be shortened, and go on asking: fewer and fewer steps are given."""
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(server.ask, **WISH, steps=512, allow_degrade=True)
        wait_until(lambda: server.metric("stepdial_num_samples_running") > 0)
        wait_until(lambda: bool(server.ask(**WISH, steps=4, allow_degrade=True).json()["degraded"]))
        yield
        assert long.result().json()["steps_used"] == 385


def a_job(server: ServerProcess) -> Iterator[None]:
    """Have a job begun that takes five seconds, and take it back."""
    job = httpx2.post(server.url + "/jobs", json=WISH | {"steps": 256})
    assert job.status_code == 202
    wait_until(lambda: server.metric("stepdial_jobs_running") > 0 and server.metric("stepdial_jobs_backlog") > 0)
    yield
    assert httpx2.delete(server.url + job.headers["location"]).is_success
    wait_until(lambda: server.metric("stepdial_pending_evaluations") == 0)


def an_image_to_keep(server: ServerProcess) -> Iterator[None]:
    """Have an image of a seed drawn by a server that has a result cache."""
    assert server.ask(**WISH, steps=1, seed=1).status_code == 200
    yield


def a_limit_that_redis_does_not_know(server: ServerProcess) -> Iterator[None]:
    """Be drawn for without a rate limit, since nobody can say what is left of it."""
    assert server.ask(**WISH, steps=1).status_code == 200
    yield


def a_job_of_a_family_that_is_gone(server: ServerProcess) -> Iterator[None]:
    """Let a job wait for a family that no replica has, and take it away again."""
    arguments = server.process.args
    assert isinstance(arguments, list)
    with redis.Redis.from_url(str(arguments[arguments.index("--redis-url") + 1]), protocol=2) as client:
        client.xadd("{stepdial}:jobs:gone@1", {"id": "job"})
        client.zadd("{stepdial}:editions", {"gone@1": time.time() - 60})
        wait_until(lambda: server.metric("stepdial_jobs_orphans") == 1)
        yield
        client.delete("{stepdial}:jobs:gone@1")


MOVED_BY: dict[str, Traffic] = {
    "requests_total": three_images,
    "request_duration_seconds": three_images,
    "stage_duration_seconds": three_images,
    "images_total": three_images,
    "rejected_total": a_full_queue,
    "limit_errors_total": a_limit_that_redis_does_not_know,
    "deadlines_total": a_deadline,
    "degraded_total": a_brownout,
    "brownout_level": a_brownout,
    "shortened_samples_total": a_brownout,
    "wave_duration_seconds": three_images,
    "wave_samples": three_images,
    "wave_rows_total": three_images,
    "wave_padding_total": three_images,
    "device_seconds_total": three_images,
    "wasted_evaluations_total": a_full_queue,
    "num_samples_waiting": a_full_queue,
    "num_samples_running": a_full_queue,
    "pending_evaluations": a_full_queue,
    "pending_evaluations_limit": start,
    "jobs_total": a_job,
    "jobs_begun_total": a_job,
    "jobs_backlog": a_job,
    "jobs_running": a_job,
    "jobs_orphans": a_job_of_a_family_that_is_gone,
    "jobs_reachable": start,
    "cache_requests_total": an_image_to_keep,
    "cache_bytes": an_image_to_keep,
    "backlog_seconds": a_full_queue,
    "ready": start,
    "build_info": start,
    "student_info": start,
    "student_quality": start,
    "frontier_latency_seconds": start,
    "frontier_measured_timestamp_seconds": start,
    "frontier_trained_timestamp_seconds": start,
}
"""Name without the prefix -> what moves it."""
PREFIX = "stepdial_"


def declared() -> dict[str, set[str]]:
    """Name without the prefix -> labels, of every metric that server/metrics.py declares."""
    found = {}
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            (family,) = metric.describe()
            assert family.name.startswith(PREFIX)
            total = "_total" if family.type == "counter" else ""
            found[family.name.removeprefix(PREFIX) + total] = set(metric._labelnames)
    return found


def documented() -> dict[str, set[str]]:
    """The same of every metric that docs/serving.md has in its table."""
    section = (ROOT / "docs" / "serving.md").read_text().split("\n## Metrics\n")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    names = [found for cell in cells for found in re.findall(r"`(\w+)(?:\{([\w,]+)\})?`", cell)]
    assert len(names) == len(dict(names)), "a metric is documented twice"
    return {name: set(labels.split(",")) - {""} for name, labels in names}


def scrape(server: ServerProcess) -> dict[str, Series]:
    """Name without the prefix -> its series, off /metrics."""
    found: dict[str, Series] = {}
    for family in text_string_to_metric_families(server.get("/metrics").text):
        name = family.name.removeprefix(PREFIX) + ("_total" if family.type == "counter" else "")
        found[name] = {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in family.samples}
    return found


def movers(server: ServerProcess, traffic: Traffic) -> set[str]:
    """Let the traffic happen and return the metrics that were different at any moment of it."""
    scrapes = [scrape(server)]
    for _ in traffic(server):
        scrapes.append(scrape(server))
    scrapes.append(scrape(server))
    return {name for name in scrapes[0] if any(later[name] != scrapes[0][name] for later in scrapes[1:])}


@pytest.fixture(scope="module")
def slow_server(family_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that takes 20 ms a wave, browns out early, has a result cache, and may end an image of 512 steps on a student."""
    folder = shutil.copytree(family_folder, tmp_path_factory.mktemp("rescued") / "tiny")
    family = open_family(folder)
    assert family.frontier
    first = family.frontier.positions[0]
    hops = (*family.positions[512].hops[:384], Hop(member="student-4", t=0.25, s=0.0))
    rescue = Rescue(
        steps=512, plan=Plan(hops=hops), samples=1, seeds=(0,), frechet=first.frechet, floor=first.floor,
        measured=first.measured,
    )  # fmt: skip
    write_json(folder, FRONTIER, family.frontier.model_copy(update={"rescues": (rescue,)}))
    with serve_names(folder, [*EARLY_BROWNOUT, *CACHED]) as server:
        yield server


@pytest.fixture(scope="module")
def cut_off_server(family_folder: Path) -> Iterator[ServerProcess]:
    """A server with a rate limit whose Redis is not there."""
    limited = ["--redis-url", "redis://127.0.0.1:9/0", "--evaluations-per-minute", "1000"]
    with serve_names(family_folder, limited) as server:
        yield server


@pytest.fixture(scope="module")
def sharing_server(family_folder: Path, redis_process: RedisServer) -> Iterator[ServerProcess]:
    """A server whose jobs are in a Redis."""
    with serve_names(family_folder, ["--redis-url", redis_process.url]) as server:
        yield server


@pytest.fixture(scope="module")
def moved(
    real_server: ServerProcess,
    slow_server: ServerProcess,
    cut_off_server: ServerProcess,
    sharing_server: ServerProcess,
) -> dict[Traffic, set[str]]:
    """Traffic -> the metrics that it moved on a real server; a start moves what is not 0 any more."""
    where = {traffic: slow_server for traffic in (a_job, a_brownout, an_image_to_keep)}
    where[a_limit_that_redis_does_not_know] = cut_off_server
    where[a_job_of_a_family_that_is_gone] = sharing_server
    traffics = [traffic for traffic in dict.fromkeys(MOVED_BY.values()) if traffic is not start]
    found = {traffic: movers(where.get(traffic, real_server), traffic) for traffic in traffics}
    nonzero = {name for name, series in scrape(real_server).items() if any(series.values())}
    return found | {start: nonzero}


def test_the_documents_name_every_metric_with_its_labels_and_no_other() -> None:
    assert documented() == declared()


def test_no_document_names_a_metric_that_does_not_exist() -> None:
    documents = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").rglob("*.md")]
    named = {name for file in documents for name in re.findall(r"\bstepdial_(\w+)", file.read_text())}
    known = {name + suffix for name in declared() for suffix in ("", "_bucket", "_count", "_sum")}
    assert named <= known


def test_every_metric_has_traffic_that_should_move_it() -> None:
    assert MOVED_BY.keys() == declared().keys()


@pytest.mark.parametrize("name", declared())
def test_a_metric_is_served_and_moves_under_the_traffic_that_should_move_it(
    name: str, moved: dict[Traffic, set[str]]
) -> None:
    assert name in MOVED_BY, "add what moves this metric to MOVED_BY"
    assert name in moved[MOVED_BY[name]], f"{MOVED_BY[name].__name__} did not move it"


def test_students_qualities_are_served_beside_their_latencies(real_server: ServerProcess) -> None:
    three_images(real_server)
    found = scrape(real_server)
    qualities = {dict(labels)["steps"] for _, labels in found["student_quality"]}
    latencies = {dict(labels)["steps"] for _, labels in found["request_duration_seconds"]}
    assert latencies and latencies <= qualities


def test_latency_buckets_reach_from_a_millisecond_to_minutes() -> None:
    buckets = metrics.LATENCY_BUCKETS
    assert buckets[0] == 0.001 and buckets[-1] > 240
    assert all(1.45 < above / below < 1.55 for below, above in zip(buckets, buckets[1:], strict=False))


def test_a_wave_is_shared_by_the_step_counts_of_its_samples(desk: Desk) -> None:
    def told(name: str, **labels: str) -> float:
        return value(desk, PREFIX + name, model="tiny", network="teacher", **labels)

    def totals() -> tuple[float, float]:
        return told("device_seconds_total"), told("wave_duration_seconds_sum")

    device, waves = totals()
    samples, seen = told("wave_samples_sum", steps="32"), told("wave_samples_count", steps="32")
    desk.device.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(desk.ask, WISH | {"steps": steps}) for steps in (64, 32)]
        wait_until(lambda: value(desk, "stepdial_pending_evaluations") >= 95)  # the first wave may be under way
        desk.device.gate.set()
    assert [answer.result().status_code for answer in answers] == [200, 200]
    after, flown = totals()
    assert after - device == pytest.approx(flown - waves) and told("device_seconds_total", steps="64") > 0
    assert told("wave_samples_count", steps="32") == seen + 32  # as many waves as hops, and in most of them
    assert told("wave_samples_sum", steps="32") > samples + 60  # there was one of 64 steps, too


def test_rows_without_padding_are_the_evaluations_that_were_drawn(real_server: ServerProcess) -> None:
    def evaluations() -> float:
        return real_server.metric("stepdial_wave_rows_total") - real_server.metric("stepdial_wave_padding_total")

    before = evaluations()
    assert real_server.ask(**WISH, steps=4, n=3).status_code == 200
    assert real_server.ask(**WISH, steps=2).status_code == 200
    assert evaluations() - before == pytest.approx(4 * 3 + 2)


def test_images_are_told_by_what_was_asked_for_and_what_they_took(desk: Desk) -> None:
    before = value(desk, "stepdial_images_total", model="tiny", steps_requested="auto", steps="2")
    answer = desk.ask(WISH | {"steps": "auto", "max_steps": 2, "n": 3})
    assert answer.json()["steps_used"] == 2
    assert value(desk, "stepdial_images_total", model="tiny", steps_requested="auto", steps="2") == before + 3


def test_a_job_is_drawn_but_is_no_latency(desk: Desk) -> None:
    told = ["stepdial_images_total", "stepdial_request_duration_seconds_count", "stepdial_stage_duration_seconds_count"]
    images, requests, stages = (value(desk, name) for name in told)
    job = desk.client.post("/jobs", json=WISH | {"steps": 1, "n": 2})
    wait_until(lambda: desk.client.get(job.headers["location"]).json()["state"] == "done")
    assert [value(desk, name) for name in told] == [images + 2, requests, stages]


def test_only_requests_to_draw_count_as_such(desk: Desk) -> None:
    def invalid() -> tuple[float, float]:
        jobs = value(desk, "stepdial_jobs_total", outcome="invalid")
        return value(desk, "stepdial_requests_total", model="none", steps="none", outcome="invalid"), jobs

    draws, jobs = invalid()
    bad = {"prompt": 7}
    for path in ("/estimate", "/generate", "/v1/images/generations", "/jobs"):
        assert desk.client.post(path, json=bad).status_code in (400, 422), path
    assert invalid() == (draws + 2, jobs + 1)


def test_what_can_be_counted_is_there_before_it_happens_and_when_it_began_is_not(desk: Desk) -> None:
    text = desk.client.get("/metrics").text
    assert 'stepdial_requests_total{model="tiny",outcome="failed",steps="512"}' in text
    assert 'stepdial_rejected_total{reason="queue_full"}' in text
    assert 'stepdial_wasted_evaluations_total{reason="cancelled"}' in text
    assert not re.search(r"^stepdial_\w+_created", text, re.MULTILINE)


def test_a_frontier_says_when_it_was_measured_and_how_new_its_networks_are(desk: Desk) -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    assert value(desk, "stepdial_frontier_measured_timestamp_seconds", model="tiny", steps="4") == at
    assert value(desk, "stepdial_frontier_trained_timestamp_seconds", model="tiny", steps="4") == at
    assert value(desk, "stepdial_frontier_latency_seconds", model="tiny", steps="4") == pytest.approx(0.012)
