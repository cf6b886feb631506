"""Images to encode: what the bundled family draws, enlarged, and what photographs are like to an encoder."""

from pathlib import Path

import numpy as np
from PIL import Image

from diffusion.family import open_family

KINDS = ("drawn", "photo-like")
"""drawn: the bundled family's recorded samples, enlarged. photo-like: noise whose amplitude falls as 1/frequency."""


def image(kind: str, side: int, family: Path) -> np.ndarray:
    """Return an RGB image, uint8 (side, side, 3), the same each time."""
    return _drawn(side, family) if kind == "drawn" else _photo_like(side)


def _drawn(side: int, family: Path) -> np.ndarray:
    _, pixels = open_family(family).golden()[-1]
    return np.asarray(Image.fromarray(pixels.numpy()).resize((side, side), Image.Resampling.BICUBIC))


def _photo_like(side: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    frequency[0, 0] = 1.0
    amplitude = 1.0 / frequency
    amplitude[0, 0] = 0.0
    grey = _filtered(rng, amplitude, side)
    channels = [0.9 * grey + 0.1 * _filtered(rng, amplitude, side) for _ in range(3)]  # colours go together
    return np.clip(np.stack(channels, axis=2) * 50 + 128, 0, 255).astype(np.uint8)


def _filtered(rng: np.random.Generator, amplitude: np.ndarray, side: int) -> np.ndarray:
    noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((side, side))) * amplitude, s=(side, side))
    return noise / noise.std()
