"""`stepdial check`: each check on a real server, and each verdict able to be BROKEN."""

from pathlib import Path

import pytest

from benchmarks.checks import fairness, overload
from benchmarks.checks.commands import check
from benchmarks.checks.verdict import Verdict
from benchmarks.load.client import Answer
from benchmarks.load.loops import Run
from benchmarks.load.summary import Summary, summarise

LONG = ("after the ", "95 % of", "memory of")
"""How findings begin that two seconds beside other tests cannot tell: speeds, and memory that connections still fill."""


def kept_as_far_as_seen(name: str, family_folder: Path, folder: Path) -> Verdict:
    """Run a short check and return its verdict, which must hold but for what takes a longer one to tell."""
    out = folder / "verdict.json"
    status = check([name, "--family", str(family_folder), "--seconds", "2", "--out", str(out)])
    verdict = Verdict.model_validate_json(out.read_text())
    assert status == (0 if verdict.kept else 1)
    assert verdict.kept == all(finding.kept for finding in verdict.findings)
    broken = [finding for finding in verdict.findings if not finding.kept and not finding.what.startswith(LONG)]
    assert not broken, verdict.lines()
    assert set(verdict.server) == {"commit", "device", "versions"}
    return verdict


def test_overload_brings_images_and_refusals_with_retry_after_and_nothing_else(
    family_folder: Path, tmp_path: Path
) -> None:
    verdict = kept_as_far_as_seen("overload", family_folder, tmp_path)
    assert verdict.numbers["recovery_seconds"] is not None
    assert {"200", "503"} >= set(verdict.numbers["overload"]["total"]["outcomes"])


def test_clients_that_leave_are_counted_and_their_work_is_dropped(family_folder: Path, tmp_path: Path) -> None:
    assert kept_as_far_as_seen("disconnects", family_folder, tmp_path).numbers["left"] > 0


@pytest.mark.slow
def test_1_step_requests_are_answered_beside_512_step_ones(family_folder: Path, tmp_path: Path) -> None:
    assert kept_as_far_as_seen("fairness", family_folder, tmp_path).numbers["steps_of_long_requests"] == 512


@pytest.mark.slow
def test_samples_have_the_same_bytes_alone_and_in_a_crowd(family_folder: Path, tmp_path: Path) -> None:
    assert kept_as_far_as_seen("invariance", family_folder, tmp_path).numbers["samples_per_wave"] > 1


def answer(outcome: str, retry_after: float | None = None, latency: float = 0.1) -> Answer:
    return Answer(1, 0.0, 0.0, latency, outcome, retry_after=retry_after)


def test_an_error_a_silence_or_no_image_at_all_breaks_the_overload_promise() -> None:
    assert overload._outcomes([answer("200"), answer("503", 1), answer("429", 1)]).kept
    for outcome in ("500", "504", "timeout", "connection", "no-image"):
        assert not overload._outcomes([answer("200"), answer(outcome)]).kept
    assert not overload._outcomes([answer("503", 1)]).kept


def test_a_missing_or_absurd_retry_after_breaks_the_overload_promise() -> None:
    assert overload._waits([answer("503", 1), answer("503", 10)]).kept
    for seconds in (None, 0, 11):
        assert not overload._waits([answer("503", 1), answer("503", seconds)]).kept
    assert not overload._waits([]).kept  # no overload, no verdict


def test_a_process_that_grows_breaks_the_overload_promise() -> None:
    assert overload._memory([100, 101, 103, 102]).kept
    assert not overload._memory([100, 102, 104, 106]).kept


def test_a_recovery_that_is_late_or_never_comes_breaks_the_overload_promise() -> None:
    assert overload._recovery(0.5).kept
    assert not overload._recovery(1.5).kept and not overload._recovery(None).kept


def of(*latencies: float) -> Summary:
    answers = [answer("200", latency=latency) for latency in latencies]
    return summarise(Run(answers, 0, 1, 0.1), rate=1, clients=None, slo=None)


def test_a_wait_of_more_than_a_few_waves_breaks_the_fairness_promise() -> None:
    assert fairness._p95(of(0.010), of(0.039), 10, 512).kept
    assert not fairness._p95(of(0.010), of(0.041), 10, 512).kept
    assert not fairness._p95(of(0.010), of(), 10, 512).kept


def test_where_no_server_comes_up_its_words_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(["overload", "--family", str(tmp_path)]) == 1
    assert "family.json" in capsys.readouterr().err
    assert check(["everything"]) == 2
