"""Result files: JSON that is there whole or not at all. Imports nothing heavy: a client under load writes them too."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict


class ResultFile(BaseModel):
    """What a measurement leaves behind."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def write(self, file: Path) -> None:
        """Write it, its folder too, first under a temporary name.  Raises OSError."""
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.new")
        temporary.write_text(self.model_dump_json(indent=1) + "\n")
        temporary.replace(file)
