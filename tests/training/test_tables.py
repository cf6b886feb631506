"""Hugging Face data sets, written by the library itself."""

from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from diffusion.condition import LabelConditioning, NoConditioning, PromptConditioning
from tests.training.photographs import encoded, photograph
from training.datasets import DataError
from training.images import ImageSet
from training.opening import open_data

PROMPTS = PromptConditioning(template="a {colour} car", slots={"colour": ("red", "blue")}, filler=("a", "car"))
PICTURES = [photograph(seed, (14, 10)) for seed in range(7)]
LABELS = [1, 0, 2, 2, 1, 0, 1]
NAMES = ["ant", "bee", "owl"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's cache below the test's own folder, and no word with any hub."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def table(**more: object) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    made = datasets.Dataset.from_dict({"image": PICTURES, "label": LABELS}, features=features)
    for name, values in more.items():
        made = made.add_column(name, values)
    return made


def opened(path: Path, prompts: PromptConditioning | None = None) -> ImageSet:
    data = open_data(str(path), 6, prompts=prompts)
    assert isinstance(data, ImageSet)
    return data


def epoch(data: ImageSet) -> list[tuple[bytes, tuple[int, ...]]]:
    assert data.size
    pixels = data.pixels(0, data.size, seed=0)
    return sorted(
        (image.tobytes(), tuple(row)) for image, row in zip(pixels.images, pixels.conditions.tolist(), strict=True)
    )


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[bytes, tuple[int, ...]]]:
    """The same pictures from a folder with a subfolder for each class."""
    folder = tmp_path_factory.mktemp("classes")
    for at, (picture, label) in enumerate(zip(PICTURES, LABELS, strict=True)):
        (folder / NAMES[label]).mkdir(exist_ok=True)
        picture.save(folder / NAMES[label] / f"{at}.png")
    return epoch(opened(folder))


def test_what_save_to_disk_wrote_is_read(tmp_path: Path, expected):
    table().save_to_disk(tmp_path / "saved", num_shards=2)
    data = opened(tmp_path / "saved")
    assert data.conditioning == LabelConditioning(labels=tuple(NAMES)) and data.name == "saved"
    assert epoch(data) == expected


def test_of_several_splits_train_is_taken_and_a_split_can_be_named(tmp_path: Path, expected):
    other = table().select(range(2))
    datasets.DatasetDict({"train": table(), "test": other}).save_to_disk(tmp_path / "dict")
    assert epoch(opened(tmp_path / "dict")) == expected
    assert opened(tmp_path / "dict" / "test").size == 2
    datasets.DatasetDict({"a": other, "b": other}).save_to_disk(tmp_path / "none")
    with pytest.raises(DataError, match="none has the splits a, b; name the folder of one of them"):
        opened(tmp_path / "none")


def test_parquet_files_are_read_and_only_those_of_training_where_they_say_so(tmp_path: Path, expected):
    (tmp_path / "set" / "data").mkdir(parents=True)
    table().select(range(4)).to_parquet(tmp_path / "set" / "data" / "train-00000-of-00002.parquet")
    table().select(range(4, 7)).to_parquet(tmp_path / "set" / "data" / "train-00001-of-00002.parquet")
    table().to_parquet(tmp_path / "set" / "data" / "test-00000-of-00001.parquet")
    assert epoch(opened(tmp_path / "set")) == expected
    assert opened(tmp_path / "set" / "data" / "test-00000-of-00001.parquet").size == 7


def test_arrow_files_are_read(tmp_path: Path, expected):
    table().save_to_disk(tmp_path / "saved")
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    assert epoch(opened(arrow)) == expected


@pytest.mark.parametrize("bare", [False, True])
def test_parquet_of_other_programs_is_read_when_its_columns_are_called_as_one_expects(
    bare: bool, tmp_path: Path, expected
):
    files = [encoded(picture) for picture in PICTURES]
    images = files if bare else [{"bytes": data, "path": None} for data in files]
    numbers = pyarrow.table({"id": range(7), "image": images, "label": LABELS})
    pyarrow.parquet.write_table(numbers, tmp_path / "a.parquet")
    data = opened(tmp_path / "a.parquet")
    assert data.conditioning == LabelConditioning(labels=("0", "1", "2")) and epoch(data) == expected


