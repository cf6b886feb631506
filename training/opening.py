"""From what `--data` names to a data set: drawn, or real and told apart by looking at the path."""

from pathlib import Path

from pydantic import ValidationError

from diffusion.condition import PromptConditioning, Prompts
from training.datasets import DataError, DataSet, Procedural, digits
from training.decoding import SUFFIXES, Augmentation
from training.failures import first_fault
from training.images import ImageSet, Source
from training.sources import arrays, table
from training.sources.folder import Folder, files_below
from training.sources.shards import Shards

CODED = ("shapes", "scenes", "digits")
PACKED = {
    "images": SUFFIXES,
    ".tar files": (".tar",),
    ".parquet files": (".parquet",),
    ".arrow files": (".arrow",),
    ".npz files": (".npz",),
}
KINDS = f"""what can be named: {", ".join(CODED)}; a folder of images ({", ".join(SUFFIXES)}), of WebDataset shards (.tar),
of CIFAR-10's batches, of parquet or arrow files, or written by `save_to_disk`; one .tar, .npz, .parquet or .arrow file"""


class NotAugmented(DataError):
    """What is drawn on demand was to be mirrored or cropped; the message says what to give instead."""


def open_data(
    name: str,
    resolution: int,
    augmentation: Augmentation | None = None,
    prompts: Prompts | None = None,
) -> DataSet:
    """Open "shapes", "scenes", "digits", or real images wherever they lie.

    prompts: how captions are read, where there are some.  Raises DataError for anything else, for what cannot be read,
    NotAugmented for an augmentation of what is drawn.
    """
    if name in CODED:
        if augmentation not in (None, Augmentation()):
            asked = augmentation or Augmentation()
            undo = ["--no-flip"] * asked.flip + ["--crop centre"] * (asked.crop != "centre")
            raise NotAugmented(f"{name} are not augmented; give {' '.join(undo)}")
        return digits() if name == "digits" else Procedural(name, resolution)
    path = Path(name)
    if not name or not path.exists():  # Path("") would be this folder
        raise DataError(f"data {name!r} is not there; {' '.join(KINDS.split())}")
    source = _in_folder(path, prompts) if path.is_dir() else _in_file(path, prompts)
    return ImageSet(source, resolution, augmentation)


def open_captioned(
    name: str, resolution: int, augmentation: Augmentation | None = None, prompts: Path | None = None
) -> DataSet:
    """Open data as open_data does, captions read as a file says.  Raises DataError where there are no captions."""
    how = read_prompts(prompts) if prompts else None
    data = open_data(name, resolution, augmentation, how)
    if how and data.conditioning != how:
        raise DataError(f"{data} has no captions for --prompts to be about")
    return data


def read_prompts(file: Path) -> PromptConditioning:
    """Read how captions are understood: a family's conditioning of the kind "prompt", as JSON.  Raises DataError."""
    try:
        return PromptConditioning.model_validate_json(file.read_bytes())
    except OSError as error:
        raise DataError(f"prompts {file.name} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise DataError(f"prompts {file.name}: {first_fault(error)}") from None


def _in_file(file: Path, prompts: Prompts | None) -> Source:
    kind = "".join(file.suffixes[-2:]).lower()
    if kind.endswith(".npz"):
        return arrays.npz(file)
    if kind.endswith(".tar"):
        return Shards([file], file.stem, prompts)
    if kind.endswith((".parquet", ".arrow")):
        return table.files([file], file.stem, prompts)
    if kind.endswith((".gz", ".tgz", ".zst", ".xz", ".bz2", ".zip")):
        raise DataError(f"{file.name} is compressed, so no image in it can be reached alone; unpack it first")
    raise DataError(f"{file.name} is no data that is known here; {' '.join(KINDS.split())}")


def _in_folder(folder: Path, prompts: Prompts | None) -> Source:
    name = folder.resolve().name
    saved = (folder / "state.json").exists() and (folder / "dataset_info.json").exists()
    if saved or (folder / "dataset_dict.json").exists():
        return table.saved(folder, prompts)
    if any(folder.glob("data_batch_*")):
        return arrays.cifar10(folder)
    files = sorted(files_below(folder))
    kinds = {kind: [file for file in files if file.lower().endswith(suffixes)] for kind, suffixes in PACKED.items()}
    found = [kind for kind in kinds if kinds[kind]]
    if len(found) > 1:
        raise DataError(f"{name} holds {' and '.join(found)}; name one of them, or a folder of one kind")
    if found == [".npz files"]:
        raise DataError(f"{name} holds .npz files; name the one to train on")
    if found in ([], ["images"]):
        return Folder(folder, files)
    paths = [folder / file for file in _training_split(kinds[found[0]])]
    return Shards(paths, name, prompts) if found == [".tar files"] else table.files(paths, name, prompts)


def _training_split(files: list[str]) -> list[str]:
    """Return the files of the split "train" where some are called so, as in a download from a hub; otherwise all."""
    train = [file for file in files if Path(file).name.startswith("train")]
    return train or files
