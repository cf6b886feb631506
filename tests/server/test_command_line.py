"""The command line as people meet it: its help, and commands whose reader goes away."""

import os
import re
import socket
import subprocess
import sys

import pytest

from server.commands import serve
from server.keys_command import keys
from tests.server.processes import ROOT


def test_the_help_of_commands_shows_what_people_write(capsys: pytest.CaptureFixture[str]) -> None:
    for command, arguments in ((serve, ["--help"]), (keys, ["add", "--help"])):
        with pytest.raises(SystemExit):
            command(arguments)
        shown = capsys.readouterr().out
        assert "--" in shown and not re.search(r"tuple\[|null|\bPath\b|\bint\b|\bstr\b|\bfloat\b|IPv", shown), shown


def test_a_reader_who_goes_ends_a_command_without_a_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, ROOT / "stepdial.py", "families"]
    done = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_wrong_argument_is_told_with_what_it_was_and_a_secret_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, told in (
        (["--max-wave", "0"], 'max_wave: got "0", it should be greater than or equal to 1'),
        (["--redis-url", "hunter2"], "redis_url: "),
        (["--trusted-proxies", "0.0.0.0/0"], 'trusted_proxies: got "0.0.0.0/0", a network of all addresses'),
    ):
        assert serve(arguments) == 2
        shown = capsys.readouterr().err
        assert shown.startswith(f"stepdial serve: {told}") and "hunter2" not in shown


def test_a_port_that_is_taken_is_told_before_anything_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert serve(["--port", str(port), "--family", "nowhere"]) == 1
    assert (
        capsys.readouterr().err == f"stepdial serve: port {port} of 127.0.0.1 cannot be had: Address already in use\n"
    )


def test_ctrl_c_while_a_command_is_imported_ends_it_without_a_traceback() -> None:
    program = (
        "import signal, stepdial; stepdial._run = lambda _: signal.raise_signal(signal.SIGINT); exit(stepdial.main())"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "")
