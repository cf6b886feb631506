"""`stepdial distill` by every method: who teaches whom, what is recorded, and what cannot be asked for."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import stepdial
from diffusion.family import Family, FamilyError, open_family
from diffusion.files import write_json
from diffusion.manifest import MANIFEST, Member
from tests.server.tiny import write_tiny_family
from training.composition import combinable
from training.objective import teacher_steps
from training.run import Run
from training.student_settings import StudentSettings


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["stepdial", *map(str, arguments)])
    return stepdial.main()


def distil(monkeypatch: pytest.MonkeyPatch, folder: Path, *flags: object, iterations: int = 3) -> int:
    settings = ["--iterations", iterations, "--batch", 6, "--precision", "fp32", "--device", "cpu"]
    return call(monkeypatch, "distill", "--family", folder, *settings, "--runs", folder / "../runs", *flags)


@pytest.fixture
def folder(digits_family: Family, tmp_path: Path) -> Path:
    """A copy of the trained family that may be changed."""
    return Path(shutil.copytree(digits_family.folder, tmp_path / "digits"))


def test_progressive_distillation_goes_from_many_steps_to_few_each_student_taught_by_the_one_before(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    assert not distil(monkeypatch, folder, "--method", "pd", "--steps", "1,2,4")
    said = capsys.readouterr().out
    taught = [
        f"the {k}-step student is taught by {by}" for k, by in ((4, "teacher"), (2, "student-4"), (1, "student-2"))
    ]
    assert [line for line in said.splitlines() if "taught by" in line] == taught
    family = open_family(folder)
    settings = {member.name: member.training.settings for member in family.manifest.students}
    hashes = {member.name: member.weights.sha256 for member in family.manifest.members}
    for steps, by in ((4, "teacher"), (2, "student-4"), (1, "student-2")):
        record = settings[f"student-{steps}"]
        assert record["teacher_sha256"] == record["start_sha256"] == hashes[by]
        learnt = record["objective"]
        assert (learnt["method"], learnt["teacher_steps_start"], learnt["anneal_iterations"]) == ("pd", 2 * steps, 0)
        # only the teacher, which samples by aDDIM and is guided, is stepped so
        assert (learnt["teacher_rule"], learnt["guidance"]) == (("addim", 1.0) if by == "teacher" else ("ddim", 0.0))
    assert [member.guidance for member in family.manifest.students] == [1.0, 1.0, 1.0]
    # nothing is left to do until a teacher of theirs changes
    monkeypatch.setattr(Run, "step", lambda *_: pytest.fail("trained again"))
    assert not distil(monkeypatch, folder, "--method", "pd", "--steps", "1,2,4")


def test_a_student_may_teach_one_of_fewer_steps_its_own_path(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    assert not distil(monkeypatch, folder, "--steps", "8")
    assert not distil(monkeypatch, folder, "--steps", "2", "--method", "tract", "--taught-by", "student-8")
    record = open_family(folder).manifest.member("student-2").training.settings["objective"]
    assert (record["method"], record["teacher_steps_start"], record["teacher_steps_end"]) == ("tract", 8, 8)
    assert (record["teacher_rule"], record["guidance"]) == ("ddim", 0.0)
    capsys.readouterr()
    for flags, said in (
        (["--steps", "4", "--method", "pd", "--taught-by", "nobody"], "no member 'nobody' in family"),
        (["--steps", "3", "--taught-by", "student-8"], "are not a multiple of 3, so their boundaries do not fit"),
        (["--steps", "2", "--method", "pd", "--taught-by", "student-8"], "are not exactly twice 2"),
        (["--steps", "4", "--method", "ect", "--taught-by", "student-8"], "ect trains on data alone"),
        (["--steps", "4", "--taught-by", "student-8", "--guidance", "2"], "teaches its own guidance: --guidance 1"),
        (
            ["--steps", "4", "--taught-by", "student-8", "--teacher-steps", "8-8"],
            "student-8 teaches with its own 8 steps",
        ),
        (["--steps", "1,2", "--whole", "--method", "pd"], "halves the steps of one student after another"),
    ):
        assert distil(monkeypatch, folder, *flags) == 1
        assert said in capsys.readouterr().err


def test_a_resumed_tract_run_ends_as_an_uninterrupted_one_to_the_bit_its_self_teacher_included(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    flags = ["--steps", "2", "--method", "tract", "--lr", "1e-2", "--warmup", "0"]
    assert not distil(monkeypatch, folder, *flags, iterations=6)
    checkpoint = folder / "../runs/digits/student-2/checkpoint.safetensors"
    whole = load_file(checkpoint)
    shutil.rmtree(folder / "../runs")
    (folder / "student-2.safetensors").unlink()
    about = json.loads((folder / "family.json").read_text())
    about["members"] = [member for member in about["members"] if member["name"] == "teacher"]
    about["golden"] = None
    (folder / "family.json").write_text(json.dumps(about))
    step = Run.step

    def killed(run: Run, *arguments: object) -> float:
        if run.iteration == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(run, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "step", killed)
        assert distil(patch, folder, *flags, iterations=6) == 130
    torch.manual_seed(99)
    assert not distil(monkeypatch, folder, *flags, iterations=6)
    parts = load_file(checkpoint)
    averaged = [name for name in whole if name.startswith("self_teacher.")]
    assert averaged and whole.keys() == parts.keys()
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []
    assert any(not torch.equal(whole[name], whole[name.replace("self_teacher", "network")]) for name in averaged)


def test_easy_consistency_tuning_and_the_multiscale_loss_are_trained_and_recorded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    assert not distil(monkeypatch, folder, "--steps", "1,2", "--method", "ect", "--poolings", "1")
    for member in open_family(folder).manifest.students:
        learnt = member.training.settings["objective"]
        assert (learnt["method"], learnt["distance"], learnt["poolings"]) == ("ect", "snr1_x_huber", 1)
        assert member.guidance == 0.0


def test_students_learn_the_teachers_guidance_where_it_acts_unless_told_otherwise(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    family = open_family(folder)
    teacher = family.manifest.teacher
    assert teacher is not None
    within = teacher.model_copy(update={"guidance_interval": (0.25, 0.75)})
    write_json(folder, MANIFEST, family.manifest.model_copy(update={"members": (within,)}))
    assert [hop.guided for hop in open_family(folder).positions[32].hops].count(True) == 17
    assert not distil(monkeypatch, folder, "--steps", "4")
    assert not distil(monkeypatch, folder, "--steps", "2", "--method", "pd")  # taught by the student
    assert not distil(monkeypatch, folder, "--steps", "1,2", "--whole", "--guidance-interval", "0,0.5")
    manifest = open_family(folder).manifest
    found = {member.name: member.guidance_interval for member in manifest.members}
    assert found == {"teacher": (0.25, 0.75), "student-4": (0.25, 0.75), "student-2": (0.25, 0.75), "whole": (0.0, 0.5)}
    assert manifest.member("student-4").training.settings["objective"]["guidance_interval"] == [0.25, 0.75]
    with pytest.raises(FamilyError, match="guidance was baked into students of family 'digits' over different times"):
        combinable(manifest)
    other = ["--steps", "1", "--method", "pd", "--guidance-interval", "0,1"]
    assert distil(monkeypatch, folder, *other) == 1
    assert "student-2 teaches its own guidance: --guidance 1 --guidance-interval 0.25,0.75" in capsys.readouterr().err


def test_students_of_sampled_guidance_record_their_range_and_draw_with_what_is_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
):
    train = ["--lr", "1e-2", "--warmup", "0", "--guidance-range", "0,3"]
    assert not distil(monkeypatch, folder, "--steps", "4", *train, iterations=12)
    assert not distil(monkeypatch, folder, "--steps", "2", "--method", "pd", *train)  # told w by one who is
    assert not distil(monkeypatch, folder, "--steps", "1,2", "--whole", *train)
    family = open_family(folder)
    for member in family.manifest.members[1:]:
        assert (member.guidance, member.guidance_range) == (1.0, (0.0, 3.0))
    learnt = family.manifest.member("student-2").training.settings["objective"]
    assert (learnt["guidance"], learnt["guidance_range"], learnt["teacher_told"]) == (0.0, [0.0, 3.0], True)

    def picture(name: str, *flags: object) -> bytes:
        file = tmp_path / name
        asked = ["--steps", 4, "--count", 4, "--out", file]
        assert not call(monkeypatch, "sample", "--family", folder, *asked, *flags)
        return file.read_bytes()

    assert picture("own.png") == picture("one.png", "--guidance", 1) != picture("two.png", "--guidance", 3)
    capsys.readouterr()
    beyond = ["--steps", 4, "--guidance", 4, "--out", tmp_path / "none.png"]
    assert call(monkeypatch, "sample", "--family", folder, *beyond) == 1
    assert "stepdial sample: student-4 was trained for guidance 0 to 3" in capsys.readouterr().err
    assert distil(monkeypatch, folder, "--steps", "8", "--guidance-range", "2,3") == 1
    assert "--guidance 1 is outside of --guidance-range 2,3" in capsys.readouterr().err


def test_the_counts_of_a_whole_dial_have_the_parts_and_the_schedules_that_are_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    # the network, and tract's average of it, are told their counts in parts of these sizes
    flags = [
        "--steps",
        "1,2,4",
        "--whole",
        "--weights",
        "1:2,4:3",
        "--teacher-steps",
        "1:4-16,32-64",
        "--method",
        "tract",
    ]
    assert not distil(monkeypatch, folder, *flags)
    assert "a batch is 6 images: 2 of 1, 1 of 2, 3 of 4 steps" in capsys.readouterr().out
    learnt = open_family(folder).manifest.member("whole").training.settings["objectives"]
    assert [one["weight"] for one in learnt] == [2, 1, 3]
    asked = [(one["teacher_steps_start"], one["teacher_steps_end"]) for one in learnt]
    assert asked == [(4, 16), (32, 64), (32, 64)]


REFUSED = [
    (
        ["--steps", "1,2", "--whole", "--weights", "8:2"],
        "names the step counts 8, which are not trained; trained are 1, 2",
    ),
    (["--steps", "1", "--weights", "1:2"], "--weights is for one network for the whole dial; give --whole too"),
    (["--weights", "1:0"], "--weights: must be like 1:2,2:1, got '1:0'"),
    (["--weights", "2"], "--weights: must be like 1:2,2:1, got '2'"),
    (["--teacher-steps", "a-b"], "--teacher-steps: must be like 64-1280 or 1:4-48,2:8-64, got 'a-b'"),
    (
        ["--teacher-steps", "96-16"],
        "--teacher-steps: must not fall, as 96-16 does; teacher steps stay or grow over a run, got",
    ),
    (
        ["--steps", "8", "--teacher-steps", "4-16"],
        "4 are no multiple of the student's 8 steps, so its segments would not end",
    ),
    (["--steps", "4", "--teacher-steps", "8-30"], "30 are no multiple of the student's 4 steps"),
    (["--steps", "4", "--teacher-steps", "8-30"], "28 or 32 would do"),
    (["--steps", "1,2", "--teacher-steps", "4:8-16"], "--teacher-steps names the step counts 4, which are not trained"),
    (
        ["--steps", "2", "--method", "pd", "--teacher-steps", "8-16"],
        "method pd has two steps of what it halves; leave it out",
    ),
    (["--steps", "2", "--method", "ect", "--teacher-steps", "8-16"], "method ect has stages of its own; leave it out"),
    (
        ["--steps", "2", "--method", "ct", "--guidance", "1"],
        "--guidance 1: method ct trains on data alone, which has no guidance",
    ),
    (["--steps", "2", "--method", "ect", "--guidance", "1"], "leave it out, or take cd, tract, pd"),
    (
        ["--steps", "2", "--method", "ct", "--guidance-range", "0,3"],
        "ct trains on data alone, which has no guidance to sample",
    ),
    (["--steps", "2", "--guidance-range", "3"], "--guidance-range: must be two numbers, like 0,3, got"),
    (["--steps", "2", "--guidance-range=-1,3"], "--guidance-range: must rise from 0 or more, like 0,3, got"),
    (
        ["--steps", "2", "--method", "ct", "--guidance-interval", "0.25,0.75"],
        "--guidance-interval: method ct trains on data alone, which has no guidance; leave it out",
    ),
    (["--steps", "2", "--guidance-interval", "0.25"], "--guidance-interval: must be two times, like 0.25,0.75, got"),
    (
        ["--steps", "2", "--guidance-interval", "0.5,2"],
        "--guidance-interval: must rise within 0 to 1, like 0.25,0.75, got",
    ),
    (["--steps", "2", "--guidance-range", "0,3", "--guidance", "4"], "--guidance 4 is outside of --guidance-range 0,3"),
    (["--steps", "two"], "--steps must be whole numbers from 1 to 1024 separated by commas, got 'two'"),
    (["--lr", "fast"], "--lr: Input should be a valid number"),
]


@pytest.mark.parametrize(
    ("flags", "said"), REFUSED, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_flags_that_training_would_not_heed_are_refused_by_name_with_what_is_allowed(
    flags: list[str], said: str, digits_family: Family, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    assert distil(monkeypatch, digits_family.folder, *flags) > 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("stepdial distill: ") and said in line
    assert line.count(", got ") <= 1 and "Value error" not in line


def test_a_presets_or_the_familys_guidance_does_not_stop_consistency_training(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    assert not distil(monkeypatch, folder, "--steps", "2", "--method", "ct")
    assert open_family(folder).manifest.member("student-2").guidance == 0.0


def test_recipes_of_the_new_methods_keep_the_teachers_path_as_it_is(digits_family: Family):
    teacher = digits_family.manifest.teacher
    for method in ("tract", "pd"):
        objective = StudentSettings(method=method).objective(4)
        assert teacher_steps(objective, 0) == teacher_steps(objective, 10**6) == {"tract": 96, "pd": 8}[method]
    student = Member.model_validate(teacher.model_dump() | {"name": "student-8", "role": "student", "steps": 8})
    assert StudentSettings(method="cd").objective(4, student).teacher_steps_end == 8
    assert StudentSettings(method="ect", recipe="paper").objective(2).distance == "snr1_x_huber"
    stages = [StudentSettings(method="ect", recipe=recipe).objective(2).ect_stages for recipe in ("paper", "short")]
    assert stages == [8, 6] and StudentSettings(method="cd").objective(2).ect_stages == 8


def test_students_that_are_told_their_guidance_are_not_composed_with_others(tmp_path: Path):
    manifest = open_family(write_tiny_family(tmp_path / "tiny", steps=(1, 2), guidance=(0.0, 3.0))).manifest
    assert len(combinable(manifest)) == 2
    plain = manifest.members[1].model_copy(
        update={"network": manifest.members[1].network.model_copy(update={"guidance": None})}
    )
    mixed = manifest.model_copy(update={"members": (manifest.members[0], plain, manifest.members[2])})
    with pytest.raises(FamilyError, match="told different ranges of guidance, or none"):
        combinable(mixed)
