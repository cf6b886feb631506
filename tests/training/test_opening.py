"""`--data WHAT`: kinds are told apart by looking, and what is not clear is refused with a sentence."""

import json
from pathlib import Path

import pytest

from diffusion.condition import PromptConditioning
from tests.training.photographs import paint
from training import shapes
from training.datasets import DataError, FiniteSet, Procedural
from training.decoding import Augmentation
from training.opening import open_captioned, open_data, read_prompts


def test_drawn_data_are_opened_by_name():
    assert isinstance(open_data("shapes", 16), Procedural) and open_data("scenes", 16).resolution == 16
    assert isinstance(open_data("digits", 8), FiniteSet)


@pytest.mark.parametrize("name", ["shapes", "scenes", "digits"])
def test_drawn_data_are_not_augmented(name: str):
    with pytest.raises(DataError, match=f"{name} are not augmented; give --no-flip"):
        open_data(name, 8, Augmentation(flip=True))


@pytest.mark.parametrize(
    ("files", "named", "said"),
    [
        ([], "nothing", "data '.*nothing' is not there; what can be named: shapes, scenes, digits; a folder"),
        (["a.tar.gz"], "a.tar.gz", "a.tar.gz is compressed, so no image in it can be reached alone; unpack it first"),
        (["cifar-10-python.tgz"], "cifar-10-python.tgz", "unpack it first"),
        (["a.txt"], "a.txt", "a.txt is no data that is known here; what can be named"),
        (["a.png", "b.tar"], "", "holds images and .tar files; name one of them"),
        (["a.parquet", "b.arrow"], "", "holds .parquet files and .arrow files; name one of them"),
        (["a.npz", "b.npz"], "", "holds .npz files; name the one to train on"),
        ([".hidden.png"], "", "no image .* below this folder"),
    ],
)
def test_what_is_not_clear_is_refused_with_a_sentence(files: list[str], named: str, said: str, tmp_path: Path):
    folder = tmp_path / "set"
    folder.mkdir()
    for file in files:
        (folder / file).write_bytes(b"x")
    with pytest.raises(DataError, match=said):
        open_data(str(folder / named), 8)


def test_a_prompts_file_is_the_conditioning_of_a_family(tmp_path: Path):
    file = tmp_path / "prompts.json"
    file.write_text(shapes.CONDITIONING.model_dump_json())
    assert read_prompts(file) == shapes.CONDITIONING
    paint(tmp_path / "set" / "a.png")
    with pytest.raises(DataError, match=r"set: 1 images, no labels \(folder of images\) has no captions for --prompts"):
        open_captioned(str(tmp_path / "set"), 8, None, file)
    with pytest.raises(DataError, match="shapes: drawn on demand, prompts has no captions for --prompts"):
        other = shapes.CONDITIONING.model_copy(update={"template": "{colour}"})
        file.write_text(other.model_dump_json())
        open_captioned("shapes", 8, None, file)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (None, "prompts p.json cannot be read: No such file"),
        ("{", "prompts p.json: the file: Invalid JSON"),
        (json.dumps({"template": "x"}), "prompts p.json: slots: Field required"),
        ("\xff", "prompts p.json: the file: Invalid JSON"),
    ],
)
def test_a_prompts_file_that_is_none_is_refused(written: str | None, said: str, tmp_path: Path):
    if written is not None:
        (tmp_path / "p.json").write_text(written, encoding="latin-1")
    with pytest.raises(DataError, match=said):
        read_prompts(tmp_path / "p.json")
    assert PromptConditioning.model_fields.keys() >= {"template", "slots"}
