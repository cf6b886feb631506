"""Behind a real balancer: whose address counts, whose request id is kept, and replacing a replica under load."""

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pydantic import ValidationError

from server.settings import Settings
from tests.server.balancer import Balancer
from tests.server.desk import WISH
from tests.server.processes import wait_until
from tests.server.replicas import Fleet, Replica


@pytest.fixture(scope="module")
def fleet(family_folder: Path) -> Iterator[Fleet]:
    """A server that trusts proxies on 127.0.0.1 only and grants each client two images of four steps."""
    settings: dict[str, Any] = {"evaluations_per_minute": 8, "trusted_proxies": "127.0.0.1"}
    with Fleet(family_folder, "", size=1, **settings) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def balancer(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Balancer]:
    with Balancer(tmp_path_factory.mktemp("balancer"), [fleet.replicas[0].port]) as balancer:
        wait_until(lambda: httpx2.get(balancer.url + "/readyz").status_code == 200)
        yield balancer


def statuses(url: str, address: str, *claims: str) -> list[int]:
    """Ask for three images from this address, with X-Forwarded-For as claimed; return the statuses."""
    transport = httpx2.HTTPTransport(local_address=address)
    headers = [("x-forwarded-for", claim) for claim in claims]
    with httpx2.Client(transport=transport, timeout=60) as client:
        return [client.post(f"{url}/generate", json=WISH, headers=headers).status_code for _ in range(3)]


def test_each_client_behind_the_balancer_has_its_own_rate_limit(balancer: Balancer) -> None:
    assert statuses(balancer.url, "127.0.0.2") == statuses(balancer.url, "127.0.0.3") == [200, 200, 429]


def test_an_address_that_a_client_claims_towards_the_balancer_is_not_believed(balancer: Balancer) -> None:
    assert statuses(balancer.url, "127.0.0.4", "192.0.2.1") == [200, 200, 429]
    assert statuses(balancer.url, "127.0.0.4", "192.0.2.2", "127.0.0.1") == [429, 429, 429]


def test_an_address_that_somebody_claims_who_is_no_trusted_proxy_is_not_believed(fleet: Fleet) -> None:
    url = f"http://127.0.0.1:{fleet.replicas[0].port}"
    assert statuses(url, "127.0.0.5", "192.0.2.3") == [200, 200, 429]
    assert statuses(url, "127.0.0.5", "192.0.2.4") == [429, 429, 429]


def test_without_trusted_proxies_nobody_is_believed_not_even_on_this_machine(family_folder: Path) -> None:
    with Fleet(family_folder, "", size=1, evaluations_per_minute=8) as fleet:
        url = f"http://127.0.0.1:{fleet.replicas[0].port}"
        assert statuses(url, "127.0.0.1", "192.0.2.5") == [200, 200, 429]
        assert statuses(url, "127.0.0.1", "192.0.2.6") == [429, 429, 429]


@pytest.mark.parametrize("wrong", ["*", "balancer", "10.0.0.1/8", "0.0.0.0/0", "::/0", "10.0.0.1,10.0.0.0/33"])
def test_what_is_no_address_of_a_proxy_is_refused_at_start(wrong: str) -> None:
    with pytest.raises(ValidationError, match="trusted_proxies"):
        Settings(trusted_proxies=wrong)  # type: ignore[arg-type]  # as the environment gives it


def test_the_proxies_are_also_taken_from_the_variable_that_other_servers_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().trusted_proxies == ()
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "10.0.0.7,10.1.0.0/24")
    assert [str(network) for network in Settings().trusted_proxies] == ["10.0.0.7/32", "10.1.0.0/24"]
    monkeypatch.setenv("STEPDIAL_TRUSTED_PROXIES", "10.0.0.8")
    assert [str(network) for network in Settings().trusted_proxies] == ["10.0.0.8/32"]


def test_a_request_id_that_the_balancer_makes_is_kept_and_so_is_one_that_passes_through_it(balancer: Balancer) -> None:
    made = httpx2.get(balancer.url + "/models").headers["x-request-id"]
    assert made.startswith("7F000001:") and made != httpx2.get(balancer.url + "/models").headers["x-request-id"]
    passed = httpx2.get(balancer.url + "/models", headers={"x-request-id": "order-7"})
    assert passed.headers["x-request-id"] == "order-7"


def test_replicas_are_replaced_under_load_and_no_request_is_lost_though_nobody_retries(
    family_folder: Path, tmp_path: Path
) -> None:
    with Fleet(family_folder, "", size=2, shutdown_delay_seconds=2.0, shutdown_timeout_seconds=10) as fleet:
        ports = [replica.port for replica in fleet.replicas]
        with Balancer(tmp_path, ports) as balancer:
            wait_until(lambda: httpx2.get(balancer.url + "/readyz").status_code == 200)
            answers: list[tuple[int, str]] = []
            done = threading.Event()

            def ask() -> None:
                with httpx2.Client(base_url=balancer.url, timeout=60) as client:
                    while not done.is_set():
                        answer = client.post("/generate", json=WISH)
                        answers.append((answer.status_code, "" if answer.status_code == 200 else answer.text))

            clients = [threading.Thread(target=ask) for _ in range(4)]
            for client in clients:
                client.start()
            for number, port in enumerate(ports):
                leaving = fleet.replicas[number]
                leaving.send(signal.SIGTERM)
                leaving.process.join(30)
                assert leaving.process.exitcode == 0
                fleet.replicas[number] = Replica(
                    family_folder, "", port=port, shutdown_delay_seconds=2.0, shutdown_timeout_seconds=10
                )
                fleet.ready(number)
                time.sleep(0.5)  # so that the balancer has seen it
            before = len(answers)
            wait_until(lambda: len(answers) > before + 8)
            done.set()
            for client in clients:
                client.join()
    assert set(answers) == {(200, "")}
