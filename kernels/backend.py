"""Which implementation runs: the Triton kernel or plain PyTorch; and the memory that kernels read."""

from importlib.util import find_spec

import torch
from torch import Tensor

_TRITON_INSTALLED = find_spec("triton") is not None  # not asked for in a function, which torch.compile would look into


def uses_triton(tensor: Tensor) -> bool:
    """Return whether work on this tensor goes to a Triton kernel: it lies on a GPU, is no float64, and Triton is installed."""
    return tensor.is_cuda and _TRITON_INSTALLED and tensor.dtype != torch.float64


def aligned(tensor: Tensor) -> Tensor:
    """Return the tensor contiguous and at a 16-byte address: other addresses get other code, with other sums."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def rows_aligned(table: Tensor) -> Tensor:
    """Return a table (B, F) whose rows are contiguous and at 16-byte addresses, itself if it may be a slice of a wider one."""
    step = table.stride(0) * table.element_size()
    fits = table.stride(1) == 1 and table.data_ptr() % 16 == 0 and step % 16 == 0
    return table if fits else table.clone(memory_format=torch.contiguous_format)
