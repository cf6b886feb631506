"""What one file costs: time and size, by format and settings."""

import io
import zlib
from collections.abc import Mapping
from statistics import median
from time import perf_counter
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict

from benchmarks.result_file import ResultFile

SIDES = (32, 64, 128, 256, 512, 1024)
SETTINGS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "png, Pillow's default": ("png", {}),
    "png level 3": ("png", {"compress_level": 3}),
    "png level 1": ("png", {"compress_level": 1}),
    "png level 1, run lengths": ("png", {"compress_level": 1, "compress_type": zlib.Z_RLE}),
    "png level 1, Huffman only": ("png", {"compress_level": 1, "compress_type": zlib.Z_HUFFMAN_ONLY}),
    "png stored": ("png", {"compress_level": 0}),
    "webp lossless, method 0": ("webp", {"lossless": True, "method": 0}),
    "webp lossless, method 0, quality 0": ("webp", {"lossless": True, "method": 0, "quality": 0}),
    "jpeg 95, 4:4:4": ("jpeg", {"quality": 95, "subsampling": 0}),
}
"""Name -> format and what Pillow is told."""
SERVED: dict[str, str] = {
    "png": "png level 1, run lengths",
    "webp": "webp lossless, method 0, quality 0",
    "jpeg": "jpeg 95, 4:4:4",
}
"""Format -> the settings that the server uses (server/images.py; a test holds them together)."""
SECONDS = 0.3
"""How long each is repeated at least."""


class Cost(BaseModel):
    """What one file costs."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: str
    """Of image."""
    side: int
    """Height and width, in pixels."""
    settings: str
    milliseconds: float
    """Median."""
    fastest: float
    """The fastest time, in milliseconds."""
    bytes: int
    """Size of the file."""


class Costs(ResultFile):
    """What files cost, and how that was measured."""

    format: Literal[1] = 1
    command: str
    note: str
    """What else a reader has to know, such as what the machine was shared with."""
    measured_at: str
    """In UTC, ISO 8601."""
    commit: str
    device: str
    versions: dict[str, str]
    costs: tuple[Cost, ...]


def encoded(pixels: np.ndarray, settings: str) -> bytes:
    """Return uint8 pixels (H, W, 3) as a file."""
    output_format, told = SETTINGS[settings]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, output_format, **told)
    return file.getvalue()


def cost(pixels: np.ndarray, kind: str, settings: str) -> Cost:
    """Measure one file, on one thread."""
    times: list[float] = []
    data = encoded(pixels, settings)  # the first time loads the format's library
    while len(times) < 3 or sum(times) < SECONDS:
        began = perf_counter()
        encoded(pixels, settings)
        times.append(1000 * (perf_counter() - began))
    return Cost(
        kind=kind,
        side=len(pixels),
        settings=settings,
        milliseconds=round(median(times), 4),
        fastest=round(min(times), 4),
        bytes=len(data),
    )
