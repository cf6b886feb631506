"""Images as raw pixels in files: .npz in the layout of ADM and EDM, and CIFAR-10 as it is distributed."""

import hashlib
import pickletools
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.lib import format as npy

from diffusion.condition import LabelConditioning
from training.datasets import DataError
from training.decoding import Unreadable
from training.sources.labels import conditioned
from training.sources.span import span

CIFAR_SIDE, CIFAR_IMAGE = 32, 3 * 32 * 32
CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Part(NamedTuple):
    """Equal records in a file, or an array in memory."""

    store: Path | np.ndarray
    first: int
    """Byte at which the first image begins."""
    stride: int
    """Bytes from one image to the next."""
    images: int


class Arrays:
    """Pixels of one shape, read where they lie; only an array that is compressed in its file is held in memory."""

    def __init__(self, path: Path, kind: str, parts: list[Part], shape: tuple[int, ...], *, planes: bool = False):
        """shape: an image's, (H, W, C); planes: stored as (C, H, W)."""
        self.name, self.kind, self.channels = path.stem if path.is_file() else path.resolve().name, kind, shape[2]
        self._parts, self._shape, self._planes = parts, shape, planes
        self._ends = np.cumsum([part.images for part in parts])
        self.shards: tuple[int, ...] = (int(self._ends[-1]),)
        self.unusable: list[tuple[str, str]] = []
        self.fingerprint = hashlib.sha256(repr((shape, self.shards)).encode()).hexdigest()
        self.label(np.full(self.shards[0], "", "U1"))

    def label(self, labels: np.ndarray, classes: tuple[str, ...] | None = None) -> None:
        """Give each image its label: a number, or a name; classes are the numbers' names where they have any."""
        self.conditioning, self._conditions = conditioned(labels, self.name)
        if classes:
            self.conditioning = LabelConditioning(labels=classes)
        self.fingerprint = hashlib.sha256(self.fingerprint.encode() + self._conditions.tobytes()).hexdigest()

    def read(self, row: int) -> tuple[np.ndarray, tuple[int, ...]]:
        """Return the image's pixels and its label."""
        at = int(np.searchsorted(self._ends, row, side="right"))
        store, first, stride, images = self._parts[at]
        place = row - (int(self._ends[at]) - images)
        if isinstance(store, np.ndarray):
            pixels = store[place]
        else:
            data = span(store, first + place * stride, int(np.prod(self._shape)))
            if len(data) < np.prod(self._shape):
                raise Unreadable("the file is cut off before it")
            pixels = np.frombuffer(data, np.uint8)
        if self._planes:
            high, wide, channels = self._shape
            pixels = pixels.reshape(channels, high, wide).transpose(1, 2, 0)
        return pixels.reshape(self._shape), tuple(self._conditions[row].tolist())

    def where(self, row: int) -> str:
        """Name the image by its number."""
        return f"image {row}"


def npz(file: Path) -> Arrays:
    """Open arr_0, uint8 (N, H, W, C), and arr_1, the labels, where there is one.

    Raises DataError for other arrays, and for what would have to be unpickled.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
            if "arr_0" not in names:
                raise DataError(f"{file.name}: images are looked for in arr_0, the file has {', '.join(sorted(names))}")
            part, shape = _member(file, archive)
        labels = np.load(file, allow_pickle=False)["arr_1"] if "arr_1" in names else None
    except (zipfile.BadZipFile, ValueError, EOFError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{file.name} cannot be read as .npz: {reason}") from None
    source = Arrays(file, "npz array", [part], shape)
    if labels is not None:
        if labels.size != part.images or labels.dtype.kind not in "iuU":
            raise DataError(
                f"{file.name}: arr_1 must hold a label for each of {part.images} images, it is {labels.dtype} {labels.shape}"
            )
        source.label(labels.reshape(-1))
    return source


def _member(file: Path, archive: zipfile.ZipFile) -> tuple[Part, tuple[int, ...]]:
    """Return where arr_0's images lie: in the file when it is stored there as it is, else in memory."""
    about = archive.getinfo("arr_0.npy")
    with archive.open(about) as opened:
        version = npy.read_magic(opened)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(opened)
        header = opened.tell()
    if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3) or not shape[0] or fortran:
        raise DataError(
            f"{file.name}: arr_0 must be uint8 (images, height, width, 1 or 3), it is {dtype} {shape}"
            + (" in Fortran order" if fortran else "")
        )
    if about.compress_type != zipfile.ZIP_STORED:
        return Part(np.load(file, allow_pickle=False)["arr_0"], 0, 0, shape[0]), shape[1:]
    local = span(file, about.header_offset, 30)  # its name and extra field may be longer than the directory's
    first = about.header_offset + 30 + int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
    return Part(file, first + header, int(np.prod(shape[1:])), shape[0]), shape[1:]


