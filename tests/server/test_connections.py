"""Connections that are too many, too slow or too long-winded, at a real server."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.desk import problem
from tests.server.processes import ServerProcess, serve_names

BODY = b'{"prompt": "a red star on mint", "steps": 1}'
HEAD = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(BODY)


@pytest.fixture(scope="module")
def server(family_folder: Path) -> Iterator[ServerProcess]:
    with serve_names(family_folder, ["--receive-timeout-seconds", "0.5", "--max-connections", "5"]) as server:
        yield server


def connect(server: ServerProcess) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def everything(connection: socket.socket) -> bytes:
    """Read until the server closes."""
    answer = b""
    while part := connection.recv(65536):
        answer += part
    return answer


def test_a_client_that_never_finishes_its_head_is_hung_up_on(server: ServerProcess) -> None:
    for begun in (b"", b"POST /generate HTT", HEAD[:60]):
        with connect(server) as connection:
            connection.sendall(begun)
            assert everything(connection) == b""


def test_a_head_that_drips_is_hung_up_on_too_and_a_second_one_on_the_same_connection(server: ServerProcess) -> None:
    with connect(server) as connection:
        connection.sendall(HEAD + BODY)
        assert b"200 OK" in connection.recv(65536)
        began = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - began < 60:
                connection.sendall(b"G")
                time.sleep(0.05)


def test_a_body_that_does_not_come_is_a_408(server: ServerProcess) -> None:
    with connect(server) as connection:
        connection.sendall(HEAD + BODY[:10])
        answer = everything(connection)
    assert answer.startswith(b"HTTP/1.1 408") and b"application/problem+json" in answer


def test_a_request_that_takes_long_to_draw_is_not_a_slow_one(server: ServerProcess) -> None:
    assert server.ask(prompt="a red star on mint", steps=64, seed=1).status_code == 200


def test_a_head_that_is_too_long_and_not_at_its_end_is_a_400(server: ServerProcess) -> None:
    with connect(server) as connection:
        connection.sendall(HEAD[:-2] + b"X-Long: " + b"x" * 20000)
        assert everything(connection).startswith(b"HTTP/1.1 400")


def test_a_connection_too_many_is_a_503_and_the_next_one_after_a_close_is_served(server: ServerProcess) -> None:
    held = [connect(server) for _ in range(5)]
    for connection in held:
        connection.sendall(HEAD + BODY[:1])
    refused = everything(connect(server))
    assert refused.startswith(b"HTTP/1.1 503") and b"retry-after: 1" in refused.lower()
    assert b"/problems/too-many-connections" in refused
    for connection in held:
        connection.close()
    for _ in range(100):
        answer = server.get("/livez")
        if answer.status_code == 200:
            break
        problem(answer, 503)
        time.sleep(0.05)
    assert answer.status_code == 200
