"""Rulers: a feature network with the real images that it compares drawn ones with, and what such a distance may be called."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from diffusion.frontier import Measure
from training.datasets import DataSet
from training.extractors import Extractor
from training.frechet import (
    Origin,
    Statistics,
    data_sha256,
    frechet_distance,
    read_statistics,
    statistics_of,
    write_statistics,
)
from training.neighbours import overlap
from training.yardstick import REAL_SEED, WHOLE, Yardstick, measure

FID_IMAGES = 50_000
"""Drawn images behind a distance that may be called FID."""


class Metric(BaseModel):
    """What one network says of images."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    network: str
    """"judge", "inception" or "dinov2"."""
    label: str
    """What the distance is: FID, or which proxy."""
    frechet: Measure
    """Frechet distance to the reference; lower is better."""
    precision: Measure
    """Part of the drawn images that are near a real one (training/neighbours.py)."""
    recall: Measure
    """Part of the real images that are near a drawn one."""
    density: Measure
    """How many real images a drawn one is near, against how many it would be on average."""
    coverage: Measure
    """Part of the real images that have a drawn one near them."""


def label(extractor: Extractor, *, samples: int, references: int, whole: bool) -> str:
    """Return what a distance is called: FID where it is that, else which proxy it is.

    references: real images behind the statistics; whole: whether those are all there are.
    """
    about = f"{samples:,} images against {references:,} real ones"
    if extractor.is_fid and samples >= FID_IMAGES and (whole or references >= FID_IMAGES):
        return f"FID, {about}"
    return f"proxy: Fréchet distance of {extractor.name} features, {about}"


@dataclass(frozen=True)
class Ruler:
    """A feature network with the real images it has seen."""

    extractor: Extractor
    reference: Origin
    """The real images that distances are taken to."""
    statistics: Statistics
    reals: np.ndarray
    """Features of some of the real images, for the overlap with drawn ones."""
    others: np.ndarray
    """Features of as many other real images."""
    label: str
    whole: bool
    """Whether the reference is all the images that there are."""

    def metric(self, runs: list[np.ndarray]) -> Metric:
        """Return what the network says of drawn images, their features (N, D) run by run."""
        overlaps = [overlap(self.reals, features) for features in runs]
        return Metric(
            network=self.extractor.name,
            label=self.label,
            frechet=measure([frechet_distance(features, self.statistics) for features in runs]),
            **{name: measure([getattr(one, name) for one in overlaps]) for name in overlaps[0]._fields},
        )

    @property
    def floor(self) -> Metric:
        """The same of other real images; of a set that is its own reference, of one part of it to another."""
        statistics = statistics_of(self.reals) if self.whole else self.statistics
        said = f"{self.extractor.name} features of {len(self.others):,} real images against others"
        return replace(self, statistics=statistics, label=said).metric([self.others])


def ruler(extractor: Extractor, data: DataSet, folder: Path, *, samples: int, references: int) -> Ruler:
    """Return the ruler of a feature network; statistics that the folder holds are used, others are computed and written there.

    references: real images behind the statistics of a set that is endless or larger than 50,000; of others all are taken.
    Raises DataError when the statistics there are of other images or another network.
    """
    whole = data.size is not None and (data.size <= WHOLE or references >= data.size)
    count = data.size if whole and data.size else references
    origin = Origin(
        data=data.name,
        data_sha256=data_sha256(data, count=count, seed=REAL_SEED),
        count=count,
        network=extractor.name,
        network_sha256=extractor.sha256,
    )
    name = re.sub(r"[^A-Za-z0-9]+", "-", data.name).strip("-")
    file = folder / f"{name}-{count}-{extractor.name}.safetensors"
    if not file.exists():
        write_statistics(file, statistics_of(_features_of_real(extractor, data, 0, count)), origin)
    statistics = read_statistics(file, origin)
    some = min(samples, count // 2) if whole else min(samples, count)
    return Ruler(
        extractor,
        origin,
        statistics,
        reals=_features_of_real(extractor, data, 0, some),
        others=_features_of_real(extractor, data, some if whole else count, some),
        label=label(extractor, samples=samples, references=count, whole=whole),
        whole=whole,
    )


def judge_of(yardstick: Yardstick) -> Extractor:
    """Return a family's judge as a feature network."""
    return Extractor("judge", yardstick.sha256, lambda images: yardstick.features(torch.from_numpy(images)))


def _features_of_real(extractor: Extractor, data: DataSet, start: int, count: int) -> np.ndarray:
    parts = []
    for at in range(start, start + count, 256):
        pixels = data.pixels(at, min(256, start + count - at), seed=REAL_SEED)
        data.skipped.note(pixels.skipped)
        parts.append(extractor.features(pixels.images))
    return np.concatenate(parts)
