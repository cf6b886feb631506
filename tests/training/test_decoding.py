"""Decoding: whatever people's files are becomes a square of RGB, the right way up, or is refused with a reason."""

import math

import numpy as np
import pytest
from PIL import Image

from tests.training.photographs import BROKEN, GOOD, album, encoded, photograph
from training.decoding import SMALLEST, SPARE, WIDEST, Augmentation, Unreadable, decoded, square

RNG = np.random.default_rng(0)
PLAIN, RANDOM = Augmentation(), Augmentation(crop="random")


def shown(data: bytes, resolution: int = 16) -> np.ndarray:
    return square(decoded(data, resolution), resolution, PLAIN, RNG)


def adm_centre_crop(image: Image.Image, size: int) -> np.ndarray:
    """The crop of guided-diffusion's image_datasets.py, written down again from its definition."""
    while min(*image.size) >= 2 * size:
        image = image.resize(tuple(side // 2 for side in image.size), resample=Image.BOX)
    scale = size / min(*image.size)
    image = image.resize(tuple(round(side * scale) for side in image.size), resample=Image.BICUBIC)
    pixels = np.array(image)
    y, x = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[y : y + size, x : x + size]


@pytest.mark.parametrize("size", [(16, 16), (17, 23), (64, 48), (200, 150), (131, 40), (9, 12)])
def test_cropping_and_scaling_are_those_of_adm_to_the_bit(size: tuple[int, int]):
    picture = photograph(3, size)
    assert np.array_equal(square(picture, 16, PLAIN, RNG), adm_centre_crop(picture, 16))


def test_a_large_jpeg_decoded_at_part_of_its_size_hardly_differs():
    data = encoded(photograph(5, (1200, 900)), "JPEG", quality=92)
    assert max(decoded(data, 16).size) < 1200 and min(decoded(data, 16).size) >= SPARE * 16
    whole = adm_centre_crop(Image.open(__import__("io").BytesIO(data)).convert("RGB"), 16)
    assert np.abs(shown(data).astype(int) - whole).max() <= 4


def test_every_odd_format_comes_out_in_rgb_and_every_broken_file_with_a_reason(tmp_path):
    folder = album(tmp_path)
    for name in GOOD:
        pixels = shown((folder / name).read_bytes())
        assert pixels.shape == (16, 16, 3) and pixels.dtype == np.uint8 and pixels.std() > 10, name
    reasons = {}
    for name in BROKEN:
        with pytest.raises(Unreadable) as caught:
            decoded((folder / name).read_bytes(), 16)
        reasons[name] = str(caught.value)
        assert "0x" not in reasons[name] and "/" not in reasons[name]
    assert reasons["empty.jpg"] == "no bytes" and reasons["listing.jpg"] == "not an image"
    assert "truncated" in reasons["cut.jpg"]


@pytest.mark.parametrize("name", ["cmyk.jpg", "photo.webp", "animated.gif", "palette.gif", "photo.jpg"])
def test_formats_agree_about_the_picture(name: str, tmp_path):
    seen = shown((album(tmp_path) / name).read_bytes()).astype(int)
    assert np.abs(seen - shown(encoded(photograph(77)))).mean() < 12


def test_sixteen_bits_of_grey_keep_their_upper_eight(tmp_path):
    folder = album(tmp_path)
    sixteen, eight = (shown((folder / name).read_bytes()).astype(int) for name in ("sixteen.png", "grey.png"))
    assert np.abs(sixteen - eight).max() <= 1


def test_what_is_transparent_is_white():
    image = Image.new("RGBA", (20, 20), (200, 0, 0, 0))
    image.paste((0, 0, 200, 255), (0, 0, 20, 10))
    pixels = shown(encoded(image), 10)
    assert pixels[0, 0].tolist() == [0, 0, 200] and pixels[9, 9].tolist() == [255, 255, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photograph_is_turned_upright(orientation: int):
    upright = photograph(9, (48, 48))
    back = {2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4]}  # what a camera held so would have stored
    stored = upright
    for turn in back.get(orientation, []):
        stored = stored.transpose(Image.Transpose(turn))
    exif = Image.Exif()
    exif[0x0112] = orientation
    seen = shown(encoded(stored, "JPEG", exif=exif, quality=95), 48).astype(int)
    assert np.abs(seen - np.asarray(upright, int)).mean() < 6


def test_a_wide_image_is_cropped_in_the_middle_and_not_squeezed():
    wide = Image.new("RGB", (48, 16))
    wide.paste((255, 255, 255), (16, 0, 32, 16))
    assert shown(encoded(wide), 8).min() > 200


@pytest.mark.parametrize("size", [(20_000, 2), (2, 20_000), (1, 1), (65_000, 1)])
def test_thin_and_tiny_images_neither_fail_nor_fill_the_memory(size: tuple[int, int]):
    image = Image.new("RGB", size, (9, 90, 200))
    image.paste((200, 0, 0), (0, 0, size[0] // 4, size[1] // 4))
    seen = shown(encoded(image), 8)
    assert seen.shape == (8, 8, 3) and np.abs(seen.astype(int) - [9, 90, 200]).max() <= 1
    assert WIDEST * 8 < 20_000


def test_half_the_images_are_mirrored_and_nothing_else_changes():
    picture, flipped = photograph(1, (16, 16)), Augmentation(flip=True)
    plain = np.asarray(picture)
    seen = [square(picture, 16, flipped, np.random.default_rng(seed)) for seed in range(400)]
    mirrored = [np.array_equal(pixels, plain[:, ::-1]) for pixels in seen]
    assert all(np.array_equal(pixels, plain) for pixels, turned in zip(seen, mirrored, strict=True) if not turned)
    assert 160 < sum(mirrored) < 240


def test_a_random_crop_is_a_square_of_the_image_of_the_sizes_that_are_promised():
    """On a picture that tells its coordinates: red grows to the right, green downwards."""
    side = 64
    down, right = np.mgrid[0:side, 0:side]
    picture = Image.fromarray(np.stack([right * 4, down * 4, 0 * down], 2).astype(np.uint8))
    widths, lefts = [], []
    for seed in range(300):
        pixels = square(picture, 16, RANDOM, np.random.default_rng(seed)).astype(float) / 4
        across, along = pixels[8, -1, 0] - pixels[8, 0, 0], pixels[-1, 8, 1] - pixels[0, 8, 1]
        assert across == pytest.approx(along, abs=2)
        widths.append(across * 16 / 15)  # from the middle of the first pixel to that of the last
        lefts.append(pixels[8, 0, 0])
    assert SMALLEST * side - 3 < min(widths) < 0.84 * side and 0.97 * side < max(widths) < side + 3
    assert min(lefts) < 3 and max(lefts) > 10 and math.isclose(np.mean(widths), 0.9 * side, rel_tol=0.05)