def cifar10(folder: Path) -> Arrays:
    """Open CIFAR-10's training batches as they are distributed, the binary or the python version; the test batch is left out.

    Raises DataError when a batch is missing or is not what it should be.
    """
    binary = sorted(folder.glob("data_batch_*.bin"))
    files = binary or sorted(file for file in folder.glob("data_batch_*") if not file.suffix)
    batches = [_binary(file) if binary else _pickled(file) for file in files]
    if len(batches) < 5:
        raise DataError(f"{folder.name}: CIFAR-10 has five training batches, {len(batches)} are here")
    shape = (CIFAR_SIDE, CIFAR_SIDE, 3)
    source = Arrays(folder, "CIFAR-10 batches", [batch.part for batch in batches], shape, planes=True)
    names = folder / "batches.meta.txt"
    classes = tuple(names.read_text().split()) if names.exists() else CIFAR_CLASSES
    labels = np.concatenate([batch.labels for batch in batches])
    if labels.max() >= len(classes):
        raise DataError(f"{folder.name}: label {labels.max()} is none of {len(classes)} classes")
    source.label(labels, classes)
    return source


@dataclass(frozen=True)
class _Batch:
    part: Part
    labels: np.ndarray


def _binary(file: Path) -> _Batch:
    """Records of a label byte and an image."""
    records, rest = divmod(file.stat().st_size, 1 + CIFAR_IMAGE)
    if rest or not records:
        raise DataError(f"{file.name}: {file.stat().st_size:,} bytes are no whole number of CIFAR-10 records")
    labels = np.memmap(file, np.uint8, "r").reshape(records, 1 + CIFAR_IMAGE)[:, 0]
    return _Batch(Part(file, 1, 1 + CIFAR_IMAGE, records), np.array(labels))


def _pickled(file: Path) -> _Batch:
    """Find labels and pixels in the stream of a pickle, of which nothing is executed: one long string among small numbers."""
    found, labels, key = None, [], ""
    try:
        with file.open("rb") as opened:
            for opcode, value, _ in pickletools.genops(opened):
                if opcode.name in ("BINSTRING", "BINBYTES") and isinstance(value, str | bytes):
                    found = (opened.tell() - len(value), len(value))
                elif isinstance(value, str | bytes):
                    key = value if isinstance(value, str) else value.decode("latin-1")
                elif opcode.name == "BININT1" and key == "labels":
                    labels.append(value)
    except (ValueError, OSError) as error:
        raise DataError(
            f"{file.name} is no python batch of CIFAR-10: {getattr(error, 'strerror', None) or error}"
        ) from None
    if found is None or not labels or found[1] != len(labels) * CIFAR_IMAGE:
        raise DataError(
            f"{file.name} is no python batch of CIFAR-10 as it is distributed; its binary version (data_batch_1.bin ...) "
            "is read too"
        )
    return _Batch(Part(file, found[0], CIFAR_IMAGE, len(labels)), np.array(labels, np.int64))
