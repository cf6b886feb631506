"""The Frechet distance, by torchmetrics, and the statistics of real images that it is taken to: named, hashed, in a file."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from torch import nn

from diffusion.files import write_tensors
from training.datasets import DataError, DataSet


@dataclass(frozen=True)
class Statistics:
    """What the Frechet distance knows of a set of images."""

    mean: np.ndarray
    """Of the features, float64 (D,)."""
    covariance: np.ndarray
    """Of the features, float64 (D, D), normalised by count - 1."""
    count: int
    """Images."""


class Origin(BaseModel):
    """What statistics are of; kept with them, and compared before they are used again."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    format: int = 1
    data: str
    """Name of the data set."""
    data_sha256: str
    """Of everything that the images depend on: the set's identity, resolution, channels, and which images were taken."""
    count: int
    """Images."""
    network: str
    """Name of the feature network."""
    network_sha256: str
    """Of its weights."""


def statistics_of(features: np.ndarray) -> Statistics:
    """Return the statistics of features (N, D); float64.  Raises DataError for fewer than two images."""
    if len(features) < 2:
        raise DataError(f"a distance needs at least 2 images, got {len(features)}")
    wide = features.astype(np.float64)
    return Statistics(wide.mean(0), np.atleast_2d(np.cov(wide, rowvar=False)), len(wide))


def library() -> Any:
    """Return torchmetrics' class.  Raises DataError where it is not installed."""
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
    except ModuleNotFoundError:
        raise DataError("torchmetrics is not installed; pip install -e '.[training]'") from None
    return FrechetInceptionDistance


def frechet_distance(features: np.ndarray, reference: Statistics) -> float:
    """Return the Frechet distance of features (N, D) to the reference, both taken as Gaussians; computed in float64.

    |m_a - m_b|^2 + tr(A + B - 2 (A B)^1/2).  Raises DataError where torchmetrics is not installed or D differs.
    """
    metric_class = library()
    count, mean = reference.count, torch.from_numpy(reference.mean)
    if features.shape[1] != len(mean):
        raise DataError(f"the features have {features.shape[1]} dimensions, those of the reference {len(mean)}")
    metric = metric_class(feature=_Features(len(mean)), reset_real_features=False)
    metric.persistent(True)
    # the library keeps sums; the reference's are put back from its mean and covariance
    squares = (count - 1) * torch.from_numpy(reference.covariance) + count * torch.outer(mean, mean)
    real = {"features_sum": count * mean, "features_cov_sum": squares, "features_num_samples": torch.tensor(count)}
    metric.load_state_dict(metric.state_dict() | {f"real_{name}": value for name, value in real.items()})
    metric.update(torch.from_numpy(features.astype(np.float64)), real=False)
    return float(metric.compute())


class _Features(nn.Module):
    """The library's place for a feature network, where the features are there already."""

    def __init__(self, count: int):
        super().__init__()
        self.num_features = count

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def data_sha256(data: DataSet, *, count: int, seed: int) -> str:
    """Return a hash of what identifies the first `count` images of the set's stream of `seed`."""
    told = [data.name, data.identity, data.size, data.resolution, data.channels, count, seed]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def write_statistics(file: Path, statistics: Statistics, origin: Origin) -> None:
    """Write statistics with their origin."""
    tensors = {name: torch.from_numpy(getattr(statistics, name)) for name in ("mean", "covariance")}
    write_tensors(file.parent, file.name, tensors, metadata={"origin": origin.model_dump_json()})


def read_statistics(file: Path, expected: Origin) -> Statistics:
    """Read statistics that are of just this origin.

    Raises DataError naming what differs, and for what is no such file.
    """
    try:
        with safe_open(file, framework="np") as opened:
            origin = Origin.model_validate_json((opened.metadata() or {}).get("origin", ""))
            mean, covariance = opened.get_tensor("mean"), opened.get_tensor("covariance")
    except (SafetensorError, OSError, ValidationError):
        raise DataError(f"{file.name} does not hold statistics of real images; remove it, or name another") from None
    told, wanted = origin.model_dump(), expected.model_dump()
    if differing := [f"{name} is {told[name]}, not {wanted[name]}" for name in told if told[name] != wanted[name]]:
        raise DataError(f"the statistics in {file.name} are of other images or features: {'; '.join(differing)}")
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise DataError(f"{file.name} does not hold a mean and its covariance: shapes {mean.shape}, {covariance.shape}")
    return Statistics(mean, covariance, origin.count)
