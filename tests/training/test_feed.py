"""Reading ahead: the same batches whoever reads them and however many do, and nothing hangs or is lost when it ends."""

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.training.photographs import BROKEN, album
from training.datasets import DataError, DataSet, Pixels
from training.decoding import Augmentation
from training.failures import TrainingError
from training.feed import FeedError, feed, usual_workers
from training.opening import open_data
from training.run import Run
from training.schedule import Schedule
from training.share import Share
from training.trainer import fit

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings(
    "ignore:This DataLoader will create"
)  # more readers than this machine has cores
AUGMENTED = Augmentation(flip=True, crop="random")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An album of photographs, broken files among them."""
    return album(tmp_path_factory.mktemp("album") / "album", photographs=12)


def read(folder: Path, iterations: range, shares: Sequence[Share] | None = None, workers: int = 0) -> list[Tensor]:
    data = open_data(str(folder), 8, AUGMENTED)
    with feed(data, batch=6, seed=1, iterations=iterations, workers=workers, shares=shares) as batches:
        return [x for x, _ in batches]


def test_batches_are_the_same_read_by_no_one_or_two_processes(folder: Path):
    alone = read(folder, range(9))
    assert len(alone) == 9 and alone[0].shape == (6, 3, 8, 8)
    for workers in (1, 2):
        assert all(torch.equal(*pair) for pair in zip(alone, read(folder, range(9), workers=workers), strict=True))
    assert all(torch.equal(*pair) for pair in zip(alone[4:], read(folder, range(4, 9), workers=2), strict=True))


@pytest.mark.parametrize("world", [2, 3, 6])
def test_ranks_get_equal_slices_of_the_batch_that_one_process_gets(folder: Path, world: int):
    ranks = [read(folder, range(4), [Share(6, rank, world)]) for rank in range(world)]
    for iteration, whole in enumerate(read(folder, range(4))):
        assert torch.equal(torch.cat([batches[iteration] for batches in ranks]), whole)


@pytest.mark.parametrize("workers", [0, 1])
def test_turns_get_the_batch_one_after_another_and_equal_runs_of_each_of_its_parts(folder: Path, workers: int):
    shares = [Share(6, turn, 3, parts=(1, 1)) for turn in range(3)]
    turns = read(folder, range(1, 4), shares, workers)
    for iteration, whole in enumerate(read(folder, range(1, 4))):
        first, second = zip(*(turn.chunk(2) for turn in turns[3 * iteration : 3 * iteration + 3]), strict=True)
        assert torch.equal(torch.cat([*first, *second]), whole)


@pytest.mark.parametrize(("of", "parts"), [(4, (1,)), (3, (1, 3)), (7, (1,))])
def test_a_batch_that_cannot_be_divided_is_refused(of: int, parts: tuple[int, ...]):
    with pytest.raises(ValueError, match=f"--batch 6 .*among {of} shares .* {of * sum(parts)} (or|can)"):
        Share(6, 0, of, parts)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_broken_is_noted_once_by_the_process_that_trains(folder: Path, workers: int, tmp_path: Path):
    data = open_data(str(folder), 8)
    data.skipped.keep(tmp_path / "skipped.jsonl")
    with feed(data, batch=data.size, seed=0, iterations=range(3), workers=workers) as batches:
        assert len(list(batches)) == 3
    lines = (tmp_path / "skipped.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["name"] for line in lines) == sorted(BROKEN) and len(data.skipped) == len(BROKEN)


def test_reading_ahead_leaves_the_trainers_random_numbers_alone(folder: Path):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    read(folder, range(2), workers=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_data_go_to_processes_that_begin_with_nothing(folder: Path, tmp_path: Path, monkeypatch):
    """Where processes are not forked (macOS, Python 3.14), the data set is pickled: by us, for us."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    np.savez(tmp_path / "a.npz", np.arange(8 * 12, dtype=np.uint8).reshape(8, 2, 2, 3), np.arange(8))
    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        for name in ("p0.jpg", "photo.jpg"):
            shard.add(folder / name, name)
    for path in (folder, tmp_path / "a.npz", tmp_path / "a.tar"):
        data = open_data(str(path), 8, AUGMENTED)
        sent = pickle.loads(pickle.dumps(data))
        assert np.array_equal(sent.pixels(3, 9, seed=2).images, data.pixels(3, 9, seed=2).images)


class Odd(DataSet):
    """Data whose first batch is fine, and the second takes a minute or cannot be used."""

    name, decodes = "odd", True

    def __init__(self, sleep: float = 0):
        super().__init__()
        self.sleep = sleep

    def pixels(self, start: int, count: int, *, seed: int) -> Pixels:
        if not start:
            return Pixels(np.zeros((count, 4, 4, 1), np.uint8), np.zeros((count, 0), np.int64))
        time.sleep(self.sleep)
        raise DataError("nothing here")


