"""Result files of the commands that measure."""

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from training.datasets import DataError

R = TypeVar("R", bound=BaseModel)


def read_result(kind: type[R], file: Path, command: str) -> R:
    """Return the record in a file that the command wrote, "stepdial ablate".  Raises DataError if it is not one."""
    try:
        return kind.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(f"{file.name} is not a result of {command}: {where}: {first['msg']}") from None
