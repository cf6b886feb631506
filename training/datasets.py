"""Data as batches that are pure functions of (seed, position), so that a resumed run sees what it would have seen."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion.condition import Conditioning, LabelConditioning
from training import shapes
from training.skipped import Skipped

Batch = tuple[Tensor, Tensor]
"""Images float32 (B, C, H, W) in [-1, 1] and conditions int64 (B, slots)."""


BEFORE_IMPORT = "what it was trained on before it was imported"
"""What a teacher that others trained has for the name of its data."""


class DataError(ValueError):
    """Data that cannot be trained on; the message says what was found and what is needed."""


@dataclass(frozen=True)
class Pixels:
    """A batch as it is read, small enough to hand from process to process."""

    images: np.ndarray
    """uint8 (B, H, W, C)."""
    conditions: np.ndarray
    """int64 (B, slots)."""
    skipped: tuple[tuple[str, str], ...] = ()
    """(name, reason) of images that should have been here and cannot be used."""


def joined(pixels: Sequence[Pixels]) -> Pixels:
    """Return batches that were read one after another as one."""
    if len(pixels) == 1:
        return pixels[0]
    return Pixels(
        np.concatenate([read.images for read in pixels]),
        np.concatenate([read.conditions for read in pixels]),
        tuple(skipped for read in pixels for skipped in read.skipped),
    )


class DataSet:
    """What training needs of data."""

    name: str
    description: str
    """One sentence for people, kept in the family."""
    resolution: int
    channels: int
    conditioning: Conditioning
    size: int | None = None
    """Images in an epoch; None where no image comes twice."""
    decodes: bool = False
    """Whether reading takes so long that other processes should do it."""

    def __init__(self) -> None:
        self.skipped = Skipped()

    def __str__(self) -> str:
        asked = {"prompt": "prompts", "label": f"{sum(self.conditioning.sizes)} labels", "none": "no labels"}
        count = f"{self.size:,} images" if self.size else "drawn on demand"
        return f"{self.name}: {count}, {asked[self.conditioning.kind]}"

    @property
    def identity(self) -> dict[str, Any]:
        """What a run records of its data among its settings; nothing where the data's name says it all."""
        return {}

    def pixels(self, start: int, count: int, *, seed: int) -> Pixels:
        """Return images start .. start + count of the endless shuffled stream of `seed`."""
        raise NotImplementedError

    def batch(self, start: int, count: int, *, seed: int) -> Batch:
        """Return the same as tensors, and note what was skipped."""
        return self.tensors(self.pixels(start, count, seed=seed))

    def tensors(self, pixels: Pixels, device: torch.device | str = "cpu") -> Batch:
        """Return a batch read here or by another process as tensors on a device, and note what was skipped."""
        self.skipped.note(pixels.skipped)
        return pixels_to_latents(pixels.images, device), torch.from_numpy(pixels.conditions).to(device)


class Procedural(DataSet):
    """A procedural captioned set (training/shapes.py), or only its combinations held out of training.

    "shapes" shows one shape, "scenes" one or two.
    """

    channels = 3

    def __init__(self, name: str, resolution: int = 32, *, held_out: bool = False):
        super().__init__()
        self.name, self.resolution, self.held_out = name, resolution, held_out
        single = name == "shapes"
        self.conditioning: Conditioning = shapes.CONDITIONING if single else shapes.SCENES
        self.description = f"{'Coloured shapes' if single else 'One coloured shape or two'} on plain backgrounds."

    def pixels(self, start: int, count: int, *, seed: int) -> Pixels:
        """Paint the pictures; about half a millisecond each."""
        images, conditions = [], []
        for index in range(start, start + count):
            rng = np.random.default_rng((seed, index, self.held_out))
            image, condition = self._one(rng)
            images.append(image)
            conditions.append(condition)
        return Pixels(np.stack(images), np.array(conditions, dtype=np.int64))

    def unseen(self) -> "Procedural":
        """Return the same set's combinations that training never draws."""
        return Procedural(self.name, self.resolution, held_out=True)

    def _one(self, rng: np.random.Generator) -> tuple[np.ndarray, tuple[int, ...]]:
        if self.name == "shapes":
            single = shapes.draw_single(rng, held_out=self.held_out)
            return shapes.paint_single(rng, single, self.resolution), single
        scene = shapes.draw_scene(rng, held_out=self.held_out)
        return shapes.paint_scene(rng, scene, self.resolution), scene


class FiniteSet(DataSet):
    """Images held in memory, shuffled anew each epoch."""

    def __init__(self, name: str, images: np.ndarray, conditions: np.ndarray, conditioning: Conditioning):
        """images uint8 (N, H, W, C); conditions int64 (N, slots)."""
        super().__init__()
        self.description = f"Images of {name}."
        self.name, self.images, self.conditions, self.conditioning = name, images, conditions, conditioning
        self.resolution, self.channels, self.size = images.shape[1], images.shape[3], len(images)

    def __len__(self) -> int:
        return len(self.images)

    def pixels(self, start: int, count: int, *, seed: int) -> Pixels:
        """Return the stream's images; every image once an epoch."""
        epochs, places = np.divmod(np.arange(start, start + count), len(self.images))
        orders = {
            epoch: np.random.default_rng((seed, epoch)).permutation(len(self.images)) for epoch in np.unique(epochs)
        }
        rows = np.array([orders[epoch][place] for epoch, place in zip(epochs, places, strict=True)])
        return Pixels(self.images[rows], self.conditions[rows])


def digits() -> FiniteSet:
    """Return scikit-learn's 1,797 handwritten digits, 8x8 grey, labelled: a small real set that needs no download.

    Raises DataError where scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise DataError("the digits are scikit-learn's, which is not installed; pip install -e '.[training]'") from None

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int64)[:, None] + 1
    return FiniteSet("digits", images, labels, LabelConditioning(labels=tuple(str(digit) for digit in range(10))))


def pixels_to_latents(images: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """uint8 (B, H, W, C) -> float32 (B, C, H, W) in [-1, 1], on the device."""
    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float().div(127.5).sub(1.0)
