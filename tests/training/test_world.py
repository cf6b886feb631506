"""Several processes train as one does: real processes, over gloo, as torchrun starts them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import nn

from diffusion.family import Family, open_family
from tests.checkpoints import write_dit, write_images
from tests.training.processes import BATCH, ITERATIONS, KINDS, WAYS, teacher, trained
from training.checkpoint import Checkpoint
from training.datasets import FiniteSet
from training.failures import TrainingError
from training.importing import import_family
from training.run import Run
from training.schedule import Schedule
from training.world import World

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
ALONE = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
PATIENCE = 600
"""Seconds for what takes some alone on a machine."""
CLOSE = 2e-6
"""Losses agree to this, relatively: float32 sums in another order. Adam, which divides by the gradient's size, makes more of it
in the weights."""


def launch(*arguments: object) -> subprocess.Popen:
    command = [*TORCHRUN, *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, env=os.environ | ALONE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, digits_family: Family) -> tuple[Path, list[dict[str, Any]]]:
    """What two processes left and said."""
    folder = tmp_path_factory.mktemp("pair")
    process = launch(ROOT / "tests/training/processes.py", digits_family.folder, folder)
    said = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 0, said
    return folder, [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, digits_family: Family, digit_set: FiniteSet) -> dict[str, Any]:
    """Kind -> the losses and the run of this process alone."""
    folder, runs = tmp_path_factory.mktemp("alone"), {}
    for kind, begin in KINDS.items():
        run, loss, _ = begin(folder / kind, digits_family)
        runs[kind] = (trained(run, loss, digit_set), run)
    return runs


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_two_processes_that_go_on_from_a_checkpoint_have_the_losses_and_the_weights_of_one(
    way: str, kind: str, pair: tuple[Path, list[dict[str, Any]]], alone: dict[str, tuple[list[float], Run]]
):
    folder, said = pair
    losses, run = alone[kind]
    assert [process["size"] for process in said] == [2, 2]
    for process in said:
        assert process["losses"][f"{way}, {kind}"] == pytest.approx(losses, rel=CLOSE)
    saved = load_file(folder / way / kind / "checkpoint.safetensors")
    weights = {f"network.{name}": value for name, value in run.network.state_dict().items()}
    weights |= {f"ema.{name}": value for name, value in run.ema.items()}
    moments = {name for name in saved if name.startswith("optimizer.")}
    assert saved.keys() == weights.keys() | moments and len(moments) == 3 * len(run.network.state_dict())
    assert max((saved[name] - value).abs().max().item() for name, value in weights.items()) < 1e-4


@pytest.mark.parametrize("way", WAYS)
def test_what_two_processes_saved_goes_on_in_one(
    way: str, pair: tuple[Path, list[dict[str, Any]]], digits_family: Family, digit_set: FiniteSet, tmp_path: Path
):
    further = ITERATIONS + 3
    (tmp_path / "checkpoint.safetensors").write_bytes((pair[0] / way / "teacher/checkpoint.safetensors").read_bytes())
    run, loss, _ = teacher(tmp_path, digits_family)
    assert run.resume() and run.iteration == ITERATIONS
    never, its_loss, _ = teacher(tmp_path / "never", digits_family)
    assert trained(run, loss, digit_set, further) == pytest.approx(
        trained(never, its_loss, digit_set, further)[-3:], rel=1e-4
    )


def test_a_loss_that_is_no_number_in_one_process_stops_all_and_names_step_and_batch(
    pair: tuple[Path, list[dict[str, Any]]],
):
    first, second = (process["broken"] for process in pair[1])
    assert first == second
    assert first.startswith("iteration 3: loss nan") and f"images {3 * BATCH} to {4 * BATCH - 1} of the stream" in first


def pid_of(process: subprocess.Popen, rank: int) -> int:
    """The process of a rank below torchrun's."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    found = [pid for pid in children if f"\0RANK={rank}\0".encode() in Path(f"/proc/{pid}/environ").read_bytes()]
    return int(found[0])


