"""The training loop: an interrupted run ends where an uninterrupted one does, to the bit."""

import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffusion.family import Family
from diffusion.uvit import PRESETS, Level, UViT
from training.datasets import DataSet, FiniteSet, Pixels
from training.failures import TrainingError
from training.run import Run
from training.schedule import Schedule
from training.student import distillation, new_student_run, new_whole_run, student_loss
from training.student_settings import MANY, StudentSettings
from training.teacher import TeacherSettings, hide, teacher_loss
from training.trainer import fit

DROPPING = PRESETS["debug"].model_copy(
    update={"slots": (10,), "mid": Level(kind="transformer", channels=64, blocks=1, dropout=0.3)}
)


class Points(DataSet):
    """Data for tests of the loop alone."""

    name, resolution, channels = "points", 1, 1

    def pixels(self, start: int, count: int, *, seed: int) -> Pixels:
        x = np.arange(start, start + count, dtype=np.float32)[:, None] % 7 + seed
        return Pixels(x, np.zeros((count, 0), np.int64))

    def tensors(self, pixels: Pixels, device: object = "cpu") -> tuple[Tensor, Tensor]:
        return torch.from_numpy(pixels.images), torch.from_numpy(pixels.conditions)


def simple(folder: Path, **changes: object) -> Run:
    settings = Schedule.model_validate({"iterations": 20, "batch": 4, "warmup": 3, "lr": 0.05} | changes)
    torch.manual_seed(settings.seed)
    return Run(nn.Linear(1, 1), settings, folder, settings=settings.model_dump(mode="json"))


def square_loss(network: nn.Module, x: Tensor, condition: Tensor, iteration: int, generator: torch.Generator) -> Tensor:
    noise = torch.randn(x.shape, generator=generator)
    return (network(x) - 2 * x + noise).square().flatten(1).mean(1)


class Stop(Exception):
    """The end of a process that was killed."""


def killed_after(iterations: int, loss: Callable) -> Callable:
    def wrapped(network: nn.Module, x: Tensor, condition: Tensor, iteration: int, generator: torch.Generator) -> Tensor:
        if iteration == iterations:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(network, x, condition, iteration, generator)

    return wrapped


def teacher_run(folder: Path, data: FiniteSet, **changes: object) -> tuple[Run, Callable]:
    given_settings = {"preset": "debug", "iterations": 20, "batch": 8, "warmup": 3, "precision": "bf16"}
    settings = TeacherSettings.model_validate(given_settings | {"drop_slot": 0.2} | changes)
    torch.manual_seed(settings.seed)
    run = Run(UViT(DROPPING), settings, folder, settings=settings.model_dump(mode="json"))
    return run, lambda network, x, condition, _, draws: teacher_loss(settings, network, x, condition, draws)


def student_run(folder: Path, family: Family, **changes: object) -> tuple[Run, Callable]:
    settings = StudentSettings(iterations=20, batch=8, warmup=3, precision="fp32", drop_slot=0.2, guidance=1.0)
    run = new_student_run(settings, 2, family, folder, torch.device("cpu"))
    return run, distillation(settings, 2, family, torch.device("cpu"), run)


COUNTS = (0, 1, 2, 4)


def whole_run(folder: Path, family: Family, **changes: object) -> tuple[Run, Callable]:
    given_settings = {"iterations": 20, "batch": 8, "warmup": 3, "precision": "fp32", "drop_slot": 0.2, "guidance": 1.0}
    settings = StudentSettings.model_validate(given_settings | changes)
    run = new_whole_run(settings, COUNTS, family, folder, torch.device("cpu"))
    return run, distillation(settings, COUNTS, family, torch.device("cpu"), run)


def whole_loss(settings: StudentSettings, segments: tuple[int, ...], *batch: object) -> Tensor:
    """The loss of one network for several counts, of which the test gives the networks."""
    return student_loss(settings, tuple(map(settings.objective, segments)), *batch, segments=segments)


@pytest.mark.parametrize("kind", ["teacher", "student", "whole"])
def test_twenty_iterations_are_ten_and_a_resume_and_ten_to_the_bit(
    kind: str, tmp_path: Path, digit_set: FiniteSet, digits_family: Family
):
    def start(name: str) -> tuple[Run, Callable]:
        folder = tmp_path / name
        if kind == "teacher":
            return teacher_run(folder, digit_set)
        return (student_run if kind == "student" else whole_run)(folder, digits_family)

    run, loss = start("whole")
    fit(run, digit_set, loss)
    interrupted, loss = start("parts")
    with pytest.raises(KeyboardInterrupt):
        fit(interrupted, digit_set, killed_after(9, loss))
    assert interrupted.iteration == 10
    torch.manual_seed(12345)  # whatever a new process would find
    resumed, loss = start("parts")
    fit(resumed, digit_set, loss)
    assert resumed.iteration == run.iteration == 20
    whole, parts = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "parts"))
    kinds = {name.split(".")[0] for name in whole}
    assert kinds == {"network", "ema", "optimizer"} and whole.keys() == parts.keys()
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []


def test_a_student_for_the_whole_dial_begins_as_its_teacher_and_every_count_learns(
    tmp_path: Path, digit_set: FiniteSet, digits_family: Family
):
    run, loss = whole_run(tmp_path, digits_family)
    teacher = digits_family.network("teacher").state_dict()
    begun = dict(run.network.state_dict())
    assert not begun["segments.weight"].any() and begun.keys() - teacher.keys() == {"segments.weight"}
    assert all(torch.equal(begun[name], value) for name, value in teacher.items())
    assert run.settings["segments"] == [0, 1, 2, 4]
    assert [objective["student_steps"] for objective in run.settings["objectives"]] == [MANY, 1, 2, 4]
    for _ in range(
        2
    ):  # the network's last layer begins as zeros in a young teacher: gradients take a step to come through
        run.step(iter([digit_set.batch(8 * run.iteration, 8, seed=0)]), loss)
    assert run.network.segments.weight.any(1).all()


def test_every_part_of_a_mixed_batch_is_told_its_own_count_and_the_teacher_none(
    tmp_path: Path, digit_set: FiniteSet, digits_family: Family
):
    settings = StudentSettings(batch=8, precision="fp32", drop_slot=0.0, guidance=1.0)
    x, condition = digit_set.batch(0, 8, seed=0)
    seen: dict[str, list[Tensor]] = {"student": [], "teacher": []}

    def remember(name: str) -> Callable:
        return lambda z, logsnr, condition: (seen[name].append(condition), 0.5 * z)[1]

    draws = torch.Generator().manual_seed(0)
    whole_loss(
        settings, COUNTS, digits_family, remember("teacher"), remember("student"), x, condition, 0, draws
    )  # fmt: skip
    for asked in seen["student"]:
        assert torch.equal(asked[:, :-1], condition) and asked[:, -1].tolist() == [0, 0, 1, 1, 2, 2, 4, 4]
    assert len(seen["student"]) == 2 and torch.equal(seen["teacher"][0][:8], condition)


