"""Pixels become bytes: PNG, WebP or JPEG, in a pool of threads, since Pillow lets go of the interpreter meanwhile."""

import asyncio
import io
import math
import zlib
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Literal, get_args

import numpy as np
from PIL import Image

Format = Literal["png", "webp", "jpeg"]
"""Image formats that are offered; PNG and WebP are lossless."""
FORMATS: tuple[Format, ...] = get_args(Format)
SETTINGS: dict[Format, dict[str, int]] = {
    # as small as Pillow's default within a few percent, several times faster (benchmarks/encoding)
    "png": {"compress_level": 1, "compress_type": zlib.Z_RLE},
    "webp": {"lossless": True, "method": 0, "quality": 0},  # of lossless files, quality is effort
    "jpeg": {"quality": 95, "subsampling": 0},
}
"""What Pillow is told for each format; other settings give other bytes, so names of answers are made of it (content.py)."""

Shape = tuple[int, ...]
"""Height, width and channels of an image, in pixels."""

MEMORY = 0.9
"""Share of the old estimate that one encoding leaves in the measured seconds of its format and size."""


def encode(pixels: np.ndarray, output_format: Format) -> bytes:
    """Return uint8 pixels (H, W, C), C = 1 or 3, as an image file."""
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    file = io.BytesIO()
    image.save(file, output_format, **SETTINGS[output_format])
    return file.getvalue()


class EncodePool:
    """Threads that encode, and how long that takes: a running estimate for each format and size of image."""

    def __init__(self, threads: int):
        self._threads = ThreadPoolExecutor(threads, "encode")
        self._count = threads
        self._waiting = 0
        self._pace: dict[tuple[Format, Shape], float] = {}

    async def measure(self, shape: Shape) -> None:
        """Learn how long images of this shape take, from noise, which no format can pack."""
        noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        for output_format in FORMATS:
            await self.encode(noise, output_format)  # the first time loads the format's library
            self._pace.pop((output_format, shape))
            await self.encode(noise, output_format)

    async def encode(self, pixels: np.ndarray, output_format: Format) -> bytes:
        """Return what `encode` returns, off the event loop."""
        self._waiting += 1
        try:
            data, seconds = await asyncio.get_running_loop().run_in_executor(
                self._threads, _timed, pixels, output_format
            )
        finally:
            self._waiting -= 1
        kind = output_format, pixels.shape
        self._pace[kind] = MEMORY * self._pace.get(kind, seconds) + (1 - MEMORY) * seconds
        return data

    def seconds(self, images: int, shape: Shape, output_format: Format) -> float:
        """Return how long so many images would take, behind those that wait; 0 for a shape that was never encoded."""
        rounds = math.ceil((images + self._waiting) / self._count)
        return rounds * self._pace.get((output_format, shape), 0.0)

    def close(self) -> None:
        """Let the threads end; images that nobody has begun are dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _timed(pixels: np.ndarray, output_format: Format) -> tuple[bytes, float]:
    began = perf_counter()
    data = encode(pixels, output_format)
    return data, perf_counter() - began
