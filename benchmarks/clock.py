"""Timing on a CPU or a GPU, and the two ceilings of a device: its matrix products and its copies."""

from collections.abc import Callable, Sequence
from time import perf_counter, process_time

import torch

from benchmarks.record import Spread

WARM_UPS = 2


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Return how long a run takes, by the device's own clock where it is a GPU.

    A GPU is not waited for before: its clock starts when it comes to the run, after what it was given earlier, during which
    the host may have given it some of the run already; only an idle GPU's time has the host's first launch in it.
    """
    if device.type != "cuda":
        began = perf_counter()
        run()
        return perf_counter() - began
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def alternate(
    runs: Sequence[Callable[[], object]], device: torch.device, *, rounds: int
) -> list[tuple[Spread, Spread]]:
    """Time several runs in turn, so that what else the machine does meets all of them alike.

    Returns the seconds of each, and its seconds of processor time, in which a busy machine's other work is not.
    """
    for run in runs:
        for _ in range(WARM_UPS):
            run()
    times: list[list[tuple[float, float]]] = [[] for _ in runs]
    for _ in range(rounds):
        for run, taken in zip(runs, times, strict=True):
            began = process_time()
            taken.append((seconds(run, device), process_time() - began))
    return [(Spread.of([wall for wall, _ in taken]), Spread.of([used for _, used in taken])) for taken in times]


def matrix_peak(device: torch.device, kind: torch.dtype, *, size: int, rounds: int = 10) -> float:
    """Return the operations a second of the fastest of some products of two square matrices of random numbers."""
    one, other = (torch.randn(size, size, device=device).to(kind) for _ in range(2))
    out = torch.empty_like(one)
    taken = [seconds(lambda: torch.mm(one, other, out=out), device) for _ in range(rounds + WARM_UPS)]
    return 2 * size**3 / min(taken[WARM_UPS:])


def copy_bandwidth(device: torch.device, *, size: int, rounds: int = 10) -> float:
    """Return the bytes a second, read and written, of the fastest of some copies of so many bytes."""
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    taken = [seconds(lambda: target.copy_(source), device) for _ in range(rounds + WARM_UPS)]
    return 2 * size / min(taken[WARM_UPS:])
