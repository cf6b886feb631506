"""Precision, recall, density and coverage: how much of the real the drawn images meet, by nearest neighbours among features."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

NEAREST = 3, 5
"""k of the radii: that of precision and recall (Kynkäänniemi et al. 2019), that of density and coverage (Naeem et al. 2020)."""
_ROWS = 2048
"""Rows of a table of distances at a time."""


class Overlap(NamedTuple):
    """How two sets of images overlap; a real image's ball reaches to its k-th nearest real neighbour, a drawn one's likewise."""

    precision: float
    """Part of the drawn images that lie in some real image's ball."""
    recall: float
    """Part of the real images that lie in some drawn image's ball."""
    density: float
    """Real balls that a drawn image lies in, over k, on average; may exceed 1."""
    coverage: float
    """Part of the real images in whose balls some drawn image lies."""


def overlap(real: np.ndarray, drawn: np.ndarray) -> Overlap:
    """Return how features (N, D) of real and (M, D) of drawn images overlap.  Raises ValueError for sets of k images or fewer."""
    if min(len(real), len(drawn)) <= max(NEAREST):
        raise ValueError(
            f"more than {max(NEAREST)} images are needed, got {len(real)} real and {len(drawn)} drawn ones"
        )
    ours, theirs = (torch.from_numpy(features.astype(np.float64)) for features in (real, drawn))
    (small, large), (drawn_small, _) = _radii(ours), _radii(theirs)
    precise, meets = [], []
    recalled, covered = (torch.zeros(len(ours), dtype=torch.bool) for _ in range(2))
    for part, radius in zip(theirs.split(_ROWS), drawn_small.split(_ROWS), strict=True):
        distances = torch.cdist(part, ours)
        precise.append((distances <= small).any(1))
        meets.append((distances <= large).sum(1))
        recalled |= (distances <= radius[:, None]).any(0)
        covered |= (distances <= large).any(0)
    return Overlap(
        precision=float(torch.cat(precise).double().mean()),
        recall=float(recalled.double().mean()),
        density=float(torch.cat(meets).double().mean() / max(NEAREST)),
        coverage=float(covered.double().mean()),
    )


def _radii(points: Tensor) -> tuple[Tensor, ...]:
    """Return each point's distances to its k-th nearest others, one (N,) for each k."""
    sorted_rows = [
        torch.cdist(part, points).topk(max(NEAREST) + 1, largest=False).values for part in points.split(_ROWS)
    ]
    nearest = torch.cat(sorted_rows)
    return tuple(nearest[:, k] for k in NEAREST)
