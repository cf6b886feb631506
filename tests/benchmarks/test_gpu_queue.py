"""The queue for a GPU: pieces end in time, go on, and say what was measured and what was not."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from benchmarks.gpu import command
from benchmarks.gpu.commands import GRACE, stepdial
from benchmarks.gpu.piece import Ask, Piece, Result, Step, StepFailed, Unfinished, run
from benchmarks.gpu.pieces import PIECES
from benchmarks.gpu.report import table
from benchmarks.kernels.measure import PIECES as MEASURED

ROOT = Path(__file__).parents[2]
README = ROOT / "benchmarks" / "gpu" / "README.md"
QUICK = ("ceilings",)
"""Pieces that start no processes."""


def ask(folder: Path, *, minutes: float = 8.0, tiny: bool = False) -> Ask:
    until = monotonic() + 60 * minutes
    return Ask(device="cpu", tiny=tiny, until=until, results=folder / "results", work=folder / "work")


def piece(**steps: Callable[[Ask], dict[str, Any]]) -> Piece:
    return Piece("trial", "does it?", lambda _: tuple(Step(name, step, 1.0) for name, step in steps.items()))


def test_a_step_that_is_done_is_not_done_again_and_one_that_failed_is(tmp_path: Path) -> None:
    taken: list[str] = []

    def works(_: Ask) -> dict[str, Any]:
        taken.append("works")
        return {"seconds": 1.0}

    def breaks(_: Ask) -> dict[str, Any]:
        taken.append("breaks")
        raise StepFailed("it is broken\nand more")

    trial = piece(breaks=breaks, works=works)
    for _ in range(2):
        result = run(trial, ask(tmp_path))
    assert taken == ["breaks", "works", "breaks"] and result.failed == {"breaks": "it is broken"}
    (done,) = Result.read(trial, tmp_path / "results").done
    assert (done.step, done.values) == ("works", {"seconds": 1.0}) and done.commit and done.versions["torch"]
    run(trial, ask(tmp_path), again=True)
    assert taken[3:] == ["breaks", "works"]
    assert len(Result.read(trial, tmp_path / "results").done) == 1


def test_a_step_is_not_begun_without_the_time_for_it_and_an_interrupted_one_goes_on(tmp_path: Path) -> None:
    trained = 0

    def training(_: Ask) -> dict[str, Any]:
        nonlocal trained
        trained += 1
        if trained < 3:
            raise Unfinished(f"{trained} of 3")
        return {"trained": trained}

    trial = piece(training=training)
    assert run(trial, ask(tmp_path, minutes=0.5)).unfinished == {"training": "not begun"} and not trained
    assert run(trial, ask(tmp_path)).unfinished == {"training": "1 of 3"}
    run(trial, ask(tmp_path))
    assert not run(trial, ask(tmp_path)).unfinished
    assert Result.read(trial, tmp_path / "results").done[0].values == {"trained": 3}


def test_the_readme_says_what_the_result_files_say() -> None:
    found = re.search(r"<!-- pieces -->\n(.*?)<!-- end -->", README.read_text(), re.DOTALL)
    kept = Ask(device="cuda", tiny=False, until=0.0, results=README.parent, work=README.parent)
    assert found and found[1] == table(kept), "benchmarks/gpu/run --readme writes it"


def test_trials_in_small_are_not_measurements(tmp_path: Path) -> None:
    arguments = ["--piece", "ceilings", "--device", "cpu", "--results", str(tmp_path), "--work", str(tmp_path)]
    assert command.main([*arguments, "--tiny"]) == 0
    result = Result.read(PIECES[0], tmp_path)
    assert {done.step for done in result.done} == {"copies", "products"} and all(done.tiny for done in result.done)
    assert all(value > 0 for done in result.done for value in done.values.values())
    row = table(Ask(device="cpu", tiny=False, until=0.0, results=tmp_path, work=tmp_path)).splitlines()[2]
    assert row.endswith("| - | everything |")


def test_the_command_lists_every_step_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert all(f"{piece.name}: {piece.question}" in listed for piece in PIECES)


@pytest.mark.slow
@pytest.mark.parametrize("name", [piece.name for piece in PIECES if piece.name not in QUICK])
def test_every_piece_runs_in_small_on_a_cpu_and_writes_its_result(name: str, tmp_path: Path) -> None:
    line = [sys.executable, ROOT / "benchmarks" / "gpu" / "run", "--piece", name, "--device", "cpu", "--tiny"]
    line += ["--minutes", "30", "--results", tmp_path, "--work", tmp_path / "work"]
    done = subprocess.run(line, capture_output=True, text=True)
    (found,) = (piece for piece in PIECES if piece.name == name)
    result = Result.read(found, tmp_path)
    assert done.returncode == 0, (done.stdout[-2000:], done.stderr[-2000:], result.failed)
    steps = [step.name for step in found.steps(ask(tmp_path, tiny=True))]
    assert [entry.step for entry in result.done] == steps and not result.failed and not result.unfinished


@pytest.mark.slow
def test_a_training_is_interrupted_in_time_and_leaves_what_it_goes_on_from(tmp_path: Path) -> None:
    endless = ("train", "--data", "digits", "--preset", "debug", "--iterations", "100000", "--batch", "16")
    where = ("--family", "{work}/family", "--runs", "{work}/runs", "--tracker", "none")
    asked = ask(tmp_path, minutes=(GRACE + 25) / 60)
    with pytest.raises(Unfinished, match="goes on from here"):
        stepdial(*endless, *where, tiny=())(asked)
    assert list((tmp_path / "work").glob("**/checkpoint.safetensors")) and asked.seconds_left > 0


def test_the_queue_measures_every_piece_of_the_kernels(tmp_path: Path) -> None:
    (kernels,) = (known for known in PIECES if known.name == "kernels")
    assert {step.name for step in kernels.steps(ask(tmp_path))} == {*MEASURED}
