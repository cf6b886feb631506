"""The points of the curves, in the result file that every measurement here leaves."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median

from pydantic import BaseModel, ConfigDict

from benchmarks.record import Record, Spread


class Point(BaseModel):
    """One quantity at one point of a curve."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    curve: str
    x: float
    """What the cost grows with."""
    quantity: str
    """What was measured, and its unit."""
    value: Spread
    """Over its turns."""


class Tally:
    """Collects what every round brought, one curve."""

    def __init__(self, curve: str):
        self._curve = curve
        self._values: dict[tuple[str, float], list[float]] = {}

    def add(self, x: float, *turns: Mapping[str, float]) -> None:
        """Take in what turns of a point brought, by quantity."""
        for turn in turns:
            for quantity, value in turn.items():
                self._values.setdefault((quantity, x), []).append(value)
        numbers = ", ".join(f"{quantity} {median(turn[quantity] for turn in turns):.4g}" for quantity in turns[0])
        print(f"{self._curve} {x:g}: {numbers}", flush=True)

    def points(self) -> list[Point]:
        """Return every point of the curve."""
        return [
            Point(curve=self._curve, x=x, quantity=quantity, value=Spread.of(values))
            for (quantity, x), values in self._values.items()
        ]


class Measured:
    """The curves of a result file."""

    def __init__(self, points: Iterable[Point]):
        self._values: dict[str, dict[str, dict[float, Spread]]] = {}
        for point in points:
            self._values.setdefault(point.curve, {}).setdefault(point.quantity, {})[point.x] = point.value

    def curve(self, name: str) -> dict[str, dict[float, Spread]]:
        """Return a curve's values by quantity and x, x rising; nothing where it was not measured."""
        return {quantity: dict(sorted(values.items())) for quantity, values in self._values.get(name, {}).items()}


def read(file: Path) -> tuple[Record, Measured]:
    """Return a result file and its curves. Raises OSError, and ValueError for a file that is none."""
    found = Record.model_validate_json(file.read_text())
    return found, Measured(Point.model_validate(result) for result in found.results)