def test_a_run_starts_from_the_member_that_is_named_or_from_new_weights(tmp_path: Path, digits_family: Family):
    new, _ = whole_run(tmp_path, digits_family, start="none", seed=3)
    again, _ = whole_run(tmp_path, digits_family, start="none", seed=3)
    other, _ = whole_run(tmp_path, digits_family, start="none", seed=4)
    weights = [run.network.state_dict()["conv_in.weight"] for run in (new, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert new.settings["start_sha256"] is None
    with pytest.raises(TrainingError, match="no member 'student-9' in family"):
        whole_run(tmp_path, digits_family, start="student-9")


def test_the_target_of_infinitely_many_steps_is_the_guided_teachers_own_prediction(
    digit_set: FiniteSet, digits_family: Family
):
    settings = StudentSettings(batch=8, precision="fp32", drop_slot=0.0, guidance=1.5, teacher_rule="ddim")
    x, condition = digit_set.batch(0, 8, seed=0)
    asked: list[tuple[Tensor, Tensor]] = []

    def teacher(z: Tensor, logsnr: Tensor, condition: Tensor) -> Tensor:
        return 0.3 * torch.tanh(z) + 0.05 * condition.view(-1, 1, 1, 1)

    def student(z: Tensor, logsnr: Tensor, condition: Tensor) -> Tensor:
        asked.append((z, condition))
        return 0.1 * z

    draws = torch.Generator().manual_seed(0)
    losses = whole_loss(settings, (0,), digits_family, teacher, student, x, condition, 0, draws)
    z, told = asked[-1]
    assert not told[:, -1].any() and torch.equal(told[:, :1], condition)
    guided = 0.3 * torch.tanh(z) + (1 + 1.5) * 0.05 * condition.view(-1, 1, 1, 1)
    distances = (0.1 * z - guided).square().mean((1, 2, 3)).sqrt()
    assert torch.allclose(losses, distances, rtol=0.01, atol=2e-3)


def test_drawing_sample_grids_on_the_way_changes_nothing(tmp_path: Path, digit_set: FiniteSet):
    def draw(network: nn.Module, file: Path) -> None:
        assert not network.training
        torch.rand(100)
        file.write_text("grid")

    plain, loss = teacher_run(tmp_path / "plain", digit_set, iterations=4)
    fit(plain, digit_set, loss)
    drawn, loss = teacher_run(tmp_path / "drawn", digit_set, iterations=4)
    fit(drawn, digit_set, loss, draw=draw, grids=2)
    assert sorted(path.name for path in drawn.folder.glob("*.png")) == ["samples-0000002.png", "samples-0000004.png"]
    assert all(torch.equal(plain.ema[name], drawn.ema[name]) for name in plain.ema)
    assert drawn.network.training


def test_a_run_of_few_iterations_draws_a_sample_grid_at_its_end_alone(tmp_path: Path, digit_set: FiniteSet):
    run, loss = teacher_run(tmp_path / "run", digit_set, iterations=3)
    fit(run, digit_set, loss, draw=lambda _, file: file.touch())
    assert [path.name for path in run.folder.glob("*.png")] == ["samples-0000003.png"]


def test_other_settings_are_refused_by_name(tmp_path: Path):
    fit(simple(tmp_path / "run"), Points(), square_loss)
    with pytest.raises(TrainingError, match=r"run holds a run with other settings \(lr, ema\)"):
        fit(simple(tmp_path / "run", lr=0.1, ema=0.5), Points(), square_loss)
    assert simple(tmp_path / "run").resume()


def test_settings_that_came_or_went_since_are_named_too(tmp_path: Path):
    fit(simple(tmp_path / "run"), Points(), square_loss)
    later = simple(tmp_path / "run")
    later.settings = {"news": 1} | {key: value for key, value in later.settings.items() if key != "clip"}
    with pytest.raises(TrainingError, match=r"\(clip, news\)"):
        later.resume()


def test_a_checkpoint_that_cannot_be_read_stops_with_a_sentence(tmp_path: Path):
    run = simple(tmp_path)
    fit(run, Points(), square_loss)
    run.checkpoint.write_bytes(run.checkpoint.read_bytes()[:100])
    with pytest.raises(TrainingError, match="checkpoint.safetensors"):
        fit(simple(tmp_path), Points(), square_loss)
    save_file({"weight": torch.zeros(1)}, run.checkpoint)  # weights alone, of something else
    with pytest.raises(TrainingError, match="cannot be read; remove it to start anew"):
        fit(simple(tmp_path), Points(), square_loss)


def test_a_finished_run_is_not_trained_further(tmp_path: Path):
    first = simple(tmp_path)
    fit(first, Points(), square_loss)
    again = simple(tmp_path)
    fit(again, Points(), lambda *_: 1 / 0)
    assert torch.equal(again.network.weight, first.network.weight) and again.iteration == 20


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_at_its_iteration_and_leaves_the_weights_alone(value: float, tmp_path: Path):
    weights = []

    def loss(network: nn.Module, x: Tensor, condition: Tensor, iteration: int, draws: torch.Generator) -> Tensor:
        weights.append(network.weight.detach().clone())
        return square_loss(network, x, condition, iteration, draws) * (value if iteration == 7 else 1.0)

    run = simple(tmp_path)
    with pytest.raises(TrainingError, match="iteration 7: loss"):
        fit(run, Points(), loss)
    assert len(weights) == 8 and torch.equal(run.network.weight, weights[-1]) and run.iteration == 7


def test_a_gradient_that_is_no_number_stops_too(tmp_path: Path):
    def loss(network: nn.Module, x: Tensor, *_: object) -> Tensor:
        return (network(x) * 0).sqrt().flatten()  # a loss of 0 whose gradient is 0 / 0

    with pytest.raises(TrainingError, match="iteration 0: loss 0, gradient norm nan"):
        fit(simple(tmp_path), Points(), loss)


@given(st.integers(1, 5000), st.integers(0, 300), st.floats(0, 1), st.floats(1e-6, 1e-2), st.integers(0, 5000))
def test_the_learning_rate_warms_up_stays_and_falls_to_nothing(
    iterations: int, warmup: int, decay_from: float, lr: float, iteration: int
):
    rate = Schedule(iterations=iterations, warmup=warmup, decay_from=decay_from, lr=lr).rate
    iteration = min(iteration, iterations - 1)
    warm = 1.0 if iteration + 1 >= warmup else (iteration + 1) / warmup
    start = decay_from * iterations
    left = 1.0 if iteration < start else (iterations - iteration) / max(1.0, iterations - start)
    assert rate(iteration) == pytest.approx(lr * warm * min(1.0, left)) and 0 < rate(iteration) <= lr * (1 + 1e-12)


def test_the_optimiser_uses_the_schedules_rate(tmp_path: Path):
    run, rates = simple(tmp_path), []

    def loss(*arguments: object) -> Tensor:
        rates.append(run.optimizer.param_groups[0]["lr"])
        return square_loss(*arguments)

    fit(run, Points(), loss)
    assert rates == [pytest.approx(run.schedule.rate(iteration)) for iteration in range(20)]
    assert rates[0] == pytest.approx(0.05 / 3) and rates[5] == 0.05 and rates[-1] == pytest.approx(0.005)


def test_the_average_follows_quickly_at_first_and_slowly_later(tmp_path: Path):
    run, weights = simple(tmp_path, ema=0.6, iterations=12), []
    average = run.network.weight.item()

    def loss(network: nn.Module, *arguments: object) -> Tensor:
        weights.append(network.weight.item())
        return square_loss(network, *arguments)

    fit(run, Points(), loss)
    for iteration, weight in enumerate([*weights[1:], run.network.weight.item()]):
        decay = min(0.6, (1 + iteration) / (10 + iteration))
        average = decay * average + (1 - decay) * weight
    assert run.ema["weight"].item() == pytest.approx(average, rel=1e-5)


def test_the_average_is_lent_and_given_back(tmp_path: Path):
    run = simple(tmp_path)
    fit(run, Points(), square_loss)
    trained = run.network.weight.item()
    with run.averaged() as network:
        assert network.weight.item() == run.ema["weight"].item() != trained and not network.training
    assert run.network.weight.item() == trained and run.network.training


def test_gradients_are_clipped_to_the_schedules_norm(tmp_path: Path):
    seen = []
    run = simple(tmp_path, clip=0.5, iterations=3)
    run.optimizer.register_step_pre_hook(
        lambda *_: seen.append(math.hypot(*(parameter.grad.item() for parameter in run.network.parameters())))
    )
    fit(run, Points(), lambda *arguments: 1000 * square_loss(*arguments))
    assert seen == [pytest.approx(0.5, rel=1e-3)] * 3


def test_a_checkpoint_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = simple(tmp_path)
    fit(run, Points(), square_loss)
    before = run.checkpoint.read_bytes()

    def fail(tensors: object, file: Path, metadata: object) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("training.run.save_file", fail)
    with pytest.raises(OSError):
        run.save()
    assert run.checkpoint.read_bytes() == before and simple(tmp_path).resume()


def test_the_log_tells_progress_in_images(tmp_path: Path):
    fit(simple(tmp_path, iterations=100), Points(), square_loss)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["iteration"], line["images"]) for line in lines] == [(50, 200), (100, 400)]
    assert all(math.isfinite(line["loss"]) for line in lines)


