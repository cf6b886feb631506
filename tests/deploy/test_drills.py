"""Drills: a replica of a real stack is killed and no accepted job is lost; and every promise of a drill can be BROKEN."""

import asyncio
import os
import re
import shutil
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer

from benchmarks.checks.verdict import Finding
from benchmarks.load.client import Client
from deploy.drills.commands import main
from deploy.drills.compose import compose
from deploy.drills.drill import fetch_again
from deploy.drills.faults import DRILLS, gone_and_back
from deploy.drills.load import Load
from deploy.drills.loopback import SHUTDOWN_DELAY_SECONDS
from deploy.drills.orders import Order, Unexpected
from deploy.drills.promises import findings
from deploy.drills.result import Attempted, DrillResult, Jobs, Recovery, Requests
from deploy.drills.scene import Scene, Watch
from deploy.drills.settings import RESULTS, DrillName, DrillSettings
from deploy.drills.stack import StackBroken
from deploy.drills.table import drill_table, write_table
from tests.server.conftest import family_folder  # noqa: F401
from tests.server.processes import ROOT

QUICK = ["--replicas", "2", "--serve", "--cache-bytes 0 --max-wave 2 --job-lease-seconds 4", "--mix", "1:2,4:1"]
QUICK += [
    "--rate",
    "2",
    "--job-mix",
    "4:1,64:1",
    "--job-rate",
    "0.7",
    "--seconds",
    "1",
    "--hold",
    "2",
    "--patience",
    "900",
]


