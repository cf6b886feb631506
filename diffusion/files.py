"""The files of a family: safetensors and JSON, hashed, written whole or not at all."""

import hashlib
import json
import os
from pathlib import Path

import torch
from pydantic import BaseModel
from safetensors.torch import save_file
from torch import Tensor

from diffusion.manifest import FileRecord, GoldenRecord, GoldenSample


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(folder: Path, name: str, record: BaseModel) -> None:
    """Write one of the family's JSON files, whole or not at all."""
    temporary = folder / f".{name}.partial"
    temporary.write_text(json.dumps(record.model_dump(mode="json"), indent=1) + "\n")
    os.replace(temporary, folder / name)


def write_tensors(
    folder: Path, name: str, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> FileRecord:
    """Write a safetensors file, whole or not at all, and return its record."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{name}.partial"
    save_file({key: value.contiguous().cpu() for key, value in tensors.items()}, temporary, metadata=metadata)
    temporary.chmod(0o644)  # safetensors writes for the owner alone; a server may run as somebody else
    os.replace(temporary, folder / name)
    return FileRecord(file=name, sha256=file_sha256(folder / name))


def write_golden(folder: Path, samples: list[tuple[GoldenSample, Tensor]], *, tolerance: float = 2.0) -> GoldenRecord:
    """Write the golden samples, images uint8 (H, W, C), and return their record."""
    about = json.dumps([sample.model_dump(mode="json") for sample, _ in samples])
    record = write_tensors(
        folder, "golden.safetensors", {"images": torch.stack([image for _, image in samples])}, {"samples": about}
    )
    return GoldenRecord(**record.model_dump(), tolerance=tolerance)
