"""Hugging Face data sets: what `save_to_disk` wrote, and parquet or arrow files with a column of images."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusion.condition import ConditionError, Conditioning, LabelConditioning, Prompts
from training.datasets import DataError
from training.decoding import Unreadable
from training.sources.labels import conditioned

IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp", "pixel_values")
LABELS = ("label", "labels", "cls", "fine_label")
CAPTIONS = ("caption", "text", "prompt")


class Table:
    """Rows with an encoded image each, mapped into memory."""

    channels = 3

    def __init__(self, table: Any, name: str, prompts: Prompts | None = None):
        """table: a datasets.Dataset.  prompts: how captions are read; without it they are not.

        Raises DataError when no column holds images, or captions are wanted and there are none.
        """
        import datasets

        self.name, self._prompts = name, prompts
        images = [key for key, what in table.features.items() if _holds_images(what)]
        image = _chosen(images, IMAGES)
        if image is None:
            found = ", ".join(table.column_names)
            raise DataError(f"{name}: no column of images (encoded, as bytes) is among its columns: {found}")
        label, caption = (_chosen(table.column_names, known) for known in (LABELS, CAPTIONS))
        if prompts and caption is None:
            raise DataError(f"{name}: captions are looked for in a column called {', '.join(CAPTIONS)}; there is none")
        self._image, self._caption = image, caption
        self.kind = f"table, images in column {image!r}"
        self.kind += f", captions in {caption!r} not used without --prompts" if caption and not prompts else ""
        self.conditioning: Conditioning
        self._conditions = None
        if prompts:
            self.conditioning = prompts
        else:
            told = table.with_format(None)[label][:] if label else [""] * len(table)
            labels = ["" if value is None else str(value) for value in told]
            self.conditioning, self._conditions = conditioned(labels, name)
            if label and isinstance(what := table.features[label], datasets.ClassLabel):
                self.conditioning = LabelConditioning(labels=tuple(what.names))
        wanted = [image, *([caption] if prompts and caption else [])]
        table = table.select_columns(wanted).with_format(None)
        if isinstance(table.features[image], datasets.Image):
            table = table.cast_column(image, datasets.Image(decode=False))
        self._table = table
        self.shards: tuple[int, ...] = (len(table),)
        self.unusable: list[tuple[str, str]] = []
        parts = [name, image, caption, len(table), self._conditions.tobytes() if self._conditions is not None else None]
        self.fingerprint = hashlib.sha256(repr(parts).encode()).hexdigest()

    def read(self, row: int) -> tuple[bytes, tuple[int, ...]]:
        """Return the image's bytes, and its label or what its caption asks for."""
        entry = self._table[row]
        image = entry[self._image]
        if isinstance(image, dict):
            image = Path(image["path"]).read_bytes() if not image["bytes"] and image["path"] else image["bytes"]
        if not image:
            raise Unreadable("no image in this row")
        if self._conditions is not None:
            return image, tuple(self._conditions[row].tolist())
        assert self._prompts and self._caption
        try:
            return image, self._prompts.encode(prompt=str(entry[self._caption] or ""))
        except ConditionError as error:
            raise Unreadable(f"caption: {str(error).partition(';')[0]}") from None

    def where(self, row: int) -> str:
        """Name the image by its row."""
        return f"row {row}"


def saved(folder: Path, prompts: Prompts | None = None) -> Table:
    """Open what `save_to_disk` wrote.  Of several splits "train" is taken.

    Raises DataError where there is no such split, and for what cannot be read.
    """
    library, name = _library(), folder.resolve().name
    table = _loaded(lambda: library.load_from_disk(str(folder)), name)
    if isinstance(table, dict):
        if "train" not in table:
            raise DataError(f"{name} has the splits {', '.join(table)}; name the folder of one of them")
        table = table["train"]
    return Table(table, name, prompts)


def files(paths: list[Path], name: str, prompts: Prompts | None = None) -> Table:
    """Open parquet or arrow files as one table.  Parquet is copied once, as arrow, to the library's cache.

    Raises DataError for files that cannot be read or do not belong together.
    """
    library, named = _library(), [str(path) for path in paths]

    def load() -> Any:
        if paths[0].suffix.lower() == ".parquet":
            return library.Dataset.from_parquet(named)
        return library.concatenate_datasets([library.Dataset.from_file(path) for path in named])

    return Table(_loaded(load, name), name, prompts)


def _loaded(load: Callable[[], Any], name: str) -> Any:
    try:
        return load()
    except Exception as error:  # arrow's own errors and the library's have no class in common
        raise DataError(f"{name} cannot be read as one table: {type(error).__name__}") from error


def _library() -> Any:
    try:
        import datasets
    except ModuleNotFoundError:
        raise DataError(
            "this is read by the library `datasets`, which is not installed; pip install -e '.[data]'"
        ) from None
    return datasets


def _holds_images(what: Any) -> bool:
    """Tell whether a column's type may be encoded images: the library's own, bytes, or bytes with a path."""
    import datasets

    if isinstance(what, dict):
        what = what.get("bytes")
    return isinstance(what, datasets.Image) or (
        isinstance(what, datasets.Value) and what.dtype in ("binary", "large_binary")
    )


def _chosen(columns: list[str], known: tuple[str, ...]) -> str | None:
    """Return the column that is called as one expects, or the only one there is where what it holds is known."""
    named = [name for name in known if name in columns]
    if named:
        return named[0]
    return columns[0] if known is IMAGES and columns else None