def needed(*programs: str) -> None:
    """Skip where a program is missing, but never in CI."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        assert os.environ.get("CI") != "true", f"{missing[0]} is missing, and in CI drills must be run"
        pytest.skip(f"{missing[0]} is missing (Debian: apt-get install haproxy redis-server): drills were not run")


def run(name: DrillName, family: Path, results: Path) -> DrillResult:
    """Run a drill on loopback. Nobody failed, nothing was lost, and the exit status is the verdict.

    The verdict may still be BROKEN on a crowded machine: a last replica that is too slow for the balancer's checks is taken
    for dead, and clients are told to come again.
    """
    needed("haproxy", "redis-server")
    status = main([name, *QUICK, "--family", str(family), "--results", str(results)])
    result = DrillResult.model_validate_json((results / f"{name}-loopback.json").read_text())
    assert status == (0 if result.kept else 1)
    broken = [found for found in result.findings if not found.kept and " 0 failed" not in found.found]
    assert not broken, result.lines()
    return result


def test_a_killed_replica_takes_no_request_and_no_accepted_job_with_it(
    family_folder: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    result = run("kill-replica", family_folder, tmp_path)
    assert result.requests.failed == result.orders.failed == 0 < result.requests.answered
    assert result.jobs.accepted == result.jobs.done == result.jobs.ordered > 0 and result.jobs.lost == 0
    assert result.jobs.fetched == 2 * result.jobs.done and result.jobs.compared > 0
    assert result.fewest_replicas < result.replicas == 2, "the balancer should have missed it"
    assert [what.split(" ", 1)[1] for _, what in result.moments[:2]] == ["is killed", "is started"]
    assert set(result.versions) == {"haproxy", "redis", "python", "aiohttp"} and str(tmp_path) not in str(result)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(DRILLS) - {"kill-replica"}))
def test_every_other_drill_loses_nothing_either(name: DrillName, family_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    if name.startswith("full-disk") and os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    assert run(name, family_folder, tmp_path).jobs.accepted > 0


def test_every_drill_that_can_be_named_exists_and_wrong_names_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert tuple(DRILLS) == get_args(DrillName)
    assert main(["drop-tables"]) == 2
    assert "'kill-replica', 'hang-replica'" in capsys.readouterr().err


ANSWERED = Requests(sent=10, answered=10, refused=0, failed=0, failures={}, degraded=0, latency_ms={})
ORDERED = Attempted(sent=5, answered=5, refused=0, failed=0, failures={})
DONE = Jobs(
    ordered=5, accepted=5, retried=0, done=5, lost=0, begun_again=1, fetched=10, different=0, doubled=0, compared=5,
    wrong=0, problems=(), seconds={},
)  # fmt: skip


def test_the_page_on_drills_names_them_all_and_no_flag_that_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "drills.md").read_text()
    assert set(re.findall(r"^\| `([a-z-]+)` \| .* \| .* \|$", page, re.MULTILINE)) == set(DRILLS)
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    for line in re.findall(r"python -m deploy\.drills (.*?)(?: #|$)", page, re.MULTILINE):
        assert all(flag in shown for flag in re.findall(r"--[a-z-]+", line)), line


def judged(name: DrillName, *, emptied: bool = True, **changed: Any) -> list[Finding]:
    """The broken promises of a drill in which all went well but for what is changed."""
    facts = {"requests": ANSWERED, "orders": ORDERED, "jobs": DONE, "lines": 1, "in_hand": 1} | changed
    if DRILLS[name].forgets and emptied:
        facts["jobs"] = facts["jobs"].model_copy(update={"doubled": 5})
    recovery = Recovery(broken=30, disturbed=0, whole=1)
    return [found for found in findings(DRILLS[name], recovery=recovery, **facts) if not found.kept]


@pytest.mark.parametrize("name", [name for name in DRILLS if not DRILLS[name].felt and not DRILLS[name].degrades])
@pytest.mark.parametrize(
    "changed",
    [
        {"jobs": DONE.model_copy(update={"different": 1})},
        {"jobs": DONE.model_copy(update={"wrong": 1})},
        {"jobs": DONE.model_copy(update={"accepted": 4, "done": 4})},
        {"jobs": DONE.model_copy(update={"fetched": 0})},
        {"requests": ANSWERED.model_copy(update={"answered": 0})},
        {"lines": 0},
    ],
    ids=["other bytes", "wrong image", "never accepted", "nothing fetched", "nothing answered", "no log"],
)
def test_what_no_drill_may_do_breaks_every_drill(name: DrillName, changed: dict[str, Any]) -> None:
    assert not judged(name) and len(judged(name, **changed)) == 1


def test_a_lost_job_or_a_second_job_breaks_every_drill_but_the_one_whose_store_is_emptied() -> None:
    for fact in ("lost", "doubled"):
        jobs = DONE.model_copy(update={fact: 1})
        broken = {name for name in DRILLS if any("accepted jobs" in found.what for found in judged(name, jobs=jobs))}
        assert broken == set(DRILLS) - {"empty-redis"}


def test_a_refusal_is_allowed_only_where_the_part_that_it_needs_is_away() -> None:
    requests = ANSWERED.model_copy(update={"answered": 9, "refused": 1, "degraded": 1})
    orders = ORDERED.model_copy(update={"refused": 1})
    assert {name for name in DRILLS if not judged(name, requests=requests, orders=orders)} == {
        "overload",
        "overload-degrade",
    }
    requests = requests.model_copy(update={"answered": 10, "refused": 0})
    allowed = {name for name, drill in DRILLS.items() if drill.refuses != "nothing"}
    assert {name for name in DRILLS if not judged(name, requests=requests, orders=orders)} == allowed
    assert judged("lose-redis"), "an absence that nobody felt was none"
    assert judged("empty-redis", emptied=False)


def test_a_replica_that_was_broken_without_a_job_in_hand_proves_nothing_about_jobs() -> None:
    assert {name for name in DRILLS if any("in hand" in found.what for found in judged(name, in_hand=0))} == {
        "kill-replica",
        "hang-replica",
    }


@pytest.mark.parametrize("name", DRILLS)
def test_a_failure_breaks_every_drill(name: DrillName) -> None:
    failure = {"answered": 4, "failed": 1, "failures": {"502": 1}}
    well = {
        "requests": ANSWERED.model_copy(update={"degraded": 1}),
        "orders": ORDERED.model_copy(update={"refused": 1}),
    }
    well = {"requests": well["requests"]} if DRILLS[name].refuses == "nothing" else well
    assert not judged(name, **well)
    for kind, usual in (("requests", ANSWERED), ("orders", ORDERED)):
        (broken,) = judged(name, **well | {kind: well.get(kind, usual).model_copy(update=failure)})
        assert "1 failed, 1 x 502" in broken.found


def test_the_watch_adds_up_counters_that_begin_anew_when_the_balancer_reloads() -> None:
    watch = Watch()

    def told(up: int, retries: int) -> None:
        kinds = {"haproxy_backend_active_servers": up, "haproxy_backend_retry_warnings_total": retries}
        watch.note("".join(f'{name}{{proxy="{p}"}} {kinds[name]}\n' for name in kinds for p in ("stepdial", "other")))

    for up, retries in ((3, 7), (2, 9), (3, 1), (3, 2)):
        told(up, retries)
    assert (watch.fewest, watch.up, watch.retries) == (2, 3, 4)


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def ordered(get: Handler, image: Callable[[int], bytes], refusals: int = 0) -> Order:
    """An order that is run and repeated against a server with these answers; `image` is given how often it was asked."""
    counts: Counter[str] = Counter()

    async def post(request: web.Request) -> web.Response:
        counts["orders"] += 1
        if counts["orders"] <= refusals:
            return web.json_response({}, status=503, headers={"Retry-After": "0"})
        assert request.headers["Idempotency-Key"] == "key"
        return web.json_response({"id": "job_1"}, status=202)

    async def fetch(_: web.Request) -> web.Response:
        counts["images"] += 1
        return web.Response(body=image(counts["images"]))

    async def both() -> Order:
        app = web.Application()
        app.router.add_post("/jobs", post)
        app.router.add_get("/jobs/{id}", get)
        app.router.add_get("/jobs/{id}/images/0", fetch)
        async with TestServer(app) as server, Client(str(server.make_url("/"))) as client:
            order = Order(client, {"steps": 1, "seed": 1}, "key", began=0.0)
            await order.run()
            await order.repeat()
            return order

    return asyncio.run(both())


async def is_done(_: web.Request) -> web.Response:
    """A job that is done."""
    return web.json_response({"state": "done", "problem": None, "attempts": 1})


def test_an_order_is_repeated_until_accepted_and_its_result_fetched_twice() -> None:
    order = ordered(is_done, lambda _: b"png", refusals=2)
    assert order.orders.refused == 2 and not order.orders.failures and not order.lost
    assert len(order.results) == 2 and len(set(order.results)) == 1 and order.ids == ["job_1"]


def test_an_answer_that_no_drill_explains_ends_it_with_a_sentence_and_the_load_begins_when_it_is_entered() -> None:
    async def refuse(_: web.Request) -> web.Response:
        return web.json_response({"detail": "whose key?"}, status=401)

    model = MODEL | {"positions": [{"steps": 1}]}
    settings = DrillSettings(names=["kill-replica"], mix="1", job_mix="1", rate=50, job_rate=50)

    async def drill() -> float:
        app = web.Application()
        app.router.add_post("/jobs", refuse)
        app.router.add_post("/generate", refuse)
        async with TestServer(app) as server, Client(str(server.make_url("/"))) as client:
            load = Load(client, model, settings)
            made = load.began
            await asyncio.sleep(0.2)
            with pytest.raises(Unexpected, match="POST /jobs was answered 401.*whose key"):
                async with load:
                    await asyncio.sleep(0.2)
            return load.began - made

    assert asyncio.run(drill()) >= 0.2


def test_a_disk_that_cannot_be_filled_is_refused_before_anything_is_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needed("haproxy", "redis-server")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main(["all"]) == 1
    said = capsys.readouterr()
    assert "only root can mount: run as root, or name the other drills" in said.err and not said.out


MODEL = {"name": "tiny", "positions": [{"steps": 1}, {"steps": 3}], "conditioning": {"kind": "none"}}


def with_replica(metrics: Sequence[int], act: Callable[[Scene], Awaitable[Any]], **settings: Any) -> Any:
    """Do something in a scene of one replica, which says so many jobs run each time it is asked; 503 to all else."""
    chosen = DrillSettings(names=["overload"], mix="1", job_mix="3", **settings)
    said = iter(metrics)

    async def running(_: web.Request) -> web.Response:
        return web.Response(text=f'stepdial_jobs_running{{model="tiny"}} {next(said, metrics[-1])}\n')

    async def refuse(_: web.Request) -> web.Response:
        return web.json_response({}, status=500)

    class Alone:
        replicas = ("replica-1",)

        async def metrics_of(self, _: str) -> str:
            return self.url

    async def both() -> Any:
        app = web.Application()
        app.router.add_get("/metrics", running)
        app.router.add_post("/generate", refuse)
        async with TestServer(app) as server, Client(str(server.make_url("/"))) as client:
            stack: Any = Alone()
            stack.url = str(server.make_url("/metrics"))
            return await act(Scene(stack, client, Load(client, MODEL, chosen), chosen))

    return asyncio.run(both())


@pytest.mark.parametrize(("metrics", "in_hand"), [([0, 0, 2], 2), ([0], 0)], ids=["soon", "never"])
def test_a_busy_replica_is_waited_for_and_what_it_had_in_hand_is_known(metrics: list[int], in_hand: int) -> None:
    async def wait(scene: Scene) -> tuple[str, int]:
        return await scene.busy_replica(), scene.in_hand

    assert with_replica(metrics, wait, patience=0.5) == ("replica-1", in_hand)


def test_a_rolling_update_that_nobody_notices_ends_with_a_sentence() -> None:
    async def wait(scene: Scene) -> None:
        scene.watch.up = 1
        await gone_and_back(scene)

    with pytest.raises(StackBroken, match=r"away which was stopped: waited for 0\.1 s, in vain"):
        with_replica([0], wait, patience=0.1)


def test_what_a_stack_can_do_that_answers_nothing_well_is_a_sentence_and_its_failures_are_counted() -> None:
    async def measure(scene: Scene) -> Load:
        with pytest.raises(StackBroken, match=r"none of \d+ requests got an image \(500\)"):
            await scene.load.capacity(0.1)
        return scene.load

    load = with_replica([0], measure)
    assert len(load.answers) == 12 and {answer.outcome for answer in load.answers} == {"500"}


@pytest.mark.parametrize(("mix", "job_mix", "missing"), [("1,2:3", "3", "2"), ("1", "3,auto,64", "auto, 64")])
def test_a_position_that_is_not_served_is_refused_with_those_that_are(mix: str, job_mix: str, missing: str) -> None:
    settings = DrillSettings(names=["overload"], mix=mix, job_mix=job_mix)
    with pytest.raises(StackBroken, match=f"tiny does not serve {missing} steps; it serves 1, 3"):
        Load(Client("http://127.0.0.1:9"), MODEL, settings)


def test_a_result_that_never_comes_a_second_time_is_a_sentence() -> None:
    class Late:
        state, begun, results, ids = "done", 1, ["a"], ["job_1"]

        def __init__(self, repeats: bool):
            self.repeats = repeats

        async def repeat(self) -> None:
            await asyncio.sleep(0 if self.repeats else 60)

        async def drawn(self) -> str:
            await asyncio.sleep(60)
            return "a"

    for repeats, what in (
        (False, "result of job_1, ordered and fetched once more"),
        (True, "POST /generate of what job_1"),
    ):
        late: Any = Late(repeats)
        with pytest.raises(StackBroken, match=what):
            asyncio.run(fetch_again([late], 0.05))


CONTAINERS = """#!/bin/sh
case "$*" in
  "ps "*service=balancer*) echo p-balancer-1 ;;
  "ps "*service=redis*) echo p-redis-1 ;;
  "ps "*) echo p-balancer-1 p-gpu1-1 p-redis-1 p-server-1 p-stepdial-1 ;;
  "inspect "*IPAddress*) echo 127.0.0.1 ;;
  "inspect "*p-gpu1-1) echo p-gpu1-1 gpu1 stepdial ;;
  "inspect "*p-stepdial-1) echo p-stepdial-1 stepdial ;;
  "inspect "*) echo "${4#p-}" ;;
  *) echo "unexpected: docker $*" >&2; exit 2 ;;
