"""The machine with no server: `python -m benchmarks.peers.bare FOLDER` prints what sampling and encoding alone take."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from benchmarks.peers.painter import POSITIONS, Painter, answer, example_wish
from benchmarks.peers.result import Bare

BATCHES = (1, 8, 16, 32)
STEPS = 4
SECONDS = 1.0
"""How long each number is measured at least, after one call that does not count."""


def measure(painter: Painter) -> Bare:
    """Return what the painter does by itself."""

    def seconds(wishes: Sequence[Mapping[str, Any]]) -> float:
        times: list[float] = []
        while len(times) < 4 or sum(times[1:]) < SECONDS:
            began = perf_counter()
            for pixels, asked in zip(painter.paint(wishes), wishes, strict=True):
                answer(pixels, asked["steps"])
            times.append(perf_counter() - began)
        return median(times[1:])

    batches = {str(size): STEPS * size / seconds([example_wish(painter.family, STEPS)] * size) for size in BATCHES}
    alone = {str(steps): 1000 * seconds([example_wish(painter.family, steps)]) for steps in POSITIONS}
    return Bare(
        evaluations_per_second={size: round(rate, 1) for size, rate in batches.items()},
        alone_ms={steps: round(milliseconds, 2) for steps, milliseconds in alone.items()},
    )


if __name__ == "__main__":
    print(measure(Painter(Path(sys.argv[1]))).model_dump_json())