def test_a_row_without_an_image_or_with_a_broken_one_is_skipped_and_named(tmp_path: Path, capsys):
    images = [encoded(PICTURES[0]), None, encoded(PICTURES[1])[:200], b""]
    pyarrow.parquet.write_table(pyarrow.table({"image": images}), tmp_path / "a.parquet")
    data = opened(tmp_path / "a.parquet")
    x, _ = data.batch(0, 8, seed=0)
    err = capsys.readouterr().err
    assert data.conditioning == NoConditioning() and len(data.skipped) == 3 and len(x) == 8
    assert "skipped row 1: no image in this row" in err and "skipped row 3: no image in this row" in err
    assert "skipped row 2: " in err


def test_images_that_a_table_only_names_are_read_from_their_files(tmp_path: Path, expected):
    for at, picture in enumerate(PICTURES):
        picture.save(tmp_path / f"{at}.png")
    named = datasets.Dataset.from_dict({"image": [str(tmp_path / f"{at}.png") for at in range(7)], "label": LABELS})
    named = named.cast_column("image", datasets.Image(decode=False))
    named = named.map(lambda row: {"image": {"bytes": None, "path": row["image"]["path"]}})
    named.save_to_disk(tmp_path / "saved")
    assert epoch(opened(tmp_path / "saved")) == expected


def test_captions_are_read_by_the_prompts_file(tmp_path: Path, capsys):
    said = ["a red car", "blue", "green", "", "a car", "a blue car", "red"]
    table(caption=said).to_parquet(tmp_path / "a.parquet")
    data = opened(tmp_path / "a.parquet", PROMPTS)
    _, conditions = data.batch(0, 70, seed=0)
    assert data.conditioning == PROMPTS and set(conditions.flatten().tolist()) == {1, 2}
    err = capsys.readouterr().err
    assert "skipped row 2: caption: the word 'green' is not known" in err and len(data.skipped) == 3
    assert "captions in 'caption' not used without --prompts" in str(opened(tmp_path / "a.parquet"))


def test_hidden_labels_are_none(tmp_path: Path):
    images = [encoded(picture) for picture in PICTURES[:3]]
    pyarrow.parquet.write_table(pyarrow.table({"image": images, "label": [-1, None, 1]}), tmp_path / "a.parquet")
    assert sorted(condition for _, condition in epoch(opened(tmp_path / "a.parquet"))) == [(0,), (0,), (2,)]


@pytest.mark.parametrize(
    ("columns", "prompts", "said"),
    [
        ({"text": ["a"], "size": [1]}, None, "no column of images .* among its columns: text, size"),
        ({"image": [b"x"]}, PROMPTS, "captions are looked for in a column called caption, text, prompt"),
    ],
)
def test_tables_without_what_is_needed_are_refused(columns: dict, prompts, said: str, tmp_path: Path):
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=said):
        opened(tmp_path / "a.parquet", prompts)


def test_files_that_are_no_tables_or_not_of_one_table_are_refused(tmp_path: Path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="a cannot be read as one table"):
        opened(tmp_path / "a.parquet")


def test_without_the_library_the_sentence_says_how_to_get_it(tmp_path: Path, monkeypatch):
    table().save_to_disk(tmp_path / "saved")
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install -e '.\[data\]'"):
        opened(tmp_path / "saved")


def test_the_fingerprint_changes_with_the_rows(tmp_path: Path):
    table().to_parquet(tmp_path / "a.parquet")
    table().select(range(6)).to_parquet(tmp_path / "b.parquet")
    seen = {name: opened(tmp_path / f"{name}.parquet").identity["fingerprint"] for name in "ab"}
    assert seen["a"] != seen["b"] and opened(tmp_path / "a.parquet").identity["fingerprint"] == seen["a"]
    assert np.unique(LABELS).tolist() == [0, 1, 2]
