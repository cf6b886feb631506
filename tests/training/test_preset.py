"""Presets: every file gives settings that exist, every network has its number of parameters, and flags come first."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

import stepdial
from diffusion.family import open_family
from diffusion.uvit import PRESETS, UViT
from training.distilling import Distill
from training.failures import TrainingError
from training.making import Train
from training.preset import FOLDER, METHODS, names, network_of, student_settings, teacher_settings
from training.share import Share
from training.student_settings import StudentSettings
from training.teacher import TeacherSettings

PARAMETERS = {  # what the paper prints, and ours
    "imagenet64-small": (394e6, 394_130_435),
    "imagenet64-large": (1.23e9, 1_243_353_091),
    "imagenet128-small": (397e6, 397_407_235),
    "imagenet128-large": (1.25e9, 1_253_576_707),
    "text-to-image": (None, 4_325_541_132),
    "cifar10": (None, 22_487_171),
    "debug": (None, 141_057),
}
CELLS = [
    f"imagenet{resolution}-{size}-{method}-{steps}"
    for resolution in (64, 128)
    for size in ("small", "large")
    for method in METHODS
    for steps in (1, 2, 4, 8, 16)
]


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["stepdial", *map(str, arguments)])
    return stepdial.main()


def test_there_is_a_preset_for_every_training_the_paper_has_and_two_small_ones():
    assert set(names()) == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_network_of_every_preset_has_the_stated_number_of_parameters(name: str):
    with torch.device("meta"):
        count = sum(value.numel() for value in UViT(PRESETS[name]).parameters())
    printed, ours = PARAMETERS[name]
    assert count == ours and (printed is None or count == pytest.approx(printed, rel=0.011))


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_settings_of_every_preset_are_settings_of_the_commands_and_nearly_all_of_them(name: str):
    teacher = Train(preset=name, family=Path("f"))
    wanted = teacher_settings(name)
    assert wanted.items() <= teacher.model_dump(mode="json").items()
    left_out = set(TeacherSettings.model_fields) - set(wanted)
    assert left_out <= {"preset", "noise_resolution", "noise_resolution_end", "poolings"}
    methods = [method for method in METHODS if name != "text-to-image" or method == "cd"]
    for method in methods:
        student = Distill(preset=f"{name}-{method}", family=Path("f"))
        wanted = student_settings(f"{name}-{method}")
        assert wanted.items() <= student.model_dump(mode="json").items() and student.method == method
        of_distillation = {"guidance", "teacher_rule", "x_var", "eta"}
        left_out = set(StudentSettings.model_fields) - set(wanted) - of_distillation
        options = {
            "distance",
            "huber_epsilon",
            "taught_by",
            "guidance_range",
            "guidance_interval",
            "teacher_steps",
            "poolings",
            "weights",
        }
        assert left_out <= options, "a preset states what it is"


@pytest.mark.parametrize("name", CELLS)
def test_every_cell_of_the_papers_table_is_a_preset_of_its_own_objective(name: str):
    student = Distill(preset=name, family=Path("f"))
    steps = int(name.rsplit("-", 1)[1])
    assert student.steps == str(steps) and student.batch == 2048 and student.iterations == 200_000
    objective = student._settings(None, steps).objective(steps)
    assert (objective.teacher_steps_start, objective.teacher_steps_end, objective.anneal_iterations) == (
        64,
        1280,
        100_000,
    )
    assert (objective.method, objective.eta, objective.huber_epsilon) == (name.rsplit("-", 2)[1], 0.75, 1e-4)
    assert bool(objective.guidance) == name.startswith("imagenet128-small-cd")
    teacher = Train(preset=network_of(name), family=Path("f"))
    schedule = TeacherSettings.model_validate(
        teacher.model_dump(include=set(TeacherSettings.model_fields))
    ).noise_schedule()
    assert (schedule.noise_resolution, schedule.noise_resolution_end) == (32, schedule.image_resolution)


def test_flags_come_before_the_preset_and_the_preset_before_defaults(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    assert not call(monkeypatch, "train", "--preset", "cifar10", "--lr", 3e-5, "--family", "f", "--dry-run")
    told = dict(line.split(" = ") for line in capsys.readouterr().out.split("\n\n")[0].splitlines())
    assert (json.loads(told["lr"]), json.loads(told["batch"]), json.loads(told["drop_slot"])) == (3e-5, 512, 0.0)
    assert not call(monkeypatch, "train", "--preset", "tiny32", "--family", "f", "--dry-run")  # a network alone
    told = dict(line.split(" = ") for line in capsys.readouterr().out.split("\n\n")[0].splitlines())
    assert json.loads(told["batch"]) == 32


@pytest.mark.parametrize(
    ("command", "name", "said"),
    [
        ("train", "imagenet63", "must be one of imagenet64-small"),
        ("distill", "imagenet63-cd", "must be one of cifar10, debug"),
        ("distill", "small32", "must be one of cifar10, debug"),
        ("distill", "text-to-image-ct-4", "text-to-image has no ct; it has cd"),
    ],
)
def test_a_name_that_is_no_presets_is_answered_with_those_that_are(
    command: str, name: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    assert call(monkeypatch, command, "--preset", name, "--family", "f", "--dry-run") == 2
    error = capsys.readouterr().err
    assert said in error and "--preset" in error and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "status", "said"),
    [
        (["--poolings", "4"], 2, "--poolings: the 8x8 that the network sees can be halved 3 times"),
        (["--seed", str(2**63)], 2, f"--seed: Input should be less than {2**63}"),
        (["--lr", "inf"], 2, "--lr: Input should be a finite number"),
        (["--teacher-guidance", "nan"], 2, "--teacher-guidance: Input should be "),
        (["--family", "My Family"], 2, "--family: the folder's name is the family's: up to 64 of a-z, 0-9 and -"),
        (["--family", "file"], 1, "--family file cannot be written to: File exists"),
        (["--family", "file/within"], 1, "--family file/within cannot be written to: Not a directory"),
        (["--runs", "file"], 1, "--runs file cannot be written to: File exists"),
    ],
)
def test_what_cannot_be_trained_or_written_in_the_end_is_refused_at_the_beginning(
    flags: list[str],
    status: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert call(monkeypatch, "train", "--preset", "debug", "--family", "f", *flags) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"stepdial train: {said}") and not list(tmp_path.glob("**/checkpoint*"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "digits are not augmented; give --no-flip: preset cifar10 has --flip"),
        (["--crop", "random"], "digits are not augmented; give --no-flip --crop centre: preset cifar10 has --flip"),
    ],
)
def test_data_that_a_preset_would_augment_and_that_are_not_are_refused_with_the_presets_name_and_what_to_give(
    flags: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    command = ["train", "--preset", "cifar10", "--data", "digits", "--family", tmp_path / "f", *flags]
    assert call(monkeypatch, *command) == 1
    assert capsys.readouterr().err.strip() == f"stepdial train: {said}"


@pytest.mark.parametrize(
    ("flags", "processes", "said"),
    [
        ({"batch": 33}, 2, "--batch 33 cannot be divided equally among 2 processes; 32 or 34 can"),
        ({"batch": 3}, 4, "--batch 3 cannot be divided equally among 4 processes; 4 can"),
        (
            {"batch": 32, "micro_batch": 7},
            2,
            "the 16 images that each of 2 process(es) has of a batch of 32; the next smaller",
        ),
        ({"batch": 32, "micro_batch": 7}, 2, "that does is 4"),
    ],
)
def test_a_batch_that_cannot_be_shared_is_refused_with_what_can(flags: dict[str, int], processes: int, said: str):
    with pytest.raises(TrainingError) as refused:
        Train(family=Path("f"), **flags).turns(flags["batch"], processes)
    assert said in str(refused.value)


def test_a_share_that_would_lack_a_part_of_the_batch_says_which_batches_have_them_all():
    with pytest.raises(ValueError, match=r"--batch 20 cannot be .* each with its part of 3; 18 or 24 can"):
        Share(20, 0, 2, (1, 2))


def test_torchruns_report_of_a_refusal_is_the_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))  # as torchrun sets it
    assert call(monkeypatch, "train", "--data", "nothing", "--family", tmp_path / "f") == 1
    told = ProcessFailure(local_rank=0, pid=1, exitcode=1, error_file=str(tmp_path / "error.json"))
    said = capsys.readouterr().err.strip()
    assert told.message["message"] == said and "data 'nothing' is not there" in said
    assert time.time() - told.timestamp < 60


def test_the_files_are_packaged():
    table = (FOLDER.parents[1] / "pyproject.toml").read_text()
    assert 'training = ["presets/*.toml"]' in table


def test_the_debug_preset_cut_short_makes_a_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    family = ["--family", tmp_path / "debug", "--runs", tmp_path / "runs", "--device", "cpu"]
    assert not call(monkeypatch, "train", "--preset", "debug", "--iterations", 10, *family)
    assert not call(monkeypatch, "distill", "--preset", "debug-ct-2", "--iterations", 5, *family)
    members = open_family(tmp_path / "debug").manifest.members
    assert [member.name for member in members] == ["teacher", "student-2"]
    assert members[1].training.settings["method"] == "ct"
