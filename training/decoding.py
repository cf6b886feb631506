"""From a file's bytes to a square of pixels: decoded, turned upright, in RGB, cropped, scaled down, perhaps mirrored."""

import io
import math
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
"""What a file is called that is taken for an image."""
SPARE = 8
"""Pixels along a side, for each one wanted, that are left to average when a decoder scales down by itself."""
WIDEST = 4
"""Longer side over shorter one from which the ends are cut off before scaling, so that a thin strip does not fill the memory."""
SMALLEST = 0.8
"""Side of the smallest random crop over the shorter side of the image."""


class Unreadable(ValueError):
    """One image that cannot be used; the message says why in a few words and names no path."""


@dataclass(frozen=True)
class Augmentation:
    """What is done to an image each time it is shown, besides scaling it."""

    flip: bool = False
    """Mirror every other image, left to right."""
    crop: Literal["centre", "random"] = "centre"
    """The middle square; or any square whose side is from SMALLEST of the shorter side up to all of it."""


def decoded(data: bytes, resolution: int) -> Image.Image:
    """Return the image in RGB, the way up that its camera meant; of an animation the first frame, transparency on white.

    A large JPEG is decoded at a half, a quarter or an eighth of its size (three times as fast), as long as SPARE times
    the resolution is left.  Raises Unreadable for whatever cannot be decoded to its end.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # odd metadata and large pictures: what matters is whether the pixels come out
            with Image.open(io.BytesIO(data)) as image:
                image.draft(None, (SPARE * resolution, SPARE * resolution))
                image.load()
                return _rgb(ImageOps.exif_transpose(image))
    except MemoryError:
        raise
    except Exception as error:  # decoders of forty years of formats raise whatever they like on damaged input
        raise Unreadable(_reason(error, data)) from error


def square(
    image: Image.Image | np.ndarray, resolution: int, augmentation: Augmentation, rng: np.random.Generator
) -> np.ndarray:
    """Return a square of the image, uint8 (resolution, resolution, C).

    Cropping and scaling are those of guided-diffusion (ADM): halved with a box filter while twice as large as needed,
    then bicubic, then cropped.  An array uint8 (H, W, C) is taken for an image.
    """
    pixels = np.asarray(image)
    if pixels.shape[:2] != (resolution, resolution) or augmentation.crop != "centre":
        picture = Image.fromarray(pixels.squeeze(2) if pixels.shape[2:] == (1,) else pixels)
        pixels = _cropped(picture, resolution, augmentation.crop, rng)
    if augmentation.flip and rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    return pixels


def _cropped(image: Image.Image, resolution: int, crop: str, rng: np.random.Generator) -> np.ndarray:
    image = _shortened(image)
    shorter = resolution if crop == "centre" else int(rng.integers(resolution, math.ceil(resolution / SMALLEST) + 1))
    while min(image.size) >= 2 * shorter:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = shorter / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    free = np.array(pixels.shape[:2]) - resolution
    top, left = free // 2 if crop == "centre" else rng.integers(0, free + 1)
    return pixels[top : top + resolution, left : left + resolution]


def _shortened(image: Image.Image) -> Image.Image:
    """Cut the ends off an image that is more than WIDEST times as long as it is wide."""
    wide, high = (min(side, WIDEST * min(image.size)) for side in image.size)
    left, top = (image.width - wide) // 2, (image.height - high) // 2
    return image.crop((left, top, left + wide, top + high)) if (wide, high) != image.size else image


def _rgb(image: Image.Image) -> Image.Image:
    """Return an image of any mode in RGB; 16 bits of grey keep their upper eight, what is transparent is white."""
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.float64) / 257
        image = Image.fromarray(np.round(grey.clip(0, 255)).astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.new("RGB", image.size, "white")
        image.paste(layer, mask=layer.getchannel("A"))
    return image.convert("RGB")


def _reason(error: Exception, data: bytes) -> str:
    if not data:
        return "no bytes"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    return f"{type(error).__name__}: {str(error)[:120]}"
