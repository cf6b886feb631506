"""What benchmarks and drills say about arguments: one sentence for each that is wrong, and nothing is done."""

import pytest

from benchmarks.checks.settings import CheckSettings
from benchmarks.command_line import given, given_command
from benchmarks.load.settings import BenchSettings
from benchmarks.scale.commands import Scale, Size


def test_arguments_that_are_right_are_settings_and_subcommands():
    settings = given(BenchSettings, ["--rates", "1", "-n", "3"], name="stepdial bench")
    assert settings is not None and (settings.rates, settings.n) == ("1", 3)
    command = given_command(Scale, ["size", "--rate", "3"], name="stepdial scale")
    assert isinstance(command, Size) and command.rate == 3


def test_every_wrong_argument_is_told_as_it_is_written_with_what_was_given(capsys):
    assert given(BenchSettings, ["--rates", "0", "-n", "0", "--burst-seconds", "x"], name="python -m bench") is None
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 3 and all(line.startswith("bench: ") for line in told)
    assert {line.split(": ")[1] for line in told} == {"--rates", "-n", "--burst-seconds"}
    assert given(CheckSettings, ["everything"], name="stepdial check") is None
    assert capsys.readouterr().err.startswith("stepdial check: check: ")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "say what: size, measure, simulate or report"),
        (["size", "--rate", "0"], "--rate: Input should be greater than 0, got '0'"),
        (["size", "--mix", "auto"], "--mix: auto is no position that could be sized for"),
        (["report", "--file", "[docs"], "report.file"),
    ],
)
def test_a_subcommands_arguments_are_told_likewise(arguments, told, capsys):
    assert given_command(Scale, arguments, name="stepdial scale") is None
    said = capsys.readouterr().err
    assert said.startswith("stepdial scale: ") and told in said and said.count("\n") == 1


def test_no_key_is_repeated_where_arguments_do_not_go_together(capsys):
    assert given(BenchSettings, ["--api-key", "secret"], name="stepdial bench") is None
    said = capsys.readouterr().err
    assert "--rates" in said and "secret" not in said
