"""The probe and what follows a run: the same images, times and noise each time, and nothing changed in the training."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import stepdial
from diffusion.family import Family
from diffusion.plans import student_plan
from diffusion.sampler import sample
from diffusion.schedule import CosineSchedule
from diffusion.uvit import UViT
from tests.checkpoints import write_dit, write_images
from training.checkpoint import Checkpoint
from training.command import data_of
from training.datasets import FiniteSet
from training.failures import TrainingError
from training.importing import import_family
from training.objective import Objective, teacher_steps
from training.probe import PLACES, ROWS, SEED, flat, teacher_probe
from training.run import Run
from training.student import distillation, new_student_run, new_whole_run
from training.student_probe import DRAWN, probe_times, share, student_probe
from training.student_settings import StudentSettings
from training.teacher import TeacherSettings, new_teacher_run
from training.trainer import fit
from training.watch import Watch, check_tracker, read_found

PLAIN = CosineSchedule(image_resolution=8, noise_resolution=8)
CPU = torch.device("cpu")
SETTINGS = StudentSettings(iterations=20, batch=4, warmup=1, precision="fp32", lr=1e-3)


def student_run(family: Family, folder: Path, **changes: object) -> Run:
    return new_student_run(SETTINGS.model_copy(update=changes), 2, family, folder, CPU)


def test_places_lie_on_algorithm_1s_grid_and_lambda_is_1_next_to_the_boundary():
    objective = Objective(student_steps=4, teacher_steps_start=64, teacher_steps_end=256, anneal_iterations=10)
    for iteration in (0, 5, 10):
        times = probe_times(objective, PLAIN, iteration)
        per_segment = round(teacher_steps(objective, iteration) / 4)
        grid = times.t * 4 * per_segment
        torch.testing.assert_close(grid, grid.round(), rtol=0, atol=1e-9)
        assert (times.t_step <= times.s).all() and (times.s < times.t).all()
        n_rel = ((times.t - times.t_step) * 4 * per_segment).round().view(4, len(PLACES))
        assert (n_rel[:, 0] == 1).all() and (n_rel[:, -1] == per_segment).all()


def test_lambda_is_the_share_of_the_way_that_the_teachers_step_covers(digits_family: Family):
    schedule = digits_family.manifest.schedule
    times = probe_times(Objective(student_steps=2, anneal_iterations=0, teacher_steps_end=32), schedule, 0)
    part = share(schedule, times).view(2, len(PLACES))
    torch.testing.assert_close(part[:, 0], torch.ones(2, dtype=torch.float64))
    assert (part > 0).all() and (part[:, 1:] < part[:, :1]).all()
    # a DDIM step to s and one to the boundary, with y = z / sigma: the first covers lambda of what both cover
    (a_t, s_t), (a_s, s_s), (a_b, s_b) = (schedule.alpha_sigma(time) for time in (times.t, times.s, times.t_step))
    torch.testing.assert_close(part.flatten(), (a_s / s_s - a_t / s_t) / (a_b / s_b - a_t / s_t))


def test_a_students_probe_finds_the_same_in_the_same_network_and_less_loss_in_the_teacher_than_in_a_new_one(
    digits_family: Family, digit_set: FiniteSet, tmp_path: Path
):
    probe = student_probe(SETTINGS, 2, digits_family, digit_set, CPU)
    teacher = digits_family.network("teacher")
    found, again = (probe(teacher, 3)["student-2"] for _ in range(2))
    assert found == again and json.loads(json.dumps(found)) == found
    assert [len(found[name]) for name in ("loss", "x_var", "lambda", "t")] == [2] * 4
    assert all(len(row) == len(PLACES) for row in found["loss"]) and len(found["trajectory"]) == 2
    # next to the boundary the target is the teacher's x: the teacher itself has it but for aDDIM's part, a new network has not
    torch.manual_seed(5)
    new = UViT(teacher.config).eval()
    with torch.no_grad():
        for weight in new.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    assert np.mean(found["loss"]) < np.mean(probe(new, 3)["student-2"]["loss"])


def test_a_teacher_that_steps_as_its_student_does_is_next_to_its_own_trajectory(
    digits_family: Family, digit_set: FiniteSet
):
    """With as many steps as the fine trajectory has, the student's plan is the teacher's own, but for its clipping of x."""
    teacher = digits_family.network("teacher")
    far = student_probe(SETTINGS, 2, digits_family, digit_set, CPU)(teacher, 0)["student-2"]["trajectory"]
    near = student_probe(SETTINGS, 64, digits_family, digit_set, CPU)(teacher, 0)["student-64"]["trajectory"]
    assert near[0] < 1e-5 and near[31] < far[0]


def test_a_trajectorys_last_distance_is_that_of_the_images(digits_family: Family, digit_set: FiniteSet):
    teacher = digits_family.network("teacher")
    found = student_probe(SETTINGS, 1, digits_family, digit_set, CPU)(teacher, 0)["student-1"]
    condition = digit_set.batch(ROWS, DRAWN, seed=SEED)[1]
    fine = student_plan("teacher", 64).model_copy(
        update={"hops": tuple(hop.model_copy(update={"clip": True}) for hop in student_plan("teacher", 64).hops)}
    )
    images = [
        sample({"teacher": teacher}, plan, digits_family.manifest.schedule, condition, seeds=[SEED] * DRAWN,
               indices=range(DRAWN), shape=digits_family.manifest.shape).numpy() / 127.5
        for plan in (student_plan("teacher", 1), fine)
    ]  # fmt: skip
    assert found["trajectory"][0] == pytest.approx(np.sqrt(np.mean((images[0] - images[1]) ** 2)), rel=1e-4)


def test_a_student_for_the_whole_dial_is_probed_at_each_count_but_that_of_infinitely_many(
    digits_family: Family, digit_set: FiniteSet, tmp_path: Path
):
    settings = SETTINGS.model_copy(update={"batch": 6})
    run = new_whole_run(settings, (0, 1, 2), digits_family, tmp_path, CPU)
    found = student_probe(settings, (0, 1, 2), digits_family, digit_set, CPU)(run.network.eval(), 0)
    assert list(found) == ["student-1", "student-2"]
    # at the start the network is the teacher at every count
    alone = student_probe(settings, 2, digits_family, digit_set, CPU)(digits_family.network("teacher"), 0)
    np.testing.assert_allclose(found["student-2"]["loss"], alone["student-2"]["loss"], rtol=1e-5)


WAYS = {
    "pd": {"method": "pd"},
    "tract": {"method": "tract"},
    "ect": {"method": "ect"},
    "told pd": {"method": "pd", "guidance_range": (0.0, 3.0), "guidance": 1.5},
}


@pytest.mark.parametrize("way", WAYS)
def test_the_probe_knows_every_method_and_asks_what_training_asks(
    way: str, digits_family: Family, digit_set: FiniteSet, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("training.student_probe.FINE", 4)
    settings, schedule = SETTINGS.model_copy(update=WAYS[way]), digits_family.manifest.schedule
    seen: list[torch.Tensor] = []

    class Student(torch.nn.Module):
        def forward(self, z: torch.Tensor, logsnr: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
            seen.append(condition)
            return 0.3 * z

    found = student_probe(settings, (1, 2), digits_family, digit_set, CPU)(Student(), 3)
    assert list(found) == ["student-1", "student-2"]
    for steps, part in enumerate(found.values(), start=1):
        objective = settings.objective(steps)
        times = probe_times(objective, schedule, 3)
        segments = torch.arange(steps).repeat_interleave(len(part["places"]))
        assert torch.equal((times.t_step * steps).round().long(), segments)
        assert torch.equal((times.t * steps).ceil().long() - 1, segments) and (times.t_step <= times.s).all()
        assert np.allclose(np.ravel(part["t"]), times.t) and np.isfinite(part["loss"]).all()
        assert part["places"] == ([1.0] if objective.method == "pd" else list(PLACES))
        assert ("stage" in part) == (objective.method == "ect") and len(part["trajectory"]) == steps
    assert {int(count) for condition in seen for count in condition[:, -1]} == {1, 2}
    if settings.guidance_range:
        assert {int(w) for condition in seen for w in condition[:, -2]} == {1500}
    assert seen[0].shape[1] == 2 + (settings.guidance_range is not None)
    flat(found)


def test_the_places_of_easy_consistency_tuning_have_the_s_that_training_draws():
    objective = Objective(method="ect", student_steps=2, anneal_iterations=10, ect_stages=5)
    times = probe_times(objective, PLAIN, 6)
    ratio = {name: torch.exp(-0.5 * PLAIN.logsnr(getattr(times, name))) for name in ("t", "s", "t_step")}
    left = 1 - (1 + 8 / (1 + torch.exp(ratio["t"]))) / 2**4
    expected = ratio["t_step"] + (ratio["t"] - ratio["t_step"]) * left.clamp(min=0)
    torch.testing.assert_close(ratio["s"], expected, rtol=1e-6, atol=0)


def test_a_student_in_latents_that_is_taught_by_a_student_is_probed_by_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("training.student_probe.FINE", 4)
    family = import_family(Checkpoint(write_dit(tmp_path / "pipeline")), tmp_path / "tiny").folder
    data = write_images(tmp_path / "images.npz")
    short = [
        "--data",
        data,
        "--runs",
        tmp_path / "runs",
        "--iterations",
        10,
        "--batch",
        2,
        "--device",
        "cpu",
        "--probes",
        1,
    ]
    np.savez(data, **np.load(data), arr_1=np.array([1, 2] * 8))
    for steps, flags in (("4", []), ("2", ["--taught-by", "student-4"])):
        command = ["stepdial", "distill", "--family", family, "--steps", steps, *short, *flags]
        monkeypatch.setattr(sys, "argv", list(map(str, command)))
        assert not stepdial.main()
    found = read_found(tmp_path / "runs/tiny/student-2")[10]["student-2"]
    assert found["teacher_steps"] == 4 and np.isfinite(found["loss"]).all() and all(found["trajectory"])


def test_a_teacher_of_latents_is_on_its_own_trajectory_which_is_not_clipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("training.student_probe.FINE", 4)
    family = import_family(Checkpoint(write_dit(tmp_path / "pipeline")), tmp_path / "tiny")
    data = write_images(tmp_path / "images.npz")
    np.savez(data, **np.load(data), arr_1=np.array([1, 2] * 8))
    probe = student_probe(SETTINGS, 4, family, data_of(family, str(data)), CPU)
    assert probe(family.network("teacher"), 0)["student-4"]["trajectory"] == pytest.approx([0.0] * 4, abs=1e-5)


def test_a_teachers_probe_finds_less_loss_after_some_training(
    digits_family: Family, digit_set: FiniteSet, tmp_path: Path
):
    settings = TeacherSettings(preset="debug", iterations=4, batch=8, precision="fp32")
    probe = teacher_probe(settings, digit_set, CPU)
    new = new_teacher_run(settings, digit_set, tmp_path, CPU).network.eval()
    before, after = (probe(network, 0)["teacher"] for network in (new, digits_family.network("teacher")))
    assert before["t"] == after["t"] and np.mean(after["loss"]) < np.mean(before["loss"])
    assert flat({"teacher": after})["teacher/loss at t 0.06"] == after["loss"][0]


def test_watching_changes_nothing_in_the_weights_and_writes_what_is_found(
    digits_family: Family, digit_set: FiniteSet, tmp_path: Path
):
    weights = []
    for name in ("alone", "watched"):
        run = student_run(digits_family, tmp_path / name)
        watch = None
        if name == "watched":
            probe = student_probe(SETTINGS, 2, digits_family, digit_set, CPU)
            watch = Watch(run, probe, times=2, tracker="tensorboard")
        fit(run, digit_set, distillation(SETTINGS, 2, digits_family, CPU, run), watch=watch)
        weights.append(run.network.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(weights[0].values(), weights[1].values(), strict=True))
    assert list(read_found(tmp_path / "watched")) == [10, 20]
    assert not (tmp_path / "alone" / "probe.jsonl").exists()
    line = json.loads((tmp_path / "watched" / "log.jsonl").read_text().splitlines()[-1])
    assert line["gradient_norm"] > 0
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "watched" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("student-2/trajectory at t 0.50")] == [10, 20]
    assert events.Scalars("training/gradient norm")[0].value == pytest.approx(line["gradient_norm"], rel=1e-5)


def test_what_was_written_after_the_checkpoint_is_taken_from_the_later_of_both_lines(tmp_path: Path):
    lines = [{"iteration": at, "found": {"teacher": {"loss": [loss]}}} for at, loss in ((2, 1), (4, 2), (4, 3), (6, 4))]
    (tmp_path / "probe.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [found["teacher"]["loss"] for found in read_found(tmp_path).values()] == [[1], [3], [4]]


def test_a_tracker_that_is_not_installed_is_refused_or_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr("training.watch.find_spec", lambda package: None)
    with pytest.raises(TrainingError, match="wandb is not installed; pip install wandb"):
        check_tracker("wandb")
    with pytest.raises(TrainingError, match="tensorboard is not installed"):
        check_tracker("tensorboard")
    assert check_tracker("auto") == "none" and "probe.jsonl alone" in capsys.readouterr().out
    assert check_tracker("none") == "none"


def test_the_commands_train_with_a_probe_and_draw_how_it_went(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr("training.student_probe.FINE", 4)

    def call(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["stepdial", *map(str, arguments)])
        return stepdial.main()

    runs = ["--runs", tmp_path / "runs", "--device", "cpu", "--batch", 8, "--warmup", 1]
    assert not call(
        "train", "--data", "digits", "--preset", "debug", "--iterations", 10, "--probes", 1, *runs,
        "--family", tmp_path / "digits",
    )  # fmt: skip
    assert not call("distill", "--family", tmp_path / "digits", "--steps", "1,2", "--iterations", 10, *runs)
    runs_of = tmp_path / "runs/digits"
    for asked in (
        ["--run", runs_of / "teacher"],
        ["--run", runs_of / "student-1", "--reference", runs_of / "student-2"],
    ):
        assert not call("health", *asked, "--out", tmp_path / "health.png")
        assert Image.open(tmp_path / "health.png").size[0] > 1000
    capsys.readouterr()
    assert call("health", "--run", tmp_path, "--out", tmp_path / "no.png") == 1
    assert call("health", "--run", tmp_path, "--out", tmp_path / "no.xyz") == 1
    assert "holds no log.jsonl" in capsys.readouterr().err
