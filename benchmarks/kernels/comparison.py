"""A comparison: one job, done by several, with the bytes that it has to move."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.kernels.clock import Clock
from benchmarks.kernels.result import Row
from diffusion.capture import cuda_graphs

OURS = "stepdial"


@dataclass(frozen=True)
class Comparison:
    """One job.  `functions` are called without arguments; OURS is among them."""

    piece: str
    job: str
    """What is done, and to what shape."""
    bytes: int
    """What any implementation has to read and write, each operand once."""
    functions: Mapping[str, Callable[[], object]]
    uncapturable: frozenset[str] = field(default=frozenset())
    """Functions that read the device's data on the host, which a CUDA graph does not allow."""
    trains: bool = False
    """Whether functions take gradients; the others run in inference mode, as a server does."""

    def rows(self, clock: Clock, copy: float | None) -> list[Row]:
        """Time it.  copy: bytes a second of a copy on this device, if jobs are to be compared with that."""
        functions = {name: torch.inference_mode(not self.trains)(f) for name, f in self.functions.items()}
        if clock.device.type == "cuda":
            capture = cuda_graphs(clock.device)
            for name, function in list(functions.items()):
                if name not in self.uncapturable:
                    functions[f"{name}, in a CUDA graph"] = capture(function)
        return [
            Row(
                piece=self.piece,
                job=self.job,
                by=name,
                calls=times.calls,
                microseconds=(1e6 * times.low, 1e6 * times.median, 1e6 * times.high),
                bytes=self.bytes,
                of_copy=self.bytes / times.median / copy if copy else None,
            )
            for name, times in clock.compare(functions).items()
        ]


def size_of(*tensors: Tensor | None) -> int:
    """Return the bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)


def shape_name(shape: tuple[int, ...], dtype: torch.dtype) -> str:
    """Return a shape and a dtype in short."""
    return f"{'x'.join(map(str, shape))} {str(dtype).removeprefix('torch.')}"
