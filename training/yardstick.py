"""What quality is measured with: real images, a judge of them, and the distance of drawn images to them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffusion.family import Family
from diffusion.files import file_sha256
from diffusion.frontier import Measure
from training.datasets import DataSet, pixels_to_latents
from training.features import JUDGE, Judge, describe_judge, family_judge
from training.frechet import frechet_distance, library, statistics_of

REFERENCE_IMAGES = 10_000
"""Real images that drawn ones are compared with, of a set that is endless or larger than WHOLE."""
WHOLE = 50_000
"""Largest set all of whose images are compared with."""
REAL_SEED = 101
"""Seed of the stream that real images are taken from."""


@dataclass(frozen=True)
class Evaluation:
    """How to measure: shared by every position of one call."""

    samples: int
    """Images per run behind a quality number."""
    seeds: tuple[int, ...]
    """One run each."""
    precision: str
    """Network arithmetic of the quality runs, "bf16" or "fp32"."""
    device: torch.device
    command: str
    """The command line, for the record."""
    commit: str
    """The code that runs, as git named it when the command began."""
    folder: Path = Path("runs/scores")
    """Where finished parts are kept until the command has ended, so that it can be gone on with."""


class Yardstick:
    """The judge, the real images' features, and how far as many real images are from them."""

    def __init__(self, family: Family, data: DataSet, device: torch.device | str = "cpu"):
        library()  # said before a judge is trained for minutes
        self.data, self.device = data, torch.device(device)
        self.judge: Judge = family_judge(family.folder, data)
        self.description = describe_judge(family.folder, self.judge, data)
        self.sha256 = file_sha256(family.folder / JUDGE)
        self.judge.to(self.device)
        self._whole = data.size is not None and data.size <= WHOLE
        self.count = (self._whole and data.size) or REFERENCE_IMAGES
        self.reals = self._features_of_real(0, self.count)
        self._statistics = statistics_of(self.reals)
        self.reference = f"{self.count} real images of {data.name}"

    def features(self, images: Tensor) -> np.ndarray:
        """Return the judge's features (N, 64) of images uint8 (N, H, W, C)."""
        return self._features(pixels_to_latents(images.cpu().numpy()))

    def distance(self, features: np.ndarray) -> float:
        """Return the Frechet distance of images with these features (N, 64) to the real ones."""
        return frechet_distance(features, self._statistics)

    def right(self, images: Tensor, condition: Tensor) -> np.ndarray:
        """Tell of each image uint8 (N, H, W, C) whether all that was asked for, condition (N, slots), is seen; bool (N,)."""
        x = pixels_to_latents(images.cpu().numpy()).to(self.device)
        pairs = zip(x.split(256), condition.to(self.device).split(256), strict=True)
        return torch.cat([self.judge.agrees(part, asked) for part, asked in pairs]).cpu().numpy()

    def floor(self, samples: int, runs: int) -> Measure:
        """Return the distance of `samples` real images to real images.

        Of an endless or large set, others to the reference.  A set that is its own reference has no others: there
        `samples` random images to as many others of the set, half of it each at most.
        """
        distances = []
        for run in range(runs):
            if self._whole:
                order = np.random.default_rng(run).permutation(len(self.reals))
                half = min(samples, len(order) // 2)
                others = statistics_of(self.reals[order[half : 2 * half]])
                distances.append(frechet_distance(self.reals[order[:half]], others))
            else:
                start = REFERENCE_IMAGES + run * samples
                distances.append(self.distance(self._features_of_real(start, samples)))
        return measure(distances)

    def _features_of_real(self, start: int, count: int) -> np.ndarray:
        parts = [
            self.data.batch(at, min(256, start + count - at), seed=REAL_SEED)[0]
            for at in range(start, start + count, 256)
        ]
        return self._features(torch.cat(parts))

    def _features(self, x: Tensor) -> np.ndarray:
        return torch.cat([self.judge.features(part.to(self.device)).cpu() for part in x.split(256)]).numpy()


def measure(values: list[float]) -> Measure:
    """Return mean and standard deviation (of the runs, N - 1; 0 for one run)."""
    return Measure(mean=float(np.mean(values)), spread=float(np.std(values, ddof=1)) if len(values) > 1 else 0.0)
