"""The pieces of the measurement, each by itself, and all of them."""

from collections.abc import Callable, Iterable, Iterator

import torch
from tqdm import tqdm

from benchmarks.clock import copy_bandwidth
from benchmarks.kernels import films, layers, targets, updates
from benchmarks.kernels.clock import Clock
from benchmarks.kernels.comparison import Comparison
from benchmarks.kernels.result import Result, Row
from diffusion.provenance import commit, device_name, now, versions

PIECES: dict[str, Callable[[torch.device], Iterator[Comparison]]] = {
    "hop": updates.hops,
    "last_hop": updates.last_hops,
    "noise": updates.noises,
    "norm": layers.forward,
    "norm_backward": layers.backward,
    "target": targets.targets,
    "film": films.films,
}
"""What can be measured by itself; each ends within minutes."""
COPY_BYTES = 1 << 30
"""What is copied to see how fast a GPU copies: more than its cache holds."""


def measure(
    pieces: Iterable[str], device: torch.device, *, seconds: float = 2.0, command: str = "", note: str = ""
) -> Iterator[Result]:
    """Measure these pieces on a device, and yield after each what there is so far.

    seconds: how long each comparison is timed.  Raises KeyError for an unknown piece.
    """
    begun, code, clock, rows = now(), commit(), Clock(device, seconds=seconds), list[Row]()
    # a CPU's jobs fit its cache, a large copy does not
    copy = copy_bandwidth(device, size=COPY_BYTES) if device.type == "cuda" else None
    for piece in pieces:
        for comparison in tqdm(PIECES[piece](device), desc=piece, unit=" comparisons"):
            rows += comparison.rows(clock, copy)
        yield Result(
            command=command,
            commit=code,
            device=device_name(device),
            kind="cuda" if device.type == "cuda" else "cpu",
            versions=versions(),
            measured_at=begun,
            note=note,
            copy_gb_per_second=copy / 1e9 if copy else None,
            results=tuple(rows),
        )
