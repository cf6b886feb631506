"""WebDataset shards: .tar files in which members of one name are one sample, image, label and caption."""

import hashlib
import json
import os
import re
import tarfile
from pathlib import Path

import numpy as np
from tqdm import tqdm

from diffusion.condition import ConditionError, Conditioning, Prompts
from training.datasets import DataError
from training.decoding import SUFFIXES, Unreadable
from training.sources.labels import conditioned
from training.sources.span import span

MEMBERS = ("image", "txt", "json")
SAMPLE = np.dtype([(f"{member}_{what}", "<i8") for member in MEMBERS for what in ("at", "size")] + [("label", "S64")])
"""Where a sample's members lie in its shard, and its label."""
_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")
"""WebDataset's rule: a sample's name goes up to the first dot after the last slash, what follows says what it is."""


class Shards:
    """Shards of one set.  Each is indexed once; the index is kept in the user's cache, so the next start reads none of them."""

    channels = 3

    def __init__(self, files: list[Path], name: str, prompts: Prompts | None = None):
        """prompts: how captions are read; without it they are not.  Raises DataError when no shard has an image."""
        self.name, self._files, self._prompts = name, files, prompts
        self.unusable: list[tuple[str, str]] = []
        indices = [self._index(file) for file in tqdm(files, desc="indexing shards", unit="shard", delay=1)]
        self.shards: tuple[int, ...] = tuple(len(index) for index in indices)
        if not sum(self.shards):
            broken = "".join(f"; {shard} {why}" for shard, why in self.unusable[:1])
            raise DataError(f"{name}: no image ({', '.join(SUFFIXES)}) in {len(files)} shard(s){broken}")
        self._ends = np.cumsum(self.shards)
        self._samples = np.concatenate(indices)
        captions = not prompts and bool((self._samples["txt_size"] > 0).any())
        self.kind = "WebDataset shards" + (", captions not used without --prompts" if captions else "")
        self.conditioning: Conditioning
        if prompts:
            self.conditioning, self._conditions = prompts, None
        else:
            self.conditioning, self._conditions = conditioned(
                np.char.decode(self._samples["label"], "utf-8", "replace"), name
            )
        about = [(file.name, size) for file, size in zip(files, self.shards, strict=True)]
        self.fingerprint = hashlib.sha256(repr(about).encode() + self._samples.tobytes()).hexdigest()

    def read(self, row: int) -> tuple[bytes, tuple[int, ...]]:
        """Return the image's bytes, and its label or what its caption asks for."""
        file, sample = self._file(row), self._samples[row]
        data = _member(file, sample, "image")
        if len(data) < sample["image_size"]:
            raise Unreadable("the shard is cut off in it")
        if self._conditions is not None:
            return data, tuple(self._conditions[row].tolist())
        assert self._prompts
        try:
            return data, self._prompts.encode(prompt=_caption(file, sample))
        except ConditionError as error:
            raise Unreadable(f"caption: {str(error).partition(';')[0]}") from None

    def where(self, row: int) -> str:
        """Name shard and member, as the tar's header does."""
        file = self._file(row)
        try:
            header = span(file, int(self._samples[row]["image_at"]) - tarfile.BLOCKSIZE, tarfile.BLOCKSIZE)
        except OSError:
            return f"{file.name}: image {row}"
        return f"{file.name}: {header[:100].split(bytes(1))[0].decode(errors='replace')}"

    def _file(self, row: int) -> Path:
        return self._files[int(np.searchsorted(self._ends, row, side="right"))]

    def _index(self, file: Path) -> np.ndarray:
        """Return where the shard's samples lie (N,), from the cache if it was indexed before; note what is wrong with it."""
        about = file.stat()
        told = f"{file.resolve()} {about.st_size} {about.st_mtime_ns} {SAMPLE}"
        kept = _cache() / f"{hashlib.sha256(told.encode()).hexdigest()}.npy"
        try:
            return np.load(kept, allow_pickle=False)
        except (OSError, ValueError):  # not there, or not whole
            pass
        samples: list[dict[str, int | bytes]] = []
        try:
            with tarfile.open(file, "r:") as archive:
                _scan(archive, file, samples)
                whole = _ended(file, archive.offset)
        except (tarfile.TarError, OSError, EOFError, UnicodeDecodeError):
            whole = False
        entries = [
            tuple(sample.get(field, b"" if field == "label" else 0) for field in SAMPLE.names or ())
            for sample in samples
            if "image_at" in sample
        ]
        index = np.array(entries, SAMPLE)
        if whole:
            _keep(index, kept)
        else:
            after = f"cannot be read beyond its first {len(index)} images"
            self.unusable.append((file.name, after if len(index) else "is no .tar file, or broken from the beginning"))
        return index


def _scan(archive: tarfile.TarFile, file: Path, samples: list[dict[str, int | bytes]]) -> None:
    """Append the samples of an archive: members that follow each other under one name."""
    name = None
    while (member := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]  # or tarfile keeps them all
        parts = _NAME.fullmatch(member.name)
        if not member.isfile() or parts is None:
            continue
        if parts[1] != name:
            name = parts[1]
            samples.append({})
        _enter(samples[-1], parts[2].lower(), member, file)


def _enter(sample: dict[str, int | bytes], suffix: str, member: tarfile.TarInfo, file: Path) -> None:
    """Note a member in its sample, by what its name ends in."""
    kind = "image" if f".{suffix}".endswith(SUFFIXES) else suffix
    if kind in MEMBERS and f"{kind}_at" not in sample:
        sample |= {f"{kind}_at": member.offset_data, f"{kind}_size": member.size}
    if suffix == "cls":
        sample["label"] = _label(span(file, member.offset_data, member.size).decode(errors="replace"))
    elif suffix == "json" and "label" not in sample:
        sample["label"] = _label(_parsed(span(file, member.offset_data, member.size)).get("label"))


def _member(file: Path, sample: np.void, member: str) -> bytes:
    return span(file, int(sample[f"{member}_at"]), int(sample[f"{member}_size"]))


def _label(value: object) -> bytes:
    return str(value).strip().encode()[:64] if isinstance(value, str | int) else b""


def _parsed(data: bytes) -> dict:
    try:
        value = json.loads(data)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _caption(file: Path, sample: np.void) -> str:
    """Return a sample's caption: its .txt, or "caption" of its .json."""
    if sample["txt_size"]:
        return _member(file, sample, "txt").decode(errors="replace")
    caption = _parsed(_member(file, sample, "json")).get("caption")
    return caption if isinstance(caption, str) else ""


def _ended(file: Path, offset: int) -> bool:
    """Tell whether the archive ends where its reader stopped, with a block of zeros; a damaged header stops it too."""
    return span(file, offset, tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stepdial" / "shards"


def _keep(index: np.ndarray, file: Path) -> None:
    """Write an index to the cache, to a temporary name first; where that cannot be written, it is made anew each time."""
    temporary = file.with_suffix(f".{os.getpid()}.npy")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(temporary, index, allow_pickle=False)
        os.replace(temporary, file)
    except OSError:
        if temporary.exists():
            temporary.unlink()
