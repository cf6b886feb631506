"""The balancer: HAProxy with the repository's configuration in front of real replicas, which are killed, full, or ending."""

import json
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest

from diffusion.family import Family
from server.settings import Settings
from tests.deploy.balancer import FOLDER, Balancer
from tests.deploy.clients import Clients
from tests.server.processes import wait_until
from tests.server.redis_server import RedisServer
from tests.server.replicas import Replica

WISH = {"prompt": "a red star on mint", "seed": 7}
QUICK = {"job_lease_seconds": 0.6, "shutdown_timeout_seconds": 10, "max_wave": 4}


class Fleet:
    """Replicas behind the balancer."""

    def __init__(self, family_folder: Path, redis_server: RedisServer, folder: Path, stack: ExitStack):
        self._family, self._redis, self._folder, self._stack = family_folder, redis_server.url, folder, stack
        self.replicas: list[Replica] = []

    def add(self, **settings: Any) -> Replica:
        """Start a replica."""
        replica = Replica(self._family, self._redis, **QUICK | settings)
        self._stack.callback(replica.kill)
        self.replicas.append(replica)
        return replica

    def balancer(self) -> Balancer:
        """Start the balancer, once all replicas are ready."""
        for replica in self.replicas:
            wait_until(lambda replica=replica: ready(replica))
        return self._stack.enter_context(Balancer(self._folder, [replica.port for replica in self.replicas]))


@pytest.fixture
def fleet(family_folder: Path, redis_server: RedisServer, tmp_path: Path) -> Iterator[Fleet]:
    """Replicas that the test starts, and a balancer."""
    with ExitStack() as stack:
        yield Fleet(family_folder, redis_server, tmp_path, stack)


def ready(replica: Replica) -> bool:
    """Whether the replica draws."""
    assert not replica.dead, "the replica ended"
    answer = replica.ask("GET", "/readyz")
    return answer is not None and answer.status_code == 200


def count(replica: Replica, name: str, **labels: str) -> float:
    """The sum of one of the replica's metrics over all labels but these."""
    answer = replica.ask("GET", "/metrics")
    assert answer is not None
    lines = [line for line in answer.text.splitlines() if re.match(rf"{name}[ {{]", line)]
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if all(part in line for part in wanted))


def draw(balancer: Balancer, **wish: Any) -> httpx2.Response:
    """POST /generate."""
    return balancer.client.post("/generate", json=WISH | wish)


def test_every_position_of_the_dial_is_drawn_and_both_replicas_draw(fleet: Fleet, family: Family) -> None:
    replicas = [fleet.add(), fleet.add()]
    balancer = fleet.balancer()
    positions = [steps for steps in family.positions if steps <= 32]
    for steps in positions:
        answer = draw(balancer, steps=steps, seed=steps)
        assert answer.status_code == 200 and answer.json()["steps_used"] == steps
    assert len(positions) > 3 and all(count(replica, "stepdial_images_total") > 0 for replica in replicas)
    assert balancer.admin("/healthz").status_code == 200
    assert balancer.metric('haproxy_backend_http_responses_total{proxy="stepdial",code="2xx"}') == len(positions)


def test_a_replica_that_is_killed_while_it_draws_loses_no_request(fleet: Fleet) -> None:
    victim = fleet.add(wave_seconds=0.05)
    other = fleet.add(wave_seconds=0.05)
    balancer = fleet.balancer()
    with ThreadPoolExecutor(4) as pool:
        drawn = [pool.submit(draw, balancer, steps=32, seed=seed) for seed in range(4)]
        wait_until(lambda: all(count(replica, "stepdial_num_samples_running") for replica in (victim, other)))
        victim.kill()
    assert [future.result().status_code for future in drawn] == [200] * 4
    assert balancer.metric('haproxy_backend_redispatch_warnings_total{proxy="stepdial"}') >= 1


def test_a_full_replica_sends_requests_on_to_another(fleet: Fleet) -> None:
    full = fleet.add(wave_seconds=0.2, max_evaluations=16)
    fleet.add()
    balancer = fleet.balancer()
    with ThreadPoolExecutor(1) as pool:
        occupying = pool.submit(full.ask, "POST", "/generate", json=WISH | {"steps": 4, "n": 4})
        wait_until(lambda: count(full, "stepdial_num_samples_running") == 4)
        with ThreadPoolExecutor(6) as crowd:
            drawn = [crowd.submit(draw, balancer, steps=4, seed=seed) for seed in range(6)]
        assert [future.result().status_code for future in drawn] == [200] * 6
        assert count(full, "stepdial_rejected_total") >= 1
        assert occupying.result().status_code == 200


