"""One network for the whole dial, from the command that trains it to the position that serves it."""

import shutil
import sys
from pathlib import Path

import pytest
import torch

import stepdial
from diffusion.family import Family, open_family
from diffusion.files import write_tensors
from training.evaluate import evaluate
from training.features import JUDGE
from training.frontier_tables import dial_table
from training.yardstick import Evaluation


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["stepdial", *map(str, arguments)])
    return stepdial.main()


def distil(monkeypatch: pytest.MonkeyPatch, folder: Path, *flags: object) -> int:
    settings = ["--iterations", 4, "--batch", 7, "--precision", "fp32", "--device", "cpu", "--runs", folder / "../runs"]
    return call(monkeypatch, "distill", "--family", folder, *settings, *flags)


@pytest.fixture
def folder(digits_family: Family, tmp_path: Path) -> Path:
    """A copy of the trained family that may be changed."""
    return Path(shutil.copytree(digits_family.folder, tmp_path / "digits"))


def test_one_network_is_distilled_for_several_counts_measured_beside_a_separate_student_and_reported(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    digit_set,
    digits_judge,
    capsys: pytest.CaptureFixture,
):
    assert not distil(monkeypatch, folder, "--steps", "2")
    assert not distil(monkeypatch, folder, "--steps", "1,2,4", "--whole")
    assert "a batch is 9 images: 3 of each of 3 counts" in capsys.readouterr().out
    made = open_family(folder)
    whole = made.manifest.whole
    assert whole.name == "whole" and whole.steps is None and whole.network.segments == (1, 2, 4)
    assert whole.training.images == 4 * 9 and whole.guidance == 1.0 and whole.weights.file == "whole.safetensors"
    drawn = {(entry.member, entry.steps) for entry, _ in made.golden()}
    assert drawn == {("teacher", 32), ("student-2", 2), ("whole", 1), ("whole", 2), ("whole", 4)}
    assert list(made.positions)[:4] == [1, 2, 4, 32]
    assert [made.positions[steps].members for steps in (1, 2, 4)] == [("whole",), ("student-2",), ("whole",)]

    write_tensors(folder, JUDGE, digits_judge)
    how = Evaluation(
        samples=80,
        seeds=(1,),
        precision="fp32",
        device=torch.device("cpu"),
        command="stepdial evaluate",
        commit="a",
        folder=tmp_path / "scores",
    )
    first = evaluate(open_family(folder), digit_set, [2], how, sources=("whole",))
    assert [(position.steps, position.source) for position in first.positions] == [(2, "whole")]
    both = evaluate(open_family(folder), digit_set, [1, 2], how)
    assert [(row.steps, row.source) for row in both.positions] == [(1, "whole"), (2, "student"), (2, "whole")]
    assert both.positions[2].frechet == first.positions[0].frechet and both.positions[2].guidance == 1.0
    measured = open_family(folder)
    assert measured.frontier == both
    best = min(both.positions[1:], key=lambda row: row.frechet.mean)
    assert measured.positions[2] == best.plan == measured.choices(2)[0].plan
    assert f"| 2 | {best.source} (default) |" in dial_table(measured) and "| 1 | whole |" in dial_table(measured)

    pictures = {source: tmp_path / f"{source}.png" for source in ("student", "whole")}
    for source, file in pictures.items():
        wish = ["--family", folder, "--steps", 2, "--source", source, "--count", 4, "--out", file]
        assert not call(monkeypatch, "sample", *wish)
    assert pictures["student"].read_bytes() != pictures["whole"].read_bytes()
    # made anew, it takes along what was measured of it and nothing else
    shutil.rmtree(folder / "../runs")
    assert not distil(monkeypatch, folder, "--steps", "1,4", "--whole", "--start", "student-2")
    again = open_family(folder)
    assert [(row.steps, row.source) for row in again.frontier.positions] == [(2, "student")]
    assert {entry.steps for entry, _ in again.golden() if entry.member == "whole"} == {1, 4}
    settings = again.manifest.whole.training.settings
    assert settings["start_sha256"] == again.manifest.member("student-2").weights.sha256


def test_a_network_that_learns_the_teachers_part_too_serves_the_teachers_positions_where_it_measures_better(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    assert not distil(monkeypatch, folder, "--steps", "1,2", "--whole", "--teacher-part")
    family = open_family(folder)
    assert family.manifest.whole.network.segments == (0, 1, 2)
    assert family.positions[32].members == ("teacher",)
    alone = family.manifest.whole.plan(64)
    assert family.plans(64) == (family.positions[64], alone) and family.guidance(alone) == 0.0
    assert {(hop.segments, hop.rule) for hop in alone.hops} == {(0, "addim")} and family.source(alone) == "whole"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--teacher-part"], "give --whole too"),
        (["--whole", "--start", "nobody"], "there is no member 'nobody'"),
    ],
)
def test_a_wish_for_the_whole_dial_that_cannot_be_met_ends_in_one_sentence(
    flags: list[str], said: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    assert distil(monkeypatch, folder, *flags) == 1
    assert said in capsys.readouterr().err
