"""Which implementation runs: the Triton kernel or plain PyTorch."""

from functools import cache
from importlib.util import find_spec

from torch import Tensor


@cache
def _triton_installed() -> bool:
    return find_spec("triton") is not None


def uses_triton(tensor: Tensor) -> bool:
    """Return whether work on this tensor goes to a Triton kernel: it lies on a GPU and Triton is installed."""
    return tensor.is_cuda and _triton_installed()