esac
"""
"""A Docker that runs a replica for each of two GPUs, and a server alone."""


def test_replicas_are_the_containers_that_the_balancer_counts_whatever_their_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker = tmp_path / "docker"
    docker.write_text(CONTAINERS)
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    async def replicas() -> Sequence[str]:
        async with compose(DrillSettings(names=["kill-replica"], project="p")) as stack:
            return stack.replicas

    assert asyncio.run(replicas()) == ["p-gpu1-1", "p-stepdial-1"]


def test_replicas_on_loopback_drain_as_long_as_those_in_containers() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    assert services["stepdial"]["environment"]["STEPDIAL_SHUTDOWN_DELAY_SECONDS"] == SHUTDOWN_DELAY_SECONDS


def test_a_result_that_changes_is_seen() -> None:
    assert len(set(ordered(is_done, lambda number: bytes([number])).results)) == 2


def test_an_accepted_job_that_fails_or_that_nobody_knows_any_more_is_lost() -> None:
    async def failed(_: web.Request) -> web.Response:
        return web.json_response({"state": "failed", "problem": {"detail": "given up"}, "attempts": 3})

    looks = iter([404])

    async def unknown_once(request: web.Request) -> web.StreamResponse:
        return web.Response(status=404) if next(looks, None) else await is_done(request)

    assert ordered(failed, lambda _: b"").lost
    order = ordered(unknown_once, lambda _: b"png")
    assert order.lost and order.forgotten == 1 and order.state == "done", "drawn only because it was ordered again"


RECORDED = sorted(RESULTS.glob("*.json"))


@pytest.mark.parametrize("file", RECORDED, ids=lambda file: file.stem)
def test_a_recorded_result_lost_no_job_and_changed_no_byte(file: Path) -> None:
    result = DrillResult.model_validate_json(file.read_text())
    assert file.stem == f"{result.check}-{result.stack}"
    assert result.kept == all(finding.kept for finding in result.findings)
    assert result.jobs.different == result.jobs.wrong == 0 < result.jobs.accepted
    assert result.jobs.lost == 0 or DRILLS[result.check].forgets  # type: ignore[index]


def test_the_table_of_the_operations_guide_is_what_the_results_say(tmp_path: Path) -> None:
    guide = ROOT / "docs" / "operations.md"
    copy = tmp_path / "operations.md"
    copy.write_text(guide.read_text())
    write_table(RESULTS, copy)
    assert RECORDED and drill_table(RESULTS) in guide.read_text() == copy.read_text()
