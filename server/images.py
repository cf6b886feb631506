"""Pixels become bytes: PNG, WebP or JPEG, in a pool of threads, since Pillow lets go of the interpreter meanwhile."""

import asyncio
import io
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
from PIL import Image

Format = Literal["png", "webp", "jpeg"]
"""Image formats that are offered; PNG and WebP are lossless."""


def encode(pixels: np.ndarray, output_format: Format) -> bytes:
    """Return uint8 pixels (H, W, C), C = 1 or 3, as an image file."""
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    file = io.BytesIO()
    if output_format == "png":
        image.save(
            file, "png", compress_level=1
        )  # as small as Pillow's default within a few percent, five times faster
    elif output_format == "webp":
        image.save(file, "webp", lossless=True, method=0)
    else:
        image.save(file, "jpeg", quality=95, subsampling=0)
    return file.getvalue()


class EncodePool:
    """Threads that encode."""

    def __init__(self, threads: int):
        self._threads = ThreadPoolExecutor(threads, "encode")

    async def encode(self, pixels: np.ndarray, output_format: Format) -> bytes:
        """Return what `encode` returns, off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, encode, pixels, output_format)

    def close(self) -> None:
        """Let the threads end; images that nobody has begun are dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)
