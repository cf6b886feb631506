"""A family reduced to its student for the whole dial: one network draws every position."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from diffusion.family import Family, FamilyError, open_family
from diffusion.files import file_sha256
from diffusion.manifest import MANIFEST


def only_whole(folder: Path, target: Path) -> Family:
    """Write the family of this folder, with that member alone, into another folder, and open it.

    Weights are linked, golden samples of other members left out. Raises FamilyError, also where it has no such member.
    """
    family = open_family(folder)
    manifest, whole = family.manifest, family.manifest.whole
    if whole is None or manifest.golden is None:
        raise FamilyError(f"family {family.name!r} has no student for the whole dial")
    (target / whole.weights.file).symlink_to((folder / whole.weights.file).resolve())
    kept = [(sample, image) for sample, image in family.golden() if family.golden_plan(sample).members == (whole.name,)]
    samples = json.dumps([sample.model_dump() for sample, _ in kept])
    images = torch.stack([image for _, image in kept])
    save_file({"images": images}, target / manifest.golden.file, metadata={"samples": samples})
    golden = manifest.golden.model_copy(update={"sha256": file_sha256(target / manifest.golden.file)})
    alone = manifest.model_copy(update={"members": (whole,), "golden": golden})
    (target / MANIFEST).write_text(alone.model_dump_json())
    return open_family(target)
