"""Data: batches that are functions of (seed, position), and folders of whatever people have."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from diffusion.condition import LabelConditioning, NoConditioning
from training import shapes
from training.datasets import DataError, FiniteSet, Shapes, digits, image_folder, open_data, pixels_to_latents


def paint(
    file: Path, colour: object = (200, 30, 40), mode: str = "RGB", size: tuple[int, int] = (20, 14), **save: object
):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(file, **save)
    return file


def numbered(count: int = 23) -> FiniteSet:
    images = np.arange(count, dtype=np.uint8)[:, None, None, None].repeat(4, 1).repeat(4, 2)
    return FiniteSet("numbers", images, np.zeros((count, 0), np.int64), NoConditioning())


def numbers_of(x: torch.Tensor) -> list[int]:
    return ((x[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


@given(st.integers(0, 60), st.integers(1, 30), st.integers(0, 5), st.integers(1, 29))
def test_a_batch_of_a_finite_set_is_a_function_of_seed_and_position(start: int, count: int, seed: int, cut: int):
    data = numbered()
    whole = numbers_of(data.batch(start, count, seed=seed)[0])
    parts = [numbers_of(data.batch(start, min(cut, count), seed=seed)[0])]
    if cut < count:
        parts.append(numbers_of(data.batch(start + cut, count - cut, seed=seed)[0]))
    assert sum(parts, []) == whole


@given(st.integers(0, 20), st.integers(0, 20))
def test_every_epoch_holds_every_image_once_in_an_order_of_its_own(epoch: int, seed: int):
    data = numbered()
    this, following = (numbers_of(data.batch(23 * number, 23, seed=seed)[0]) for number in (epoch, epoch + 1))
    assert sorted(this) == sorted(following) == list(range(23)) and this != following
    assert numbers_of(data.batch(23 * epoch, 23, seed=seed + 1)[0]) != this


def test_drawn_pictures_are_a_function_of_seed_and_position():
    data = Shapes(16)
    x, condition = data.batch(5, 6, seed=3)
    later, wishes = data.batch(8, 3, seed=3)
    assert torch.equal(x[3:], later) and torch.equal(condition[3:], wishes)
    assert not torch.equal(x, data.batch(5, 6, seed=4)[0])
    assert x.shape == (6, 3, 16, 16) and x.dtype == torch.float32 and condition.shape == (6, 6)
    assert x.min() >= -1 and x.max() <= 1


def test_held_out_scenes_are_never_drawn_in_training_and_always_in_the_held_out_set():
    rng = np.random.default_rng(0)
    seen = {shapes.draw_condition(rng) for _ in range(16000)}
    unseen = {shapes.draw_condition(rng, held_out=True) for _ in range(3000)}
    assert not any(map(shapes.is_held_out, seen)) and all(map(shapes.is_held_out, unseen))
    assert len({scene for scene in seen if scene[2] == shapes.ALONE}) == 540
    assert len({scene for scene in unseen if scene[2] == shapes.ALONE}) == 60
    for held_out in (False, True):
        _, condition = Shapes(16, held_out=held_out).batch(0, 50, seed=1)
        assert all(shapes.is_held_out(tuple(row)) == held_out for row in condition.tolist())


def test_every_word_and_every_pair_of_words_but_few_is_seen_in_training():
    alone = [(a + 1, b + 1, shapes.ALONE, 0, 0, c + 1) for a, b, c in np.ndindex(10, 10, 6)]
    allowed = [scene for scene in alone if not shapes.is_held_out(scene)]
    for slot, size in ((0, 10), (1, 10), (5, 6)):
        assert {scene[slot] for scene in allowed} == set(range(1, size + 1))
    assert len({scene[:2] for scene in allowed}) == 100 and len({(a, c) for a, *_, c in allowed}) == 60
    rng = np.random.default_rng(1)
    pairs = [scene for scene in (shapes.draw_condition(rng) for _ in range(8000)) if scene[2] != shapes.ALONE]
    assert len({(first, second) for _, first, _, _, second, _ in pairs}) == 90


def test_the_first_shape_of_a_pair_is_left_of_or_above_the_second():
    rng = np.random.default_rng(2)
    for relation, axis in ((shapes.LEFT, 1), (shapes.ABOVE, 0)):
        pixels = shapes.draw_image(rng, (1, 1, relation, 6, 1, 6), 32).astype(int)  # red and blue on snow
        red = np.argwhere((pixels[..., 0] > 180) & (pixels[..., 2] < 90))
        blue = np.argwhere((pixels[..., 2] > 180) & (pixels[..., 0] < 90))
        assert len(red) and len(blue) and red[:, axis].max() < blue[:, axis].min()


@pytest.mark.parametrize("shape", range(1, 11))
def test_every_shape_is_drawn_in_its_colour_on_its_background(shape: int):
    colour, background = 1 + shape % 10, 1 + shape % 6
    rng = np.random.default_rng(0)
    picture = shapes.draw_image(rng, (colour, shape, shapes.ALONE, 0, 0, background), 32).reshape(-1, 3).astype(int)
    for wanted in (list(shapes.COLOURS.values())[colour - 1], list(shapes.BACKGROUNDS.values())[background - 1]):
        assert (np.abs(picture - wanted).max(1) <= 2).sum() > 40


def test_the_digits_are_labelled_and_fill_the_grey_scale():
    data = digits()
    assert len(data) == 1797 and (data.resolution, data.channels) == (8, 1)
    x, condition = data.batch(0, len(data), seed=0)
    assert x.min() == -1 and x.max() == 1
    assert sorted(condition.unique().tolist()) == list(range(1, 11))
    assert data.conditioning.describe((4,)) == "3"


def test_pixels_become_latents_from_minus_one_to_one():
    images = np.array([0, 51, 255], np.uint8).reshape(1, 1, 3, 1)
    latents = pixels_to_latents(images)
    assert latents.shape == (1, 1, 1, 3) and latents.flatten().tolist() == pytest.approx([-1, -0.6, 1])


def test_a_folder_of_subfolders_is_labelled_by_them(tmp_path: Path):
    for index, name in enumerate(["cats", "ants", "dogs"]):
        paint(tmp_path / name / "a.png", (50 * index, 0, 0))
        paint(tmp_path / name / "deep" / "b.jpg", (50 * index, 0, 0))
    data = image_folder(tmp_path, 8)
    assert data.conditioning == LabelConditioning(labels=("ants", "cats", "dogs"))
    assert data.images.shape == (6, 8, 8, 3) and data.conditions.flatten().tolist() == [1, 1, 2, 2, 3, 3]
    reds = data.images[:, 4, 4, 0].tolist()
    assert [round(red / 50) for red in reds] == [1, 1, 0, 0, 2, 2]


def test_a_flat_folder_has_no_labels(tmp_path: Path):
    for index in range(3):
        paint(tmp_path / f"{index}.webp")
    data = image_folder(tmp_path, 8)
    assert data.conditioning == NoConditioning() and data.conditions.shape == (3, 0)
    x, condition = data.batch(0, 4, seed=0)
    assert x.shape == (4, 3, 8, 8) and condition.shape == (4, 0)


def test_grey_transparent_palette_and_16_bit_images_become_rgb(tmp_path: Path):
    paint(tmp_path / "a-grey.png", 120, "L")
    paint(tmp_path / "b-alpha.png", (10, 20, 30, 128), "RGBA")
    paint(tmp_path / "c-palette.gif", 3, "P")
    paint(tmp_path / "d-cmyk.jpg", (10, 20, 30, 40), "CMYK")
    paint(tmp_path / "e-grey-alpha.png", (90, 255), "LA")
    paint(tmp_path / "f-bits.png", 1, "1")
    paint(tmp_path / "g.PNG")
    data = image_folder(tmp_path, 8)
    assert data.images.shape == (7, 8, 8, 3)
    assert data.images[0, 0, 0].tolist() == [120] * 3 and data.images[4, 0, 0].tolist() == [90] * 3


def test_a_turned_photograph_is_turned_upright(tmp_path: Path):
    photograph = Image.new("RGB", (32, 32))
    photograph.paste((255, 255, 255), (0, 0, 32, 16))  # white above, black below
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    photograph.save(tmp_path / "a.jpg", exif=exif, quality=95)
    picture = image_folder(tmp_path, 8).images[0]
    assert picture[:3].max() < 60 and picture[5:].min() > 200


def test_a_wide_image_is_cropped_in_the_middle_and_not_squeezed(tmp_path: Path):
    wide = Image.new("RGB", (48, 16))
    wide.paste((255, 255, 255), (16, 0, 32, 16))
    wide.save(tmp_path / "a.png")
    assert image_folder(tmp_path, 8).images[0].min() > 200


def test_files_that_cannot_be_read_are_skipped_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture):
    good = paint(tmp_path / "good.png", size=(300, 200)).read_bytes()
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "truncated.png").write_bytes(good[: len(good) // 2])
    (tmp_path / "garbage.jpg").write_bytes(b"not an image at all")
    (tmp_path / "notes.txt").write_text("not a candidate")
    data = image_folder(tmp_path, 8)
    said = capsys.readouterr().out
    assert len(data) == 1 and "skipped 3 of 4 files" in said
    assert all(name in said for name in ("empty.png", "truncated.png", "garbage.jpg")) and str(tmp_path) not in said


def test_images_beside_and_inside_subfolders_are_refused(tmp_path: Path):
    paint(tmp_path / "a.png")
    paint(tmp_path / "class" / "b.png")
    with pytest.raises(DataError, match="beside and inside subfolders"):
        image_folder(tmp_path, 8)


def test_a_folder_without_an_image_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="no readable image .* among 0 candidates"):
        image_folder(tmp_path, 8)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match="among 1 candidates"):
        image_folder(tmp_path, 8)


def test_a_class_of_unreadable_images_does_not_shift_the_others(tmp_path: Path):
    paint(tmp_path / "b" / "good.png")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "broken.png").write_bytes(b"\x89PNG")
    data = image_folder(tmp_path, 8)
    assert data.conditioning.describe(tuple(data.conditions[0])) == "b"


def test_data_are_opened_by_name(tmp_path: Path):
    paint(tmp_path / "a.png")
    assert open_data("shapes", 16).resolution == 16
    assert open_data("digits", 8).name == "digits"
    assert open_data(str(tmp_path), 8).name == tmp_path.name
    with pytest.raises(DataError, match="'nothing' is neither 'shapes', 'digits' nor a folder"):
        open_data("nothing", 8)
