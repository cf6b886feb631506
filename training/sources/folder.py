"""A folder of image files; one subfolder per class is a label."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from diffusion.condition import Conditioning, LabelConditioning, NoConditioning
from training.datasets import DataError
from training.decoding import SUFFIXES

SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}


class Folder:
    """The images below a folder, in the order of their names."""

    kind, channels = "folder of images", 3

    def __init__(self, folder: Path, files: Iterable[str]):
        """files: those of the folder, relative to it.

        Raises DataError when no image is among them or subfolders are not clearly classes.
        """
        self._folder, self.name = folder, folder.resolve().name
        self._files = sorted(file for file in files if file.lower().endswith(SUFFIXES))
        if not self._files:
            raise DataError(f"{self.name}: no image ({', '.join(SUFFIXES)}) below this folder")
        classes = [file.split(os.sep)[0] if os.sep in file else "" for file in self._files]
        if "" in classes and any(classes):
            raise DataError(
                f"{self.name}: images lie both beside and inside subfolders; use one subfolder per class, or none"
            )
        splits = sorted(set(classes))
        if splits != [""] and {name.lower() for name in splits} <= SPLITS:
            raise DataError(
                f"{self.name}: its subfolders ({', '.join(splits)}) are parts of a data set, not classes; name one of them"
            )
        names, places = np.unique(classes, return_inverse=True)
        labels = tuple(name.encode(errors="surrogateescape").decode(errors="replace") for name in names.tolist())
        self.conditioning: Conditioning = LabelConditioning(labels=labels) if any(classes) else NoConditioning()
        self._conditions = (places[:, None] + 1)[:, : len(self.conditioning.sizes)]
        self.shards: tuple[int, ...] = (len(self._files),)
        self.unusable: list[tuple[str, str]] = []
        self.fingerprint = hashlib.sha256("\0".join(self._files).encode(errors="surrogateescape")).hexdigest()

    def read(self, row: int) -> tuple[bytes, tuple[int, ...]]:
        """Return the file's bytes and its class."""
        return (self._folder / self._files[row]).read_bytes(), tuple(self._conditions[row].tolist())

    def where(self, row: int) -> str:
        """Name the file within the folder."""
        return self._files[row]


def files_below(folder: Path) -> Iterator[str]:
    """Give the files below a folder, relative to it.

    Links are followed, but each folder is entered once; what is hidden, and what is neither file nor folder, is left out.
    """
    entered: set[tuple[int, int]] = set()
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        about = os.stat(folder / inside)
        if (about.st_dev, about.st_ino) in entered:
            continue
        entered.add((about.st_dev, about.st_ino))
        with os.scandir(folder / inside) as entries:
            for entry in entries:
                path = os.path.join(inside, entry.name)
                if not entry.name.startswith(".") and entry.is_dir():
                    waiting.append(path)
                elif not entry.name.startswith(".") and entry.is_file():
                    yield path