def test_when_all_are_full_the_client_hears_it_from_a_replica(fleet: Fleet) -> None:
    replica = fleet.add(wave_seconds=0.5, max_evaluations=16)
    balancer = fleet.balancer()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(replica.ask, "POST", "/generate", json=WISH | {"steps": 4, "n": 4})
        wait_until(lambda: count(replica, "stepdial_num_samples_running") == 4)
        answer = draw(balancer, steps=4, n=4)
    assert answer.status_code == 503 and answer.json()["type"] == "/problems/queue-full"
    assert int(answer.headers["Retry-After"]) >= 1


def test_a_rolling_update_fails_no_request_and_loses_no_job(fleet: Fleet) -> None:
    replicas = [fleet.add(wave_seconds=0.02), fleet.add(wave_seconds=0.02)]
    balancer = fleet.balancer()
    with Clients(balancer.url, {"prompt": "a red star on mint"}, steps=(1, 2, 4, 32)) as clients:
        wait_until(lambda: clients.asked > 10)
        for old in replicas:
            old.send(signal.SIGTERM)
            old.process.join(30)
            assert old.process.exitcode == 0
            new, asked = fleet.add(wave_seconds=0.02, port=old.port), clients.asked
            wait_until(lambda new=new: ready(new) and balancer.serving == 2)
            wait_until(lambda asked=asked: clients.asked > asked + 10)
    assert clients.failures == [] and clients.asked > 30


def test_a_request_that_kills_whoever_draws_it_does_not_kill_the_fleet(fleet: Fleet) -> None:
    for _ in range(5):
        fleet.add()
    balancer = fleet.balancer()
    answer = balancer.client.post("/generate", json={"prompt": "a blue star on mint", "steps": 4})
    assert answer.status_code == 502 and answer.json()["type"] == "/problems/replica-lost"
    wait_until(lambda: balancer.serving == 1)
    assert draw(balancer, steps=4).status_code == 200
    assert sum(replica.dead for replica in fleet.replicas) == 4


def test_jobs_are_ordered_under_a_key_so_that_the_balancer_may_order_them_again(
    fleet: Fleet, redis_server: RedisServer
) -> None:
    fleet.add()
    fleet.add()
    balancer = fleet.balancer()
    ids = {balancer.client.post("/jobs", json=WISH | {"steps": 4}).json()["id"] for _ in range(3)}
    assert len(ids) == 3 and len(redis_server.client.keys("{stepdial}:key:*")) == 3
    own = {"Idempotency-Key": "mine"}
    ids = {balancer.client.post("/jobs", json=WISH | {"steps": 4}, headers=own).json()["id"] for _ in range(3)}
    assert len(ids) == 1 and len(redis_server.client.keys("{stepdial}:key:*")) == 4
    (job,) = ids
    wait_until(lambda: balancer.client.get(f"/jobs/{job}").json()["state"] == "done")  # whichever replica is asked


def test_events_pass_as_they_happen(fleet: Fleet) -> None:
    fleet.add(wave_seconds=0.02)
    balancer = fleet.balancer()
    moments = []
    with balancer.client.stream("POST", "/generate", json=WISH | {"steps": 32, "stream": True}) as answer:
        for line in answer.iter_lines():
            if line.startswith("event:"):
                moments.append((line.removeprefix("event: "), time.monotonic()))
    assert moments[0][0] == "preview" and [name for name, _ in moments[-2:]] == ["image", "done"]
    assert moments[-1][1] - moments[0][1] > 16 * 0.02, "events were held back and came together"


def test_a_client_that_leaves_has_left_the_replica_too(fleet: Fleet) -> None:
    replica = fleet.add(wave_seconds=0.1)
    balancer = fleet.balancer()
    wish = WISH | {"steps": 128}
    with pytest.raises(httpx2.TimeoutException):
        httpx2.post(f"{balancer.url}/generate", json=wish, timeout=0.5)
    wait_until(lambda: count(replica, "stepdial_requests_total", outcome="cancelled") == 1)
    with httpx2.stream("POST", f"{balancer.url}/generate", json=wish | {"stream": True}, timeout=60) as events:
        next(events.iter_lines())
    wait_until(lambda: count(replica, "stepdial_requests_total", outcome="cancelled") == 2)
    wait_until(lambda: count(replica, "stepdial_num_samples_running") == 0)


