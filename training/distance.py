"""How far apart v_hat and its target are: the distances that the paper's words may mean."""

import torch.nn.functional as F
from torch import Tensor

from training.objective import Objective


def distance(objective: Objective, v_diff: Tensor, sigma_t: Tensor) -> Tensor:
    """Return each sample's loss (B,) from v_diff = v_hat - v_target; x_diff is sigma_t * v_diff, SNR + 1 is 1 / sigma_t^2.

    Norms are means over dimensions: only so is "a Huber epsilon of 1" the scaled squared loss that the paper says it is.
    """
    squared = mean_square(v_diff, objective.poolings)
    if objective.distance == "v_mean_squared":
        return squared
    epsilon = objective.huber_epsilon
    if objective.distance == "snr1_x_huber":
        squared = squared * sigma_t**2
        return ((squared + epsilon**2).sqrt() - epsilon) / sigma_t**2
    return (squared + epsilon**2).sqrt() - epsilon


def check_poolings(poolings: int, side: int) -> None:
    """Raise ValueError where what a network sees, side x side, cannot be halved so often."""
    if side % 2**poolings:
        most = (side & -side).bit_length() - 1
        raise ValueError(f"the {side}x{side} that the network sees can be halved {most} times")


def mean_square(difference: Tensor, poolings: int = 0) -> Tensor:
    """Return the mean square (B,) of (B, C, H, W), or of `poolings` halvings of its resolution too: simple diffusion's

        sum over s in d, d / 2, ... of (1 / s) mean ||D_s difference||^2,

    D_s pooling averages down to s x s; here over the sum of 1 / s, so that it stays a mean.  Raises ValueError where
    the resolution cannot be halved so often.
    """
    check_poolings(poolings, min(difference.shape[2:]) if poolings else 1)
    total = difference.square().flatten(1).mean(1)
    for level in range(1, poolings + 1):
        difference = F.avg_pool2d(difference, 2)
        total = total + 2**level * difference.square().flatten(1).mean(1)
    return total / (2 ** (poolings + 1) - 1)
