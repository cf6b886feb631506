"""Times functions in turns, so that what disturbs one disturbs all."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter, process_time

import torch

from benchmarks.clock import seconds

FLUSH_BYTES = 256 << 20
"""Written between two timed calls on a GPU, more than its cache holds."""
WARM_UP = 3


@dataclass(frozen=True)
class Times:
    """Seconds of one call: the device's own, or of a CPU's processor time, all threads together."""

    low: float
    """A fifth were faster."""
    median: float
    high: float
    """A fifth were slower."""
    calls: int


class Clock:
    """Times functions on one device."""

    def __init__(self, device: torch.device, *, seconds: float):
        """seconds: how long all functions of one comparison are timed together, at least."""
        self.device = device
        self._seconds = seconds
        self._flush = torch.empty(FLUSH_BYTES // 4, dtype=torch.int32, device=device) if device.type == "cuda" else None

    def compare(self, functions: Mapping[str, Callable[[], object]], *, least: int = 5) -> dict[str, Times]:
        """Return the times of each function, called in turns until the seconds are over, and `least` times at least."""
        for function in functions.values():
            for _ in range(WARM_UP):
                function()
        found: dict[str, list[float]] = {name: [] for name in functions}
        end = perf_counter() + self._seconds
        while len(next(iter(found.values()))) < least or perf_counter() < end:
            for name, function in functions.items():
                found[name].append(self._call(function))
        return {name: _times(taken) for name, taken in found.items()}

    def _call(self, function: Callable[[], object]) -> float:
        if self._flush is None:
            begun = process_time()  # in which a busy machine's other work is not
            function()
            return process_time() - begun
        self._flush.zero_()  # also keeps the device busy while the host gets ahead
        return seconds(function, self.device)


def _times(taken: list[float]) -> Times:
    low, median, high = torch.tensor(taken, dtype=torch.float64).quantile(
        torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    )
    return Times(low.item(), median.item(), high.item(), len(taken))