def test_the_replica_knows_the_clients_address_and_nobody_can_forge_it(fleet: Fleet) -> None:
    fleet.add(trusted_proxies="127.0.0.1", evaluations_per_minute=0.1)  # one request, and then none for 40 minutes
    balancer = fleet.balancer()

    def ask(source: str, **headers: str) -> int:
        transport = httpx2.HTTPTransport(local_address=source)
        with httpx2.Client(base_url=balancer.url, transport=transport, timeout=30) as client:
            return client.post("/generate", json=WISH | {"steps": 4}, headers=headers).status_code

    assert ask("127.0.0.2") == 200
    assert ask("127.0.0.2") == 429  # its rate is used up
    assert ask("127.0.0.2", **{"X-Forwarded-For": "127.0.0.9", "Forwarded": "for=127.0.0.9"}) == 429
    assert ask("127.0.0.3") == 200  # another's is not


def test_one_request_id_goes_all_the_way_and_a_trace_goes_on(fleet: Fleet) -> None:
    fleet.add()
    balancer = fleet.balancer()

    def id_of(path: str = "/models", **headers: str) -> str:
        return str(balancer.client.get(path, headers=headers).headers["X-Request-ID"])

    assert id_of(**{"X-Request-ID": "mine-1"}) == "mine-1"
    assert id_of(**{"X-Request-ID": "not mine!"}) != "not mine!"
    assert id_of() != id_of()
    assert id_of("/metrics", **{"X-Request-ID": "mine-2"}) == "mine-2"  # the balancer's own answer


def test_what_is_for_the_inside_is_not_passed_on(fleet: Fleet) -> None:
    replica = fleet.add()
    balancer = fleet.balancer()
    assert count(replica, "stepdial_ready") == 1
    for path in ("/metrics", "/METRICS", "/%6detrics", "/admin/families", "/%61dmin/families", "/admin"):
        answer = balancer.client.get(path)
        assert answer.status_code == 404 and answer.json()["detail"] == "there is nothing here", path


def test_with_no_replica_the_balancer_says_so_as_the_server_would(fleet: Fleet) -> None:
    replica = fleet.add()
    balancer = fleet.balancer()
    replica.kill()
    wait_until(lambda: balancer.serving == 0)
    answer = draw(balancer, steps=4)
    assert answer.status_code == 503 and answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["type"] == "/problems/no-replica" and answer.json()["status"] == 503
    assert answer.headers["Retry-After"] == "2" and answer.headers["X-Request-ID"]
    assert balancer.admin("/healthz").status_code == 503


@pytest.mark.slow
def test_what_waits_for_a_hanging_replica_is_drawn_by_another(fleet: Fleet) -> None:
    hanging = fleet.add(wave_seconds=0.05)
    fleet.add(wave_seconds=0.05)
    balancer = fleet.balancer()
    with ThreadPoolExecutor(4) as pool:
        drawn = [pool.submit(draw, balancer, steps=32, seed=seed) for seed in range(4)]
        wait_until(lambda: count(hanging, "stepdial_num_samples_running") > 0)
        hanging.send(signal.SIGSTOP)
        answers = [future.result() for future in drawn]
    assert [answer.status_code for answer in answers] == [200] * 4
    hanging.send(signal.SIGCONT)


def test_the_balancers_limits_fit_the_servers() -> None:
    text = (FOLDER / "haproxy.cfg").read_text()

    def setting(name: str) -> int:
        return int(text.split(f"    {name} ")[1].split()[0].rstrip("s"))

    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    assert setting("timeout server") > defaults["request_timeout_seconds"]  # the replica's own 504 comes first
    assert setting("hard-stop-after") > defaults["request_timeout_seconds"]
    assert setting("tune.bufsize") >= defaults["max_body_bytes"] + 16384  # so that any request may be sent again
    for line in text.splitlines():
        if " string '" in line:
            problem = json.loads(line.split(" string '")[1].split("'")[0])
            assert f"status {problem['status']} " in line and set(problem) == {"type", "title", "status", "detail"}