def test_a_signal_to_one_of_two_that_shard_saves_and_ends_both_and_one_alone_goes_on(tmp_path: Path):
    train = [
        "train",
        "--preset",
        "debug",
        "--iterations",
        24,
        "--family",
        tmp_path / "digits",
        "--runs",
        tmp_path / "runs",
    ]
    command = [ROOT / "stepdial.py", *train, "--device", "cpu", "--micro-batch", 16, "--shard"]
    run = tmp_path / "runs/digits/teacher"
    process = launch(*command)
    while not list(run.glob("samples-*.png")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    os.kill(pid_of(process, 1), signal.SIGTERM)
    said = process.communicate(timeout=PATIENCE)[0]
    told, report = said.split("ChildFailedError", 1)
    assert process.returncode and told.count("interrupted; the same command goes on from here") == 2, said
    assert "traceback : stepdial train: interrupted; the same command goes on" in report.split("Root Cause")[1], said
    assert (run / "checkpoint.safetensors").exists() and not (tmp_path / "digits/family.json").exists()
    done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, env=os.environ | ALONE, timeout=PATIENCE)
    assert done.returncode == 0
    record = open_family(tmp_path / "digits").manifest.members[0].training
    assert record.iterations == 24 and not record.device.startswith("2 x")


@pytest.mark.slow
def test_students_that_two_processes_shard_become_members(tmp_path: Path, digits_family: Family):
    family = shutil.copytree(digits_family.folder, tmp_path / "digits")
    how = ["--iterations", 2, "--batch", 8, "--steps", "1,2", "--device", "cpu", "--runs", tmp_path / "runs", "--shard"]
    said = launch(ROOT / "stepdial.py", "distill", "--family", family, *how).communicate(timeout=PATIENCE)[0]
    members = {member.name: member for member in open_family(family).manifest.members}
    assert members.keys() == {"teacher", "student-1", "student-2"}, said
    assert members["student-2"].training.device.startswith("2 x ")


@pytest.mark.slow
def test_an_imported_network_is_sharded_by_its_blocks_with_the_losses_of_one_process(tmp_path: Path):
    family = import_family(Checkpoint(write_dit(tmp_path / "pipeline")), tmp_path / "tiny").folder
    data, losses = write_images(tmp_path / "images.npz", labels=3), []
    how = [
        "--data",
        data,
        "--whole",
        "--steps",
        "1,2",
        "--iterations",
        3,
        "--batch",
        8,
        "--device",
        "cpu",
        "--probes",
        0,
    ]
    for name, flags in (("one", []), ("two", ["--shard", "--activation-checkpointing"])):
        copy = shutil.copytree(family, tmp_path / name / "tiny")
        command = [ROOT / "stepdial.py", "distill", "--family", copy, "--runs", tmp_path / name / "runs", *how, *flags]
        if flags:
            assert launch(*command).wait(PATIENCE) == 0
        else:
            subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, env=os.environ | ALONE, check=True)
        losses.append(json.loads((tmp_path / name / "runs/tiny/whole/log.jsonl").read_text())["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.slow
def test_compiled_blocks_that_compute_again_have_the_losses_of_plain_ones(
    digits_family: Family, digit_set: FiniteSet, tmp_path: Path
):
    plain, its_loss, _ = teacher(tmp_path, digits_family)
    run, loss, _ = teacher(tmp_path, digits_family)
    run.spread(World(), checkpointing=True, compiled=True)
    assert trained(run, loss, digit_set, 3) == pytest.approx(trained(plain, its_loss, digit_set, 3), rel=1e-5)


def test_a_student_with_an_average_beside_it_is_not_sharded(tmp_path: Path):
    run = Run(nn.Linear(2, 2), Schedule(), tmp_path, settings={})
    run.companions["self_teacher"] = nn.Linear(2, 2)
    world = World()
    world.sharded = True
    with pytest.raises(TrainingError, match="leave --shard out"):
        run.spread(world)


def test_one_process_does_without_accelerate():
    code = (
        "import sys, training.commands; from training.world import World; World(); print('accelerate' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | ALONE | {"WORLD_SIZE": "2"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "False", done.stderr
