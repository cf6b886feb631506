"""Connections that are too many, too slow or too long-winded, at a real server."""

import errno
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.server.desk import problem
from tests.server.processes import ServerProcess, serve_names, wait_until

BODY = b'{"prompt": "a red star on mint", "steps": 1}'
HEAD = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(BODY)


@pytest.fixture(scope="module")
def server(family_folder: Path) -> Iterator[ServerProcess]:
    bounds = ["--receive-timeout-seconds", "0.5", "--send-timeout-seconds", "0.5", "--max-connections", "5"]
    with serve_names(family_folder, [*bounds, "--admin-port", "0"]) as server:
        yield server


def connect(server: ServerProcess) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def backstage(server: ServerProcess) -> str:
    """Where its second port is."""
    line = next(line for line in server.lines if "administration are on port" in line)
    return f"http://127.0.0.1:{line.split(' on port ')[1].split()[0]}"


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
        no_http(everything(connection))


def no_http(answer: bytes) -> None:
    """Check that the answer is a whole problem of a request that could not be read."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"content-type: application/problem+json" in head and b"connection: close" in head.lower()
    assert b"content-length: %d" % len(body) in head
    assert json.loads(body)["type"] == "/problems/bad-request"


@pytest.mark.parametrize(
    "sent", [b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"]
)
def test_what_is_no_http_is_a_problem_too(server: ServerProcess, sent: bytes) -> None:
    with connect(server) as connection:
        connection.sendall(sent)
        no_http(everything(connection))


def test_a_body_of_two_lengths_is_a_400_and_ends_the_connection(server: ServerProcess) -> None:
    with connect(server) as connection:
        both = HEAD[:-2] + b"Transfer-Encoding: chunked\r\n\r\n"
        connection.sendall(both + b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY))
        no_http(everything(connection))


def test_a_body_that_is_no_http_ends_the_connection_without_an_answer_amid_another(server: ServerProcess) -> None:
    with connect(server) as connection:
        connection.sendall(HEAD.replace(b"Content-Length: %d" % len(BODY), b"Transfer-Encoding: chunked") + b"x\r\n")
        assert everything(connection) == b""
    assert server.get("/livez").status_code == 200 and "Traceback" not in server.output


MANY = 200 * b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
"""Some 10 MB of answers: more than the system keeps for a client that reads nothing."""


def test_a_client_that_does_not_read_its_answers_is_cut_off(server: ServerProcess) -> None:
    with connect(server) as connection:
        connection.sendall(MANY)
        wait_until(lambda: cut_off(connection))


def cut_off(connection: socket.socket) -> bool:
    """Whether the other side has reset the connection; what it has sent stays unread."""
    return connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET


def test_a_client_that_reads_slowly_but_steadily_gets_all(server: ServerProcess) -> None:
    with connect(server) as connection:
        connection.sendall(MANY)
        answers = 0
        while answers < 200:
            time.sleep(0.02)
            part = connection.recv(2**17)
            assert part, "cut off"
            answers += part.count(b"HTTP/1.1 200")


def test_a_connection_too_many_is_a_503_and_the_next_one_after_a_close_is_served(server: ServerProcess) -> None:
    held = [connect(server) for _ in range(5)]
    for connection in held:
        connection.sendall(HEAD + BODY[:1])
    refused = everything(connect(server))
    assert refused.startswith(b"HTTP/1.1 503") and b"retry-after: 1" in refused.lower()
    assert b"/problems/too-many-connections" in refused
    for path in ("/livez", "/readyz"):  # on the second port a crowd is no hindrance to ask
        assert httpx2.get(backstage(server) + path).status_code == 200
    for connection in held:
        connection.close()
    for _ in range(100):
        answer = server.get("/livez")
        if answer.status_code == 200:
            break
        problem(answer, 503)
        time.sleep(0.05)
    assert answer.status_code == 200
