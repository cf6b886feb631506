"""On a CPU: layers that give a row the same bits in every batch, however small.

MKL multiplies fewer than four rows in other ways than more of them, each with its own order of sums, and PyTorch convolves
a single small image without oneDNN. Here few rows are multiplied as four, and oneDNN convolves one image too.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS = 4
"""From so many rows on MKL's bits did not depend on their number on the processor tried, an AMD EPYC."""


def steady(network: nn.Module) -> None:
    """Have a network for evaluation on a CPU compute so; its weights, their names and its results up to rounding stay."""
    for layer in network.modules():
        if type(layer) is nn.Linear:
            layer.forward = partial(_multiply, layer)  # type: ignore[method-assign]
        elif type(layer) is nn.Conv2d and _sums_neighbours(layer):
            layer.forward = partial(_convolve, layer)  # type: ignore[method-assign]


def _sums_neighbours(layer: nn.Conv2d) -> bool:
    """Whether oneDNN can take it, and it is more than a product of matrices, which has equal bits as it is."""
    return layer.kernel_size != (1, 1) and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def _multiply(layer: nn.Linear, x: Tensor) -> Tensor:
    rows = x.shape[:-1].numel()
    if rows >= ROWS:
        return F.linear(x, layer.weight, layer.bias)
    padded = F.pad(x.reshape(rows, -1), (0, 0, 0, ROWS - rows))
    return F.linear(padded, layer.weight, layer.bias)[:rows].view(*x.shape[:-1], -1)


def _convolve(layer: nn.Conv2d, x: Tensor) -> Tensor:
    if len(x) > 1 or x.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    padding = [int(side) for side in layer.padding]
    return torch.mkldnn_convolution(x, layer.weight, layer.bias, padding, layer.stride, layer.dilation, layer.groups)