def test_a_warm_up_that_is_longer_than_the_run_is_told(tmp_path: Path, capsys: pytest.CaptureFixture):
    fit(simple(tmp_path, iterations=2, warmup=3), Points(), square_loss)
    assert "--warmup 3 is longer than the 2 iterations" in capsys.readouterr().out


def test_hiding_takes_whole_conditions_and_single_slots_at_their_rates():
    condition = torch.tensor([[3, 5, 7]]).expand(20_000, 3)
    draws = torch.Generator().manual_seed(0)
    hidden = hide(condition, whole=0.2, each=0.1, generator=draws) == 0
    assert hidden.all(1).float().mean() == pytest.approx(0.2 + 0.8 * 0.1**3, abs=0.01)
    assert hidden.float().mean().item() == pytest.approx(0.2 + 0.8 * 0.1, abs=0.01)
    assert torch.equal(hide(condition, whole=0.0, each=0.0, generator=draws), condition)
    assert not hide(condition, whole=1.0, each=0.0, generator=draws).any()
    assert hide(torch.zeros(4, 0, dtype=torch.int64), whole=0.5, each=0.5, generator=draws).shape == (4, 0)


def test_short_recipes_anneal_to_few_teacher_steps_and_the_papers_to_1280():
    short, paper = StudentSettings(iterations=1000), StudentSettings(recipe="paper")
    for steps in (1, 2, 3, 4, 8, 16, 64):
        objective = short.objective(steps)
        assert steps <= objective.teacher_steps_start < objective.teacher_steps_end
        assert objective.student_steps == steps and objective.anneal_iterations == 600
        assert objective.distance == ("snr1_x_huber" if steps == 1 else "v_mean_huber")
        found = paper.objective(steps)
        assert (found.teacher_steps_start, found.teacher_steps_end, found.anneal_iterations) == (64, 1280, 100_000)
        assert found.huber_epsilon == 1e-4 and found.eta == 0.75
