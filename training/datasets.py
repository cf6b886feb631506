"""Data as batches that are pure functions of (seed, position), so that a resumed run sees what it would have seen."""

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from diffusion.condition import Conditioning, LabelConditioning, NoConditioning
from training import shapes

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
Batch = tuple[Tensor, Tensor]
"""Images float32 (B, C, H, W) in [-1, 1] and conditions int64 (B, slots)."""


class DataError(ValueError):
    """Data that cannot be trained on; the message says what was found and what is needed."""


class DataSet(Protocol):
    """What training needs of data."""

    name: str
    description: str
    """One sentence for people, kept in the family."""
    resolution: int
    channels: int
    conditioning: Conditioning

    def batch(self, start: int, count: int, *, seed: int) -> Batch:
        """Return images start .. start + count of the endless shuffled stream of `seed`."""


class Shapes:
    """The procedural captioned set (training/shapes.py), or only its combinations held out of training."""

    channels = 3
    description = "Coloured shapes, one or two, on plain backgrounds."
    conditioning: Conditioning = shapes.CONDITIONING

    def __init__(self, resolution: int = 32, *, held_out: bool = False):
        self.name, self.resolution, self.held_out = "shapes", resolution, held_out

    def batch(self, start: int, count: int, *, seed: int) -> Batch:
        """Draw the pictures; about half a millisecond each."""
        images, conditions = [], []
        for index in range(start, start + count):
            rng = np.random.default_rng((seed, index, self.held_out))
            condition = shapes.draw_condition(rng, held_out=self.held_out)
            images.append(shapes.draw_image(rng, condition, self.resolution))
            conditions.append(condition)
        return pixels_to_latents(np.stack(images)), torch.tensor(conditions)


class FiniteSet:
    """Images held in memory, shuffled anew each epoch."""

    def __init__(self, name: str, images: np.ndarray, conditions: np.ndarray, conditioning: Conditioning):
        """images uint8 (N, H, W, C); conditions int64 (N, slots)."""
        self.description = f"Images of {name}."
        self.name, self.images, self.conditions, self.conditioning = name, images, conditions, conditioning
        self.resolution, self.channels = images.shape[1], images.shape[3]

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, start: int, count: int, *, seed: int) -> Batch:
        """Return the stream's images; every image once an epoch."""
        epochs, places = np.divmod(np.arange(start, start + count), len(self.images))
        orders = {
            epoch: np.random.default_rng((seed, epoch)).permutation(len(self.images)) for epoch in np.unique(epochs)
        }
        rows = np.array([orders[epoch][place] for epoch, place in zip(epochs, places, strict=True)])
        return pixels_to_latents(self.images[rows]), torch.from_numpy(self.conditions[rows])


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


def image_folder(folder: Path, resolution: int) -> FiniteSet:
    """Read a folder of images, centre-cropped and resized to resolution x resolution; one subfolder per class is a label.

    Files that cannot be decoded are skipped, counted and named.  Raises DataError when none is left, or when images lie
    both beside and inside subfolders (then it is unclear whether the subfolders are classes).
    """
    folder = Path(folder)
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    classes = sorted({path.relative_to(folder).parts[0] for path in files if path.parent != folder})
    if classes and any(path.parent == folder for path in files):
        raise DataError(
            f"{folder.name}: images lie both beside and inside subfolders; use one subfolder per class, or none"
        )
    images, labels, unreadable = [], [], []
    for path in tqdm(files, desc="reading images", unit="img", delay=1):
        try:
            with Image.open(path) as image:
                picture = ImageOps.exif_transpose(image).convert("RGB")
                picture = ImageOps.fit(picture, (resolution, resolution), Image.Resampling.LANCZOS)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            unreadable.append(f"{path.relative_to(folder)}: {type(error).__name__}")
            continue
        images.append(np.asarray(picture))
        labels.append([classes.index(path.relative_to(folder).parts[0]) + 1] if classes else [])
    if unreadable:
        print(f"skipped {len(unreadable)} of {len(files)} files that could not be read: {'; '.join(unreadable[:5])}")
    if not images:
        raise DataError(f"{folder.name}: no readable image ({', '.join(SUFFIXES)}) among {len(files)} candidates")
    conditioning = LabelConditioning(labels=tuple(classes)) if classes else NoConditioning()
    return FiniteSet(
        folder.name, np.stack(images), np.array(labels, dtype=np.int64).reshape(len(images), -1), conditioning
    )


def open_data(name: str, resolution: int) -> DataSet:
    """Open "shapes", "digits" or a folder of images.  Raises DataError for anything else."""
    if name == "shapes":
        return Shapes(resolution)
    if name == "digits":
        return digits()
    if Path(name).is_dir():
        return image_folder(Path(name), resolution)
    raise DataError(f"data {name!r} is neither 'shapes', 'digits' nor a folder")


def pixels_to_latents(images: np.ndarray) -> Tensor:
    """uint8 (B, H, W, C) -> float32 (B, C, H, W) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div(127.5).sub(1.0)