@pytest.mark.parametrize("workers", [0, 1])
def test_data_that_cannot_be_used_stop_training_with_their_own_sentence(workers: int):
    with pytest.raises(DataError, match="^nothing here$"):
        with feed(Odd(), batch=2, seed=0, iterations=range(5), workers=workers) as batches:
            assert len(next(batches)[0]) == 2
            next(batches)


def test_a_reader_that_is_killed_stops_training_with_a_sentence():
    with pytest.raises(FeedError, match="was killed, perhaps for want of memory; give fewer --workers"):
        with feed(Odd(sleep=60), batch=2, seed=0, iterations=range(5), workers=1) as batches:
            next(batches)
            (reader,) = multiprocessing.active_children()
            os.kill(reader.pid, signal.SIGKILL)
            next(batches)
    assert not multiprocessing.active_children()


def test_other_errors_pass_through_and_readers_end_with_them(folder: Path):
    data = open_data(str(folder), 8)
    with pytest.raises(RuntimeError, match="the trainer's own"):
        with feed(data, batch=2, seed=0, iterations=range(1000), workers=2) as batches:
            next(batches)
            raise RuntimeError("the trainer's own")
    assert not multiprocessing.active_children()


def test_only_what_is_decoded_gets_readers_of_its_own_by_default(folder: Path):
    assert usual_workers(open_data("shapes", 16)) == 0
    assert 1 <= usual_workers(open_data(str(folder), 8)) <= 8


def small_run(folder: Path, data: DataSet, iterations: int = 14) -> Run:
    schedule = Schedule(iterations=iterations, batch=5, warmup=2, lr=0.01, seed=4)
    torch.manual_seed(0)
    return Run(nn.Linear(192, 1), schedule, folder, settings=schedule.model_dump(mode="json") | data.identity)


def loss(network: nn.Module, x: Tensor, condition: Tensor, iteration: int, generator: torch.Generator) -> Tensor:
    return (network(x.flatten(1)) - x.mean((1, 2, 3))[:, None]).square().flatten()


def test_a_run_on_photographs_that_is_stopped_and_resumed_with_other_readers_is_the_same_to_the_bit(
    folder: Path, tmp_path: Path
):
    def start(name: str) -> tuple[Run, DataSet]:
        data = open_data(str(folder), 8, AUGMENTED)
        return small_run(tmp_path / name, data), data

    def stopping(*given: object) -> Tensor:
        if given[3] == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(*given)

    run, data = start("whole")
    fit(run, data, loss, workers=0)
    parts, data = start("parts")
    with pytest.raises(KeyboardInterrupt):
        fit(parts, data, stopping, workers=2)
    assert parts.iteration == 7 and not multiprocessing.active_children()
    parts, data = start("parts")
    fit(parts, data, loss, workers=1)
    assert torch.equal(run.network.weight, parts.network.weight)
    names = [json.loads(line)["name"] for line in (tmp_path / "parts" / "skipped.jsonl").read_text().splitlines()]
    assert sorted(names) == sorted(set(names)) == sorted(BROKEN)
    line = json.loads((tmp_path / "parts" / "log.jsonl").read_text().splitlines()[-1])
    assert line["iteration"] == 14 and 0 <= line["waiting"] <= 1


def test_a_run_is_not_gone_on_with_when_its_images_are_others(tmp_path: Path):
    folder = album(tmp_path / "album")
    data = open_data(str(folder), 8)
    fit(small_run(tmp_path / "run", data), data, loss, workers=0)
    (folder / "p0.jpg").rename(folder / "p9.jpg")
    data = open_data(str(folder), 8)
    with pytest.raises(TrainingError, match=r"holds a run with other settings \(fingerprint\)"):
        fit(small_run(tmp_path / "run", data), data, loss, workers=0)
    data = open_data(str(folder), 8, Augmentation(flip=True))
    with pytest.raises(TrainingError, match=r"\(fingerprint, flip\)"):
        fit(small_run(tmp_path / "run", data), data, loss, workers=0)


def test_signals_to_the_whole_group_end_in_a_checkpoint_and_no_traceback(folder: Path, tmp_path: Path):
    code = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from tests.training.test_feed import loss, small_run
from training.opening import open_data
from training.trainer import fit
data = open_data({str(folder)!r}, 8)
try:
    fit(small_run(Path({str(tmp_path / "run")!r}), data, 10**6), data, loss, workers=2)
except KeyboardInterrupt:
    print("saved")
"""
    run = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    while not (run / "log.jsonl").exists() or not (run / "log.jsonl").read_text():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # Ctrl-C
    os.killpg(process.pid, signal.SIGTERM)  # what a cluster's scheduler sends
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0 and said.strip().endswith("saved") and "Traceback" not in said
    assert (run / "checkpoint.safetensors").exists()
