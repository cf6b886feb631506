"""The painter: what every other server draws with. The family's own networks, plans and sampler, and the same PNG."""

import base64
import io
import secrets
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.load.wishes import Wishes
from diffusion.family import Family, open_family
from diffusion.sampler import Network, sample

POSITIONS = (1, 2, 4, 8, 16)
"""Dial positions that are asked for."""
MAX_BATCH = 32
"""Largest batch of servers that batch: as many as there are clients at most, in a power of two."""
BATCH_SECONDS = 0.005
"""How long such a server lets a batch grow, where it waits for a fixed time."""


class Painter:
    """Draws batches of wishes, each on one network of a family, on the CPU, and encodes them."""

    def __init__(self, folder: Path, *, members: Sequence[str] | None = None):
        """Open the family and load the networks that its plans visit. Raises FamilyError.

        members: names of those to load, where not all are wanted at once.
        """
        self.family = open_family(folder)
        self.plans = {steps: self.family.dedicated(steps) for steps in POSITIONS}
        wanted = {member for plan in self.plans.values() for member in plan.members}
        self._networks: dict[str, Network] = {
            name: self.family.network(name) for name in wanted & set(members or wanted)
        }

    def warm(self) -> None:
        """Draw once at every position, alone and in a full batch, so that no request meets what is done only once."""
        for steps, plan in self.plans.items():
            if set(plan.members) <= set(self._networks):
                wish = example_wish(self.family, steps)
                self.paint([wish])
                self.paint([wish] * MAX_BATCH)

    def paint(self, wishes: Sequence[Mapping[str, Any]]) -> list[np.ndarray]:
        """Return an image, uint8 (H, W, C), of each wish (prompt or label, steps, and a seed or none).

        One call of the sampler runs one plan, so a batch is split by step count.
        """
        images: dict[int, np.ndarray] = {}
        for steps in sorted({wish["steps"] for wish in wishes}):
            numbers = [number for number, wish in enumerate(wishes) if wish["steps"] == steps]
            batch = self._sample([wishes[number] for number in numbers], steps)
            images |= zip(numbers, batch, strict=True)
        return [images[number] for number in range(len(wishes))]

    def _sample(self, wishes: Sequence[Mapping[str, Any]], steps: int) -> np.ndarray:
        manifest, plan = self.family.manifest, self.plans[steps]
        conditions = [manifest.conditioning.encode(prompt=w.get("prompt"), label=w.get("label")) for w in wishes]
        seeds = [secrets.randbelow(2**53) if w.get("seed") is None else w["seed"] for w in wishes]
        with torch.inference_mode():
            images = sample(
                self._networks,
                plan,
                manifest.schedule,
                torch.tensor(conditions, dtype=torch.int64),
                seeds=seeds,
                indices=[0] * len(wishes),
                shape=manifest.shape,
                variance=self.family.variance,
            )
        return images.numpy()


def model_of(family: Family) -> dict[str, Any]:
    """Return what wishes are made of, as GET /models of stepdial tells it."""
    return {"name": family.name, "conditioning": family.manifest.conditioning.model_dump(mode="json")}


def example_wish(family: Family, steps: int) -> dict[str, Any]:
    """Return one wish for so many steps, the same each time but for its seed, which it leaves open."""
    return Wishes(model_of(family), {steps: 1.0}, Random(0)).next()[1]


def answer(pixels: np.ndarray, steps: int) -> dict[str, Any]:
    """Return the JSON answer that holds an image, as stepdial's does: PNG in base64."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png", compress_level=1, compress_type=zlib.Z_RLE)
    return {"data": [{"b64_json": base64.b64encode(file.getvalue()).decode()}], "steps_used": steps}
