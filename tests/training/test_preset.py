"""Presets: every file gives settings that exist, every network has its number of parameters, and flags come first."""

import json
import sys
from pathlib import Path

import pytest
import torch

import stepdial
from diffusion.family import open_family
from diffusion.uvit import PRESETS, UViT
from training.distilling import Distill
from training.making import Train
from training.preset import FOLDER, METHODS, names, network_of, student_settings, teacher_settings
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
        options = {"distance", "huber_epsilon", "taught_by", "guidance_range", "teacher_steps", "poolings", "weights"}
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
