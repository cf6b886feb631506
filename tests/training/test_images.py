"""A folder of photographs with broken files among them: skipped, counted, named once, and the stream stays a function."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion.condition import LabelConditioning, NoConditioning
from tests.training.photographs import BROKEN, GOOD, album, paint, photograph
from training.datasets import DataError
from training.decoding import Augmentation
from training.images import TRIES, ImageSet
from training.opening import open_data
from training.skipped import NAMED, Skipped

FLIPPED = Augmentation(flip=True, crop="random")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An album; not to be changed."""
    return album(tmp_path_factory.mktemp("album") / "album")


def opened(folder: Path, resolution: int = 8, **options: object) -> ImageSet:
    data = open_data(str(folder), resolution, Augmentation(**options))
    assert isinstance(data, ImageSet)
    return data


@given(st.integers(0, 60), st.integers(1, 12), st.integers(1, 11), st.integers(0, 3))
def test_a_batch_is_a_function_of_seed_and_position_broken_files_or_not(
    folder, start: int, count: int, cut: int, seed: int
):
    whole = opened(folder, flip=True, crop="random").pixels(start, count, seed=seed).images
    other, cut = opened(folder, flip=True, crop="random"), min(cut, count)
    later = other.pixels(start + cut, count - cut, seed=seed).images if cut < count else whole[:0]
    assert np.array_equal(np.concatenate([other.pixels(start, cut, seed=seed).images, later]), whole)


def test_an_epoch_shows_every_good_image_and_others_in_the_place_of_broken_ones(folder: Path):
    data = opened(folder)
    assert data.size == 6 + len(GOOD) + len(BROKEN)  # hidden files and texts are no candidates
    seen = {picture.tobytes() for picture in data.pixels(0, data.size, seed=0).images}
    alone = {data._shown(row, 0, 0)[0].tobytes() for row in range(data.size) if data.source.where(row) not in BROKEN}
    assert seen == alone and len(alone) > 6 + len(GOOD) - 4  # some are the same picture in another format


def test_broken_files_are_named_once_though_every_epoch_meets_them(folder: Path, tmp_path: Path, capsys):
    data = opened(folder)
    data.skipped.keep(tmp_path / "skipped.jsonl")
    for epoch in range(3):
        data.batch(epoch * data.size, data.size, seed=0)
    said = capsys.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert sorted(line["name"] for line in lines) == sorted(BROKEN) and all(line["reason"] for line in lines)
    assert said.count("skipped") == NAMED and str(folder) not in said
    assert str(data.skipped) == f"{len(BROKEN)} skipped as unusable; skipped.jsonl names them"
    again = opened(folder)  # a resumed run
    again.skipped.keep(tmp_path / "skipped.jsonl")
    again.batch(0, data.size, seed=0)
    assert capsys.readouterr().err == "" and len(again.skipped) == len(BROKEN)
    assert len((tmp_path / "skipped.jsonl").read_text().splitlines()) == len(BROKEN)


def test_of_many_broken_files_the_first_are_named_and_then_only_tenfold_numbers(tmp_path: Path, capsys):
    skipped = Skipped()
    for number in range(250):
        skipped.note([(f"{number}.jpg", "not an image")])
    said = capsys.readouterr().err.splitlines()
    assert len(said) == NAMED + 2 and said[0] == "skipped 0.jpg: not an image"
    assert said[-2:] == ["10 skipped as unusable", "100 skipped as unusable"]
    skipped.keep(tmp_path / "all.jsonl")
    assert len((tmp_path / "all.jsonl").read_text().splitlines()) == 250


def test_files_that_vanish_or_may_not_be_read_are_skipped_and_named_too(tmp_path: Path, capsys):
    for seed in range(4):
        photograph(seed).save(tmp_path / f"{seed}.png")
    data = opened(tmp_path)
    (tmp_path / "2.png").unlink()
    (tmp_path / "3.png").unlink()
    (tmp_path / "3.png").mkdir()
    data.batch(0, 4, seed=0)
    said = capsys.readouterr().err
    assert (
        "skipped 2.png: No such file" in said and "skipped 3.png: Is a directory" in said and str(tmp_path) not in said
    )


def test_a_set_with_nothing_usable_stops_with_a_sentence(tmp_path: Path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=f"{TRIES} images in a row could not be used, such as broken.png: not an image"):
        opened(tmp_path).batch(0, 1, seed=0)


def test_one_good_image_among_a_few_broken_ones_is_found(tmp_path: Path):
    photograph(0).save(tmp_path / "good.png")
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"")
    images = opened(tmp_path).batch(0, 9, seed=0)[0]
    assert all(torch.equal(image, images[0]) for image in images)


