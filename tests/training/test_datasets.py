"""Data that is drawn or held in memory: batches that are functions of (seed, position)."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion.condition import NoConditioning
from training import shapes
from training.datasets import FiniteSet, Procedural, digits, pixels_to_latents
from training.opening import open_data


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


@pytest.mark.parametrize(("name", "slots"), [("shapes", 3), ("scenes", 6)])
def test_drawn_pictures_are_a_function_of_seed_and_position(name: str, slots: int):
    data = open_data(name, 16)
    x, condition = data.batch(5, 6, seed=3)
    later, wishes = data.batch(8, 3, seed=3)
    assert torch.equal(x[3:], later) and torch.equal(condition[3:], wishes)
    assert not torch.equal(x, data.batch(5, 6, seed=4)[0])
    assert x.shape == (6, 3, 16, 16) and x.dtype == torch.float32 and condition.shape == (6, slots)
    assert x.min() >= -1 and x.max() <= 1


def test_held_out_shapes_are_never_drawn_in_training_and_always_in_the_held_out_set():
    rng = np.random.default_rng(0)
    seen = {shapes.draw_single(rng) for _ in range(8000)}
    unseen = {shapes.draw_single(rng, held_out=True) for _ in range(1500)}
    assert not any(map(shapes.is_held_out, seen)) and all(map(shapes.is_held_out, unseen))
    assert len(seen) == 540 and len(unseen) == 60
    _, condition = Procedural("shapes", 16).unseen().batch(0, 20, seed=1)
    assert all(shapes.is_held_out(tuple(row)) for row in condition.tolist())
    _, condition = Procedural("shapes", 16).batch(0, 50, seed=1)
    assert not any(shapes.is_held_out(tuple(row)) for row in condition.tolist())


def test_held_out_scenes_hold_a_held_out_shape_or_pair_and_those_of_training_neither():
    rng = np.random.default_rng(0)
    seen = {shapes.draw_scene(rng) for _ in range(16000)}
    unseen = {shapes.draw_scene(rng, held_out=True) for _ in range(3000)}
    assert len({scene for scene in seen if scene[2] == shapes.ALONE}) == 540
    assert len({scene for scene in unseen if scene[2] == shapes.ALONE}) == 60
    pairs = [scene for scene in seen if scene[2] != shapes.ALONE]
    assert len({(first, second) for _, first, _, _, second, _ in pairs}) == 90
    for colour, shape, _, second_colour, second_shape, background in pairs:
        assert not shapes.is_held_out((colour, shape, background))
        assert not shapes.is_held_out((second_colour, second_shape, background))
    _, condition = Procedural("scenes", 16).unseen().batch(0, 50, seed=1)
    assert all(shapes.is_scene_held_out(tuple(row)) for row in condition.tolist())


def test_every_word_and_every_pair_of_words_is_seen_in_training():
    allowed = [(a, b, c) for a, b, c in np.ndindex(10, 10, 6) if not shapes.is_held_out((a + 1, b + 1, c + 1))]
    for slot, size in enumerate((10, 10, 6)):
        assert {triple[slot] for triple in allowed} == set(range(size))
    assert len({(a, b) for a, b, _ in allowed}) == 100 and len({(a, c) for a, _, c in allowed}) == 60


def test_the_first_shape_of_a_pair_is_left_of_or_above_the_second():
    rng = np.random.default_rng(2)
    for relation, axis in ((shapes.LEFT, 1), (shapes.ABOVE, 0)):
        pixels = shapes.paint_scene(rng, (1, 1, relation, 6, 1, 6), 32).astype(int)  # red and blue on snow
        red = np.argwhere((pixels[..., 0] > 180) & (pixels[..., 2] < 90))
        blue = np.argwhere((pixels[..., 2] > 180) & (pixels[..., 0] < 90))
        assert len(red) and len(blue) and red[:, axis].max() < blue[:, axis].min()


@pytest.mark.parametrize("shape", range(1, 11))
def test_every_shape_is_drawn_in_its_colour_on_its_background(shape: int):
    colour, background = 1 + shape % 10, 1 + shape % 6
    rng = np.random.default_rng(0)
    picture = shapes.paint_single(rng, (colour, shape, background), 32).reshape(-1, 3).astype(int)
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
