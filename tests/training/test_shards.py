"""WebDataset shards, written by webdataset itself."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from diffusion.condition import LabelConditioning, NoConditioning, PromptConditioning
from tests.training.photographs import encoded, photograph
from training.datasets import DataError
from training.images import ImageSet
from training.opening import open_data

PROMPTS = PromptConditioning(template="a {colour} car", slots={"colour": ("red", "blue")}, filler=("a", "car"))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of each test's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def write(file: Path, *samples: dict) -> Path:
    """Write a shard; images are numbers, each a plain grey of its own."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(file)) as shard:
        for sample in samples:
            shard.write(sample)
    return file


def grey(number: int) -> bytes:
    return encoded(photograph(0).resize((12, 10)).point(lambda _: number))


def numbered(first: int, count: int, **more: object) -> list[dict]:
    return [{"__key__": f"s{number:05d}", "png": grey(number), **more} for number in range(first, first + count)]


def opened(path: Path, prompts: PromptConditioning | None = None) -> ImageSet:
    data = open_data(str(path), 4, prompts=prompts)
    assert isinstance(data, ImageSet)
    return data


def greys(data: ImageSet, start: int, count: int, seed: int = 0) -> list[int]:
    return data.pixels(start, count, seed=seed).images[:, 2, 2, 0].tolist()


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty shards of different lengths, more than are shuffled together."""
    folder = tmp_path_factory.mktemp("many")
    first = 0
    for shard in range(20):
        write(folder / f"{shard:06d}.tar", *numbered(first, 3 + shard % 4))
        first += 3 + shard % 4
    return folder


def test_an_epoch_over_shards_shows_every_image_once(many: Path):
    data = opened(many)
    assert data.size == 90 and len(data.source.shards) == 20
    assert sorted(greys(data, 0, 90)) == sorted(greys(data, 90, 90)) == list(range(90))
    assert greys(data, 0, 90) != greys(data, 90, 90) != greys(data, 90, 90, seed=1)


@given(st.integers(0, 200), st.integers(1, 20), st.integers(0, 3))
def test_a_batch_of_shards_is_a_function_of_seed_and_position(many: Path, start: int, count: int, seed: int):
    data = opened(many)
    assert greys(data, start, count, seed) == [greys(data, start + at, 1, seed)[0] for at in range(count)]


def test_members_are_what_webdataset_itself_reads(tmp_path: Path):
    shard = write(
        tmp_path / "mixed.tar",
        {"__key__": "a/b.c/1", "jpg": encoded(photograph(1), "JPEG"), "cls": 3, "txt": "a tree"},
        {"__key__": "a/2", "cls": 1, "webp": encoded(photograph(2), "WEBP"), "json": {"width": 60}},
        {"__key__": "3", "json": {"label": "no image"}},
        {"__key__": "4", "input.png": encoded(photograph(3)), "json": {"label": 2}},
    )
    read = {sample["__key__"]: sample for sample in webdataset.WebDataset(str(shard), shardshuffle=False)}
    source = opened(shard).source
    assert [source.read(row)[0] for row in range(source.shards[0])] == [
        read["a/b.c/1"]["jpg"],
        read["a/2"]["webp"],
        read["4"]["input.png"],
    ]
    assert source.conditioning == LabelConditioning(labels=("0", "1", "2", "3"))
    assert [source.read(row)[1] for row in range(3)] == [(4,), (2,), (3,)]
    assert source.where(0) == "mixed.tar: a/b.c/1.jpg"


def test_labels_may_be_names_and_an_image_without_one_has_none(tmp_path: Path):
    named = [{"__key__": f"{at}", "png": grey(at), "json": {"label": name}} for at, name in enumerate(["owl", "ant"])]
    source = opened(write(tmp_path / "a.tar", *named, {"__key__": "9", "png": grey(9)})).source
    assert source.conditioning == LabelConditioning(labels=("ant", "owl"))
    assert [source.read(row)[1] for row in range(3)] == [(2,), (1,), (0,)]


def test_captions_are_read_by_the_prompts_file_and_those_that_do_not_fit_are_skipped(tmp_path: Path, capsys):
    said = ["a red car", "A blue car.", "a green car"]
    samples = [{"__key__": f"{at}", "png": grey(at), "txt": text} for at, text in enumerate(said)]
    samples += [{"__key__": "3", "png": grey(3), "json": {"caption": "blue"}}, {"__key__": "4", "png": grey(4)}]
    shard = write(tmp_path / "a.tar", *samples)
    data = opened(shard, PROMPTS)
    x, condition = data.batch(0, 40, seed=0)
    drawn = {
        (round(float(grey + 1) * 127.5), *row) for grey, row in zip(x[:, 0, 2, 2], condition.tolist(), strict=True)
    }
    assert drawn == {(0, 1), (1, 2), (3, 2)} and data.conditioning == PROMPTS
    err = capsys.readouterr().err
    assert "a.tar: 2.png: caption: the word 'green' is not known" in err and "a.tar: 4.png: caption: " in err
    without = opened(shard)
    assert without.conditioning == NoConditioning() and "captions not used without --prompts" in str(without)


def test_a_shard_that_is_cut_off_gives_what_it_holds_and_is_named(tmp_path: Path, capsys):
    write(tmp_path / "whole.tar", *numbered(0, 4))
    cut = write(tmp_path / "cut.tar", *numbered(10, 20))
    cut.write_bytes(cut.read_bytes()[: 10 * 1024 + 700])
    data = opened(tmp_path)
    seen = set(greys(data, 0, 3 * data.size))
    assert {0, 1, 2, 3, 10, 11} <= seen and max(seen) < 20
    err = capsys.readouterr().err
    assert "skipped cut.tar: cannot be read beyond its first" in err
    again = opened(tmp_path)
    assert "skipped cut.tar" in capsys.readouterr().err and again.size == data.size


@pytest.mark.parametrize("keep", [False, True])
def test_a_shard_cut_off_between_two_members_is_named_too(keep: bool, tmp_path: Path, capsys):
    write(tmp_path / "a.tar", *numbered(0, 3))
    whole = write(tmp_path / "b.tar", *numbered(5, 3)).read_bytes()
    with tarfile.open(tmp_path / "b.tar") as archive:
        second = archive.getmembers()[1].offset
    (tmp_path / "b.tar").write_bytes(whole[: second if keep else 0])
    assert opened(tmp_path).size == (4 if keep else 3)
    assert "skipped b.tar" in capsys.readouterr().err


@pytest.mark.parametrize("damage", [b"", b"not a tar at all" * 100, bytes(5000)])
def test_a_shard_that_is_none_is_named_and_the_others_go_on(damage: bytes, tmp_path: Path, capsys):
    write(tmp_path / "a.tar", *numbered(0, 3))
    (tmp_path / "b.tar").write_bytes(damage)
    data = opened(tmp_path)
    assert sorted(greys(data, 0, 3)) == [0, 1, 2]
    assert ("skipped b.tar" in capsys.readouterr().err) == (damage != bytes(5000))  # zeros are an archive of nothing


def test_what_is_no_archive_at_all_is_refused_with_its_name(tmp_path: Path):
    (tmp_path / "fake.tar").write_bytes(b"not a tar at all" * 100)
    with pytest.raises(DataError, match=r"fake: no image .* in 1 shard\(s\); fake.tar is no .tar file"):
        opened(tmp_path / "fake.tar")


def test_damage_in_the_middle_of_a_shard_does_not_end_it_silently(tmp_path: Path, capsys):
    shard = write(tmp_path / "a.tar", *numbered(0, 12))
    with tarfile.open(shard) as archive:
        header = archive.getmembers()[6].offset
    data = bytearray(shard.read_bytes())
    data[header + 148 : header + 156] = b"garbage!"  # the checksum
    shard.write_bytes(data)
    assert opened(shard).size == 6
    assert "skipped a.tar: cannot be read beyond its first 6 images" in capsys.readouterr().err


def test_a_broken_image_in_a_shard_is_skipped_and_named(tmp_path: Path, capsys):
    samples = [*numbered(0, 3), {"__key__": "bad", "jpg": b"\xff\xd8\xff nothing follows"}]
    data = opened(write(tmp_path / "a.tar", *samples))
    assert set(greys(data, 0, 12)) <= {0, 1, 2}
    for epoch in range(3):
        data.batch(4 * epoch, 4, seed=0)
    assert len(data.skipped) == 1
    assert capsys.readouterr().err.count("skipped a.tar: bad.jpg") == 1


def test_long_names_in_pax_headers_are_read(tmp_path: Path):
    key = "deep/" * 30 + "é" * 40
    shard = write(tmp_path / "a.tar", {"__key__": key, "png": grey(7), "cls": 0})
    assert greys(opened(shard), 0, 2) == [7, 7]


def test_the_index_is_read_from_the_cache_until_the_shard_changes(tmp_path: Path, cache: Path, monkeypatch):
    shard = write(tmp_path / "a.tar", *numbered(0, 5))
    first = opened(shard)
    (kept,) = cache.rglob("*.npy")
    with monkeypatch.context() as patched:
        patched.setattr("training.sources.shards._scan", None)  # to index it again would fail
        assert greys(opened(shard), 0, 5) == greys(first, 0, 5)
    kept.write_bytes(b"half")
    assert opened(shard).size == 5
    write(shard, *numbered(0, 7))
    assert opened(shard).size == 7


def test_where_the_cache_cannot_be_written_shards_are_indexed_each_time(tmp_path: Path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    shard = write(tmp_path / "a.tar", *numbered(0, 5))
    assert opened(shard).size == opened(shard).size == 5


def test_shards_without_an_image_are_refused(tmp_path: Path):
    write(tmp_path / "a.tar", {"__key__": "1", "txt": "words"})
    with pytest.raises(DataError, match="no image .* in 1 shard"):
        opened(tmp_path)


def test_the_fingerprint_changes_with_a_shard(tmp_path: Path):
    shard = write(tmp_path / "a.tar", *numbered(0, 5))
    first = opened(shard).identity
    assert first == opened(shard).identity
    with tarfile.open(shard, "a") as archive:
        about = tarfile.TarInfo("x.png")
        about.size = len(grey(1))
        archive.addfile(about, io.BytesIO(grey(1)))
    assert opened(shard).identity != first and np.sum(opened(shard).source.shards) == 6
