"""Result files of the commands that measure."""

from collections.abc import Callable, Set
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self, TypeVar, cast

from pydantic import BaseModel, ValidationError

from diffusion.files import write_json
from training.datasets import DataError
from training.failures import first_fault
from training.members import locked

R = TypeVar("R", bound=BaseModel)


def read_result(kind: type[R], file: Path, command: str) -> R:
    """Return the record in a file that the command wrote, "stepdial ablate".  Raises DataError if it is not one."""
    try:
        return kind.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise DataError(f"{file.name} is not a result of {command}: {first_fault(error)}") from None


class Extent(NamedTuple):
    """How much is behind a result, and what it is of: what must not be lost when its file is written anew."""

    samples: int
    """Images of each run."""
    runs: int
    of: Set[str]
    """Hashes or descriptions of the networks, judges and references that it is of."""


class Growing(Protocol):
    """A record that grows row by row, each kept as soon as it is measured."""

    rows: tuple[Any, ...]

    @property
    def extent(self) -> Extent:
        """What must not be lost."""

    def model_copy(self, *, update: dict[str, Any]) -> Self:
        """Return a copy with other values, as pydantic does."""


G = TypeVar("G", bound=Growing)  # all of them pydantic models, which a protocol cannot say


def check_overwrite(file: Path, known: Extent, fresh: Extent) -> None:
    """Raise DataError where a file that holds `known` would lose by `fresh`: it is of other networks, or of more images."""
    if not known.of <= fresh.of:
        why = "is of other networks or real images: another family of this name, one made anew, or more than now asked for"
    elif known.samples * known.runs > fresh.samples * fresh.runs:
        why = f"is of {known.samples} images in {known.runs} run(s), more than the {fresh.samples} in {fresh.runs} asked for"
    else:
        return
    raise DataError(f"{file} {why}; name another folder with --results, or remove the file to replace it")


def beside(fresh: G, known: G, file: Path) -> G:
    """Return the record to go on with: with the rows of the file's, `known`, if they were measured alike.

    Raises DataError as check_overwrite does.
    """
    check_overwrite(file, known.extent, fresh.extent)
    if known.model_copy(update={"rows": ()}) != fresh.model_copy(update={"rows": ()}):
        print(f"{file} is of fewer images or networks, or of other guidance, and will be replaced")
        return fresh
    return fresh.model_copy(update={"rows": known.rows})


def add_row(
    record: G,
    row: Any,
    file: Path,
    read: Callable[[Path], G],
    *,
    replaces: Callable[[Any, Any], bool],
    order: Callable[[Any], Any],
) -> G:
    """Write the record with a row more, beside what the file holds by now, to which others may be adding; return it.

    replaces: whether the row (first) stands for a known one (second).  order: by what rows are sorted.

    Raises DataError as beside does.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with locked(file.parent):
        known = beside(record, read(file), file) if file.exists() else record
        rows = [*(one for one in known.rows if not replaces(row, one)), row]
        grown = known.model_copy(update={"rows": tuple(sorted(rows, key=order))})
        write_json(file.parent, file.name, cast(BaseModel, grown))
        return grown