def test_mirrored_and_random_crops_differ_from_epoch_to_epoch_and_come_again_with_the_seed(tmp_path: Path):
    photograph(4, (90, 60)).save(tmp_path / "one.png")
    data = opened(tmp_path, 16, flip=True, crop="random")
    views = data.pixels(0, 20, seed=5).images
    assert len({view.tobytes() for view in views}) > 15
    assert np.array_equal(views, opened(tmp_path, 16, flip=True, crop="random").pixels(0, 20, seed=5).images)
    plain = opened(tmp_path, 16).pixels(0, 5, seed=5).images
    assert len({view.tobytes() for view in plain}) == 1


def test_a_folder_of_subfolders_is_labelled_by_them(tmp_path: Path):
    for index, name in enumerate(["cats", "ants", "dogs"]):
        paint(tmp_path / name / "a.png", (50 * index, 0, 0))
        paint(tmp_path / name / "deep" / "b.jpg", (50 * index, 0, 0))
    data = opened(tmp_path)
    assert data.conditioning == LabelConditioning(labels=("ants", "cats", "dogs")) and data.size == 6
    pixels = data.pixels(0, 6, seed=0)
    reds = {"ants": 50, "cats": 0, "dogs": 100}
    named = [data.conditioning.describe(tuple(condition)) for condition in pixels.conditions.tolist()]
    assert [round(int(red) / 50) * 50 for red in pixels.images[:, 4, 4, 0]] == [reds[name] for name in named]
    assert sorted(named) == sorted([*reds] * 2)


def test_classes_that_are_numbers_keep_their_names(tmp_path: Path):
    for name in ("20190101", "007", "-5"):
        paint(tmp_path / name / "a.png")
    data = opened(tmp_path)
    assert data.conditioning == LabelConditioning(labels=("-5", "007", "20190101"))
    assert sorted(data.pixels(0, 3, seed=0).conditions.flatten().tolist()) == [1, 2, 3]


def test_a_list_of_the_skipped_that_was_cut_off_is_mended(tmp_path: Path):
    file = tmp_path / "skipped.jsonl"
    file.write_text('{"name": "a.png", "reason": "x"}\n{"name": "b.p')
    skipped = Skipped()
    skipped.note([("c.png", "y")])
    skipped.keep(file)
    skipped.note([("a.png", "again"), ("d.png", "z")])
    assert [json.loads(line)["name"] for line in file.read_text().splitlines()] == ["a.png", "c.png", "d.png"]


def test_a_flat_folder_has_no_labels(tmp_path: Path):
    for index in range(3):
        paint(tmp_path / f"{index}.webp")
    data = opened(tmp_path)
    x, condition = data.batch(0, 4, seed=0)
    assert data.conditioning == NoConditioning() and data.size == 3
    assert x.shape == (4, 3, 8, 8) and x.dtype == torch.float32 and condition.shape == (4, 0)


def test_folders_are_followed_through_links_but_never_in_a_circle(tmp_path: Path):
    paint(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "set").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "set" / "class")
    os.symlink(tmp_path / "set", tmp_path / "elsewhere" / "round")
    os.mkfifo(tmp_path / "elsewhere" / "pipe.png")  # to open it would wait for ever
    data = opened(tmp_path / "set")
    assert data.size == 1 and data.conditioning == LabelConditioning(labels=("class",))


def test_a_class_whose_images_are_all_broken_does_not_shift_the_others(tmp_path: Path):
    paint(tmp_path / "b" / "good.png")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "broken.png").write_bytes(b"\x89PNG")
    data = opened(tmp_path)
    _, condition = data.batch(0, 4, seed=0)
    assert {data.conditioning.describe(tuple(row)) for row in condition.tolist()} == {"b"}


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["a.png", "class/b.png"], "beside and inside subfolders"),
        (["train/a.png", "val/b.png"], r"subfolders \(train, val\) are parts of a data set"),
        (["notes.txt"], "no image .* below this folder"),
    ],
)
def test_folders_that_are_not_clear_are_refused(files: list[str], said: str, tmp_path: Path):
    for file in files:
        paint(tmp_path / file.replace(".txt", ".png"))
        if file.endswith(".txt"):
            (tmp_path / "notes.png").rename(tmp_path / file)
    with pytest.raises(DataError, match=said):
        opened(tmp_path)


def test_the_fingerprint_changes_with_the_files_and_what_is_done_to_them(tmp_path: Path):
    paint(tmp_path / "a.png")
    first = opened(tmp_path).identity
    assert opened(tmp_path).identity == first != opened(tmp_path, flip=True).identity
    paint(tmp_path / "b.png")
    assert opened(tmp_path).identity != first
