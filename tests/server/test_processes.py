"""Real server processes: how they start, how clients leave them, how they end."""

import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.server.processes import ServerProcess, serve_names, serve_real, wait_until

SLOW = {"prompt": "a red star on mint", "steps": 512, "seed": 1}


@pytest.fixture
def names(family_folder: Path) -> Iterator[ServerProcess]:
    with serve_names(family_folder) as server:
        yield server


def in_background(server: ServerProcess, answers: list[Any], **wish: Any) -> threading.Thread:
    """Ask in a thread that appends the answer, or the error, and wait until the server is at work on it."""

    def ask() -> None:
        try:
            answers.append(server.ask(**wish))
        except Exception as error:
            answers.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    wait_until(lambda: server.metric("stepdial_num_samples_running") > 0)
    return thread


def test_a_client_that_hangs_up_frees_its_work(names: ServerProcess) -> None:
    body = b'{"prompt": "a red star on mint", "steps": 512, "seed": 1}'
    head = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(
        body
    )
    host, port = names.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head + body)
        wait_until(lambda: names.metric("stepdial_num_samples_running") > 0)
        assert names.metric("stepdial_pending_evaluations") > 0
    wait_until(lambda: names.metric("stepdial_pending_evaluations") == 0)
    wait_until(lambda: names.metric("stepdial_wasted_evaluations_total") > 0)
    assert 'outcome="cancelled",steps="512"} 1.0' in names.get("/metrics").text
    waves = names.metric("stepdial_wave_duration_seconds_count")
    assert waves < 512
    assert names.ask(prompt="red star", steps=1).status_code == 200
    assert names.metric("stepdial_wave_duration_seconds_count") == waves + 1


def test_a_lost_device_answers_those_who_wait_and_ends_the_process(names: ServerProcess) -> None:
    answers: list[Any] = []
    waiting = in_background(names, answers, **SLOW)
    assert names.ask(prompt="a red ring", steps=1).status_code == 503
    waiting.join()
    assert answers[0].status_code == 503
    assert names.wait() == 1
    assert "the device loop has ended" in names.output


def test_a_hung_device_answers_those_who_wait_and_ends_the_process(family_folder: Path) -> None:
    with serve_names(family_folder, ["--hang-seconds", "0.5"]) as names:
        answer = names.ask(prompt="a star on navy", steps=1)
        assert answer.status_code == 503 and answer.json()["type"] == "/problems/device-lost"
        assert names.wait() == 1
        assert "the device hangs" in names.output and "ending without it" in names.output


def test_after_sigterm_it_is_not_ready_finishes_what_it_accepted_and_ends_in_order(names: ServerProcess) -> None:
    answers: list[Any] = []
    waiting = in_background(names, answers, **SLOW | {"steps": 128})
    names.process.send_signal(signal.SIGTERM)
    wait_until(lambda: names.get("/readyz").status_code == 503)
    refusal = names.ask(prompt="a red star", steps=1)
    assert refusal.status_code == 503 and refusal.json()["type"] == "/problems/not-ready" and not answers
    assert refusal.headers["retry-after"]
    assert names.get("/livez").status_code == 200
    assert names.wait() == 0
    waiting.join()
    assert answers[0].status_code == 200 and answers[0].json()["steps_used"] == 128
    assert "Traceback" not in names.output


def test_sigterm_does_not_wait_for_ever(family_folder: Path) -> None:
    with serve_names(family_folder, ["--shutdown-timeout-seconds", "1"]) as names:
        answers: list[Any] = []
        waiting = in_background(names, answers, **SLOW)
        assert names.stop() == 0
        waiting.join()
        assert answers[0].status_code == 503


def test_32_concurrent_requests_of_mixed_steps_get_the_bytes_they_get_alone(real_server: ServerProcess) -> None:
    wishes = [{"prompt": "a red star on mint", "steps": (1, 2, 4, 4, 32)[seed % 5], "seed": seed} for seed in range(32)]
    alone = [real_server.ask(**wish).json()["data"] for wish in wishes]
    with ThreadPoolExecutor(32) as crowd:
        together = [answer.json()["data"] for answer in crowd.map(lambda wish: real_server.ask(**wish), wishes)]
    assert together == alone
    assert "golden check passed" in real_server.output


def test_a_port_that_is_taken_ends_the_process_though_it_is_warming_up(
    family_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WARM_UP_SECONDS", "600")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = serve_names(family_folder, ["--port", str(taken.getsockname()[1])])
        try:
            assert server.wait() == 1
        finally:
            server.process.kill()
    assert "address already in use" in server.output and "Traceback" not in server.output


def test_a_wrong_argument_is_told_in_a_line(tmp_path: Path) -> None:
    for arguments, word in (
        (("--max-wave", "0"), "max_wave"),
        (("--redis-url", "abacus"), "redis_url"),
        (("--brownout-high-seconds", "0.5"), r"brownout_low_seconds is 1; it has to be smaller"),
        (("--device", "cuda:99"), "^stepdial serve: device cuda:99 is not there"),
    ):
        with pytest.raises(AssertionError, match=word), serve_real(tmp_path, *arguments) as server:
            raise RuntimeError(f"started: {server.output}")
