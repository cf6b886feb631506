"""`stepdial bench` against a real server."""

from pathlib import Path

import pytest
from PIL import Image

from benchmarks.load.commands import bench
from benchmarks.load.result import Result
from tests.server.processes import ROOT, ServerProcess

QUICK = ["--seconds", "1.5", "--warmup-seconds", "0.3"]


def test_an_open_loop_of_several_rates_is_told_in_a_file_and_a_picture(
    real_server: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, picture = tmp_path / "result.json", tmp_path / "picture.png"
    loads = ["--rates", "5,15", "--mix", "1:2,4:1", "--slo-ms", "1:60000,4:60000", "--note", "a test"]
    assert bench(["--url", real_server.url, *QUICK, *loads, "--out", str(out), "--plot", str(picture)]) == 0
    result = Result.model_validate_json(out.read_text())
    assert [run.rate for run in result.runs] == [5, 15] and result.model == "tiny" and result.note == "a test"
    assert result.server is not None and set(result.server) == {"commit", "device", "versions"}
    for run in result.runs:
        assert set(run.by_steps_requested) <= {"1", "4"} and run.by_steps_requested == run.by_steps_used
        assert run.total.outcomes == {"200": run.total.requests} and run.goodput_share == 1
        assert run.total.stages_ms.keys() == {"queue", "device", "encode", "total"}
        assert run.total.latency_ms is not None
        assert run.total.latency_ms.p50 >= run.total.stages_ms["total"].p50
    with Image.open(picture) as image:
        assert image.width > 800
    printed = capsys.readouterr().out
    assert "15/s:" in printed and "p95" in printed and "within the objective" in printed


def test_a_closed_loop_of_so_many_requests(real_server: ServerProcess, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    loads = ["--clients", "1,3", "--requests", "6", "--warmup-seconds", "0", "-n", "2", "--determinism", "fast"]
    assert bench(["--url", real_server.url, *loads, "--arrivals", "bursts", "--out", str(out)]) == 0
    runs = Result.model_validate_json(out.read_text()).runs
    assert [(run.clients, run.total.outcomes) for run in runs] == [(1, {"200": 6}), (3, {"200": 6})]
    assert all(run.images_per_second == pytest.approx(2 * run.answered_per_second, rel=1e-3) for run in runs)


@pytest.mark.parametrize("endpoint", ["generate", "openai"])
def test_either_endpoint_is_asked_for_what_the_server_chooses_within_a_deadline(
    endpoint: str, real_server: ServerProcess, tmp_path: Path
) -> None:
    out = tmp_path / "result.json"
    loads = ["--clients", "2", "--requests", "8", "--warmup-seconds", "0", "--mix", "auto,2"]
    terms = ["--endpoint", endpoint, "--deadline-ms", "60000", "--allow-degrade"]
    assert bench(["--url", real_server.url, *loads, *terms, "--out", str(out)]) == 0
    (run,) = Result.model_validate_json(out.read_text()).runs
    assert run.total.outcomes == {"200": 8} and run.deadline_met_share is not None
    assert set(run.by_steps_requested) == {"2", "auto"}
    assert "auto" not in run.by_steps_used and sum(p.requests for p in run.by_steps_used.values()) == 8


def test_answers_that_are_refused_are_counted_as_what_they_are(
    real_server: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "result.json"
    assert bench(["--url", real_server.url, "--clients", "1", "--requests", "1", "--mix", "77", "--out", str(out)]) == 0
    (run,) = Result.model_validate_json(out.read_text()).runs
    assert run.total.outcomes["422"] == 1 and run.total.latency_ms is None and run.answered_per_second == 0
    assert "no images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "--rates"),
        (["--rates", "1", "--clients", "1"], "either"),
        (["--rates", "0"], "--rates"),
        (["--clients", "1.5"], "whole"),
        (["--rates", "1", "--mix", "four"], "--mix"),
        (["--rates", "1", "--mix", "1,4", "--slo-ms", "1:50"], "4 steps"),
        (["--rates", "1", "--slo-ms", "soon"], "slo"),
        (["--rates", "1", "--url", "nowhere"], "--url"),
    ],
)
def test_a_wrong_argument_is_told_in_a_line(
    arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(arguments) == 2
    told = capsys.readouterr().err
    assert word in told and told.count("\n") == 1 and "Traceback" not in told


def test_where_nothing_is_served_it_says_so(real_server: ServerProcess, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(["--url", "http://127.0.0.1:9", "--rates", "1"]) == 1
    assert "does not answer" in capsys.readouterr().err
    assert bench(["--url", real_server.url, "--rates", "1", "--model", "other"]) == 1
    assert "tiny" in capsys.readouterr().err


@pytest.mark.parametrize(
    "file", sorted((ROOT / "benchmarks" / "results").glob("bench-*.json")), ids=lambda file: file.stem
)
def test_committed_results_can_be_read_and_say_how_they_came_about(file: Path) -> None:
    result = Result.model_validate_json(file.read_text())
    assert result.command.startswith("stepdial bench ") and result.server and result.note
    assert file.with_suffix(".png").exists()
