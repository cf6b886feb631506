"""What names an answer's bytes before they are drawn: entity tags and result caches are made of it."""

import hashlib
import json
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version

import torch

from diffusion.family import Family
from diffusion.plans import Plan
from server.images import SETTINGS, Format
from server.samples import Sample


def content_key(family: Family, samples: Sequence[Sample], output_format: Format) -> str:
    """Return the SHA-256, in hex, of all that the samples' image files are a function of.

    Equal keys mean equal bytes, so every sample must be exact and have no alternatives, by which it might end instead of
    its own plan (ValueError otherwise). Machines whose arithmetic may round differently, and versions that may draw or
    encode differently, have different keys: they do not answer for each other.
    """
    if not all(sample.exact for sample in samples):
        raise ValueError("only exact samples have a key: the bytes of others depend on the crowd")
    if any(sample.alternatives for sample in samples):
        raise ValueError("samples with alternatives have no key: how they end depends on the crowd")
    plans = list(dict.fromkeys(sample.plan for sample in samples))
    facts = {
        "code": _code(),
        "family": _weights(family, plans),
        "plans": [plan.model_dump(mode="json") for plan in plans],
        "samples": [
            [plans.index(sample.plan), sample.condition, sample.seed, sample.index, sample.guidance]
            for sample in samples
        ],
        "format": [output_format, SETTINGS[output_format]],
        "precision": family.precision,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def edition(family: Family) -> str:
    """Return what tells families of one name apart: the name and the SHA-256 of all that is the family's about a picture.

    Two replicas with equal editions draw equal images of a wish whose plan is decided: networks, words, guidance and the
    rules of sampling are the same. What was measured is not in it, so a family that is only measured again keeps its own.
    """
    drawn = {"channels", "resolution", "schedule", "prediction", "variance", "conditioning", "guidance"}
    members = [
        member.model_dump(mode="json", include={"name", "role", "guidance", "network"})
        | {"sha256": member.weights.sha256}
        for member in family.manifest.members
    ]
    facts = {"sampling": family.manifest.model_dump(mode="json", include=drawn), "members": members}
    if family.precision != "fp32":
        facts["precision"] = family.precision
    for part in ("autoencoder", "text"):
        if getattr(family.manifest, part):
            facts[part] = getattr(family.manifest, part).model_dump(mode="json")
    return f"{family.name}@{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()}"


def _weights(family: Family, plans: Sequence[Plan]) -> dict[str, object]:
    """The part of the manifest that draws; names and words do not, nor does what was measured."""
    manifest = family.manifest
    members = [manifest.member(name) for name in dict.fromkeys(name for plan in plans for name in plan.members)]
    return {
        "members": {member.name: [member.weights.sha256, member.network.model_dump(mode="json")] for member in members},
        "sampling": manifest.model_dump(
            mode="json", include={"channels", "resolution", "schedule", "variance", "autoencoder", "text"}
        ),
    }


@cache
def _code() -> list[str]:
    """Versions that draw and encode, and what PyTorch computes with: exact bytes are a promise for one kind of device.

    On a CPU the number of threads is part of that: products of some sizes have other bits with more of them.
    """
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else torch.backends.cpu.get_cpu_capability()
    return [version("stepdial"), version("pillow"), torch.__version__, device, f"{torch.get_num_threads()} threads"]
