"""The commands, end to end on the digits: train, distil, sample, evaluate, report; killed and gone on with."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

import stepdial
from diffusion.family import Family, open_family
from diffusion.files import write_tensors
from training.evaluate import evaluate
from training.features import JUDGE
from training.measuring import Evaluate
from training.members import draw
from training.yardstick import Evaluation

ROOT = Path(__file__).parents[2]
TRAIN = ["--data", "digits", "--preset", "debug", "--iterations", "48", "--batch", "16", "--device", "cpu"]


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["stepdial", *map(str, arguments)])
    return stepdial.main()


def train(folder: Path) -> list[object]:
    return ["train", *TRAIN, "--family", folder / "digits", "--runs", folder / "runs"]


def test_training_killed_and_started_again_writes_the_very_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run = parts / "runs" / "digits" / "teacher"
    command = [sys.executable, ROOT / "stepdial.py", *train(parts)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not list(run.glob("samples-*.png")):  # the first grid is drawn after a quarter of the run
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 130 and "the same command goes on from here" in said and "Traceback" not in said
    assert (run / "checkpoint.safetensors").exists() and not (parts / "digits" / "family.json").exists()
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    assert not call(monkeypatch, *train(whole))
    families = [open_family(folder / "digits") for folder in (whole, parts)]
    assert len({family.manifest.teacher.weights.sha256 for family in families}) == 1
    assert len({family.manifest.golden.sha256 for family in families}) == 1
    assert {family.manifest.teacher.training.iterations for family in families} == {48}


def test_a_teacher_that_is_there_already_is_guided_as_asked_and_its_golden_samples_are_drawn_so(
    family: Family, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr("training.making.is_trained", lambda *_: True)
    before = list(family.golden())
    otherwise = ["--teacher-guidance", 2, "--teacher-guidance-interval", "0.25,0.75"]
    for flags, told in ((otherwise, True), (otherwise, False), (otherwise[:2], False)):  # what is not said stays
        capsys.readouterr()
        assert not call(monkeypatch, *train(family.folder.parent), *flags)
        said = capsys.readouterr().out
        assert said.endswith("family digits has this teacher already\n")
        assert ("guided with w = 2 at times from 0.25 to 0.75 now; its students learnt it as it was" in said) == told
    now = open_family(family.folder)
    assert now.manifest.guidance == 2.0 and now.manifest.members[0].guidance_interval == (0.25, 0.75)
    for (entry, image), (_, once) in zip(now.golden(), before, strict=True):
        asked = torch.tensor([entry.condition])
        drawn = draw(now, now.golden_plan(entry), asked, seeds=[entry.seed], indices=[entry.index])[0]
        assert torch.equal(drawn, image) and not torch.equal(image, once)


def test_what_is_trained_already_is_not_trained_again(
    family: Family, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    assert not distil(monkeypatch, family.folder, "3")
    before = (family.folder / "student-3.safetensors").stat().st_mtime_ns
    shutil.rmtree(family.folder.parent / "runs")
    capsys.readouterr()
    assert not distil(monkeypatch, family.folder, "3")
    assert "has this 3-step student already" in capsys.readouterr().out
    assert (family.folder / "student-3.safetensors").stat().st_mtime_ns == before
    assert not (family.folder.parent / "runs").exists()


def test_a_teacher_begins_with_the_weights_of_another_familys(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    hardly = ["--iterations", 1, "--lr", 1e-12, "--start", family.folder]
    assert not call(monkeypatch, *train(tmp_path / "new"), *hardly)
    fresh = open_family(tmp_path / "new" / "digits")
    before, after = (one.network("teacher").state_dict() for one in (family, fresh))
    assert all(torch.allclose(after[name], value, atol=1e-3) for name, value in before.items())
    first, now = family.manifest.teacher, fresh.manifest.teacher
    assert first and now and now.training.settings["start_sha256"] == first.weights.sha256
    assert not call(monkeypatch, *train(tmp_path / "new"), *hardly)
    assert "has this teacher already" in capsys.readouterr().out
    assert call(monkeypatch, *train(tmp_path / "other"), "--start", ROOT / "families" / "shapes") == 1
    assert (
        "--start: family 'shapes' has a teacher of another network, or of other conditions" in capsys.readouterr().err
    )
    assert call(monkeypatch, *train(tmp_path / "other"), "--start", tmp_path / "none") == 1
    assert "there is no family in 'none'" in capsys.readouterr().err


@pytest.fixture
def family(digits_family: Family, tmp_path: Path) -> Family:
    """A copy of the trained family that may be changed."""
    return open_family(shutil.copytree(digits_family.folder, tmp_path / "digits"))


def distil(monkeypatch: pytest.MonkeyPatch, folder: Path, steps: str = "1,3", *flags: object) -> int:
    settings = ["--iterations", 4, "--batch", 8, "--precision", "fp32", "--device", "cpu", *flags]
    return call(monkeypatch, "distill", "--family", folder, "--steps", steps, "--runs", folder / "../runs", *settings)


def test_a_new_teacher_does_not_take_the_place_of_one_that_has_students(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    assert not distil(monkeypatch, family.folder, "3")
    before = {file.name: file.read_bytes() for file in family.folder.iterdir() if file.is_file()}
    other = ["--seed", 9, "--family", family.folder, "--runs", tmp_path / "others"]
    assert call(monkeypatch, "train", *TRAIN, *other) == 1
    assert "has students of another teacher (student-3), which would be lost" in capsys.readouterr().err
    assert before == {file.name: file.read_bytes() for file in family.folder.iterdir() if file.is_file()}


def test_students_are_distilled_sampled_and_listed(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    assert not distil(monkeypatch, family.folder)
    assert not call(monkeypatch, "families", "--folder", tmp_path)
    said = capsys.readouterr().out
    assert "digits: 8x8, takes a label" in said and "student-3" in said and "1 (not measured), 3 (not measured)" in said
    made = open_family(family.folder)
    assert [student.steps for student in made.manifest.students] == [1, 3]
    assert sorted({entry.steps for entry, _ in made.golden()}) == [1, 3, 32]
    pictures = [tmp_path / name for name in ("a.png", "b.png", "c.png")]
    for file, seed in zip(pictures, (5, 5, 6), strict=True):
        wish = ["--family", family.folder, "--steps", 3, "--seed", seed, "--count", 4, "--label", "7"]
        assert not call(monkeypatch, "sample", *wish, "--out", file)
    assert Image.open(pictures[0]).size == Image.open(pictures[2]).size
    assert pictures[0].read_bytes() == pictures[1].read_bytes() != pictures[2].read_bytes()
    assert not call(monkeypatch, "sample", "--family", family.folder, "--steps", "1,3", "--out", tmp_path / "rows.png")
    assert not call(monkeypatch, "sample", "--family", family.folder, "--count", 1, "--out", tmp_path / "near.png")
    assert "of position 3" in capsys.readouterr().out  # 4 are not offered


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--steps", "5"], "steps 5 is not offered"),
        (["--steps", "four"], "whole numbers"),
        (["--steps", "32", "--label", "x"], "the label 'x' is not known"),
        (["--steps", "32", "--prompt", "x"], "takes a label, not a prompt"),
        (["--steps", "32", "--device", "abacus"], "--device abacus cannot be used"),
    ],
)
def test_a_wish_that_cannot_be_drawn_ends_in_one_sentence(
    arguments: list[str],
    said: str,
    family: Family,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    assert call(monkeypatch, "sample", "--family", family.folder, "--out", tmp_path / "x.png", *arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("stepdial sample: ") and said in line


def test_what_is_measured_when_nothing_is_said_is_what_the_family_offers_of_the_usual_positions(family: Family):
    assert Evaluate(family=family.folder).offered(family) == [32]


def test_failures_are_one_sentence_and_exit_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    assert call(monkeypatch, "distill", "--family", tmp_path) == 1
    assert "family.json is missing" in capsys.readouterr().err
    assert call(monkeypatch, "train", "--family", tmp_path / "f", "--data", "nothing", "--runs", tmp_path) == 1
    assert "data 'nothing' is not there" in capsys.readouterr().err
    assert call(monkeypatch, "train", "--family", tmp_path / "f", "--data", "digits", "--runs", tmp_path) == 1
    assert "choose another --preset: debug, tiny8" in capsys.readouterr().err
    assert call(monkeypatch, "train", "--family", tmp_path / "f", "--data", "", "--runs", tmp_path) == 1
    assert "data '' is not there; what can be named: shapes" in capsys.readouterr().err
    assert call(monkeypatch, "train", "--family", tmp_path / "f", "--data", "digits", "--device", "abacus") == 1
    assert "--device abacus cannot be used here; auto, cpu" in capsys.readouterr().err
    assert call(monkeypatch, "report", "--family", ROOT / "families/digits", "--file", tmp_path / "none.md") == 1
    assert "--file none.md cannot be read: No such file" in capsys.readouterr().err
    assert call(monkeypatch, "dance") == 2 and "there is no command 'dance'" in capsys.readouterr().err


def test_evaluation_writes_the_frontier_and_keeps_what_it_does_not_measure(
    family: Family, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, digit_set, digits_judge
):
    assert not distil(monkeypatch, family.folder, "1,2")
    write_tensors(family.folder, JUDGE, digits_judge)
    how = Evaluation(
        samples=80,
        seeds=(1, 2),
        precision="fp32",
        device=torch.device("cpu"),
        command="stepdial evaluate",
        commit="a",
        folder=tmp_path / "scores",
    )
    first = evaluate(open_family(family.folder), digit_set, [2], how)
    second = evaluate(open_family(family.folder), digit_set, [1], how)
    assert [position.steps for position in second.positions] == [1, 2]
    assert second.positions[1] == first.positions[0]
    measured = second.positions[0]
    assert measured.source == "student" and measured.seeds == (1, 2)
    assert measured.frechet.mean > measured.floor.mean >= 0 and 0 <= measured.agreement.mean <= 1
    assert measured.latency_ms.mean > 0 and measured.images_per_second > 0
    assert open_family(family.folder).frontier == second
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- dial digits -->\nold\n<!-- end -->\nafter\n")
    assert not call(monkeypatch, "report", "--family", family.folder, "--file", page)
    assert "| 2 | student |" in page.read_text() and "old" not in page.read_text()
    assert page.read_text().startswith("before\n") and page.read_text().endswith("<!-- end -->\nafter\n")
    again = ["evaluate", "--family", family.folder, "--positions", 1, "--only-speed", "--device", "cpu"]
    assert not call(monkeypatch, *again)
    third = open_family(family.folder).frontier.positions
    assert third[0].frechet == second.positions[0].frechet and "--only-speed" in third[0].timed.command
    assert third[0].measured.command == "stepdial evaluate" and third[1] == second.positions[1]
    # what was measured of a member goes when the member is made anew
    shutil.rmtree(family.folder / "../runs")
    assert not distil(monkeypatch, family.folder, "1", "--seed", 3)
    assert [position.steps for position in open_family(family.folder).frontier.positions] == [2]


def test_a_new_teacher_replaces_the_family_and_a_student_only_its_own_entry(
    family: Family, monkeypatch: pytest.MonkeyPatch
):
    assert not distil(monkeypatch, family.folder, "2")
    first = open_family(family.folder).manifest
    shutil.rmtree(family.folder / "../runs")
    assert not distil(monkeypatch, family.folder, "1")
    second = open_family(family.folder).manifest
    assert second.teacher == first.teacher and second.member("student-2") == first.member("student-2")
    record = json.loads((family.folder / "family.json").read_text())
    assert record["members"][1]["training"]["settings"]["teacher_sha256"] == first.teacher.weights.sha256
