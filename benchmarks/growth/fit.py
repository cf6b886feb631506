"""Fits of a curve: cost = a·x^b, and cost = c + d·x."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Power:
    """cost = factor · x^exponent."""

    factor: float
    exponent: float
    error: float
    """Standard error of the exponent, from how far the points are off the curve."""

    @classmethod
    def of(cls, xs: Sequence[float], costs: Sequence[float]) -> "Power":
        """Return the least squares fit in logarithms, every point of one weight.

        Points at x = 0 have no logarithm and are left out. Raises ValueError for fewer than three others, whose error is unknown.
        """
        points = [(x, cost) for x, cost in zip(xs, costs, strict=True) if x > 0]
        if len(points) < 3:
            raise ValueError(f"{len(points)} points beyond 0; an exponent and its error take three")
        x, y = np.log(np.asarray(points)).T
        exponent, intercept = np.polyfit(x, y, 1)
        residuals = y - (intercept + exponent * x)
        error = np.sqrt(residuals @ residuals / (len(points) - 2) / ((x - x.mean()) @ (x - x.mean())))
        return cls(float(np.exp(intercept)), float(exponent), float(error))

    def __call__(self, x: float) -> float:
        """Return the cost at x."""
        return self.factor * float(x) ** self.exponent


@dataclass(frozen=True, slots=True)
class Line:
    """cost = fixed + each · x."""

    fixed: float
    each: float

    @classmethod
    def of(cls, xs: Sequence[float], costs: Sequence[float]) -> "Line":
        """Return the line whose relative errors have the least squares: a small cost counts as much as a large one."""
        x, y = np.asarray(xs, float), np.asarray(costs, float)
        (fixed, each), *_ = np.linalg.lstsq(np.stack([1 / y, x / y], axis=1), np.ones_like(y), rcond=None)
        return cls(float(fixed), float(each))

    def __call__(self, x: float) -> float:
        """Return the cost at x."""
        return self.fixed + self.each * x
