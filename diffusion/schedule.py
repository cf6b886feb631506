"""Noise schedules: how much of a latent is signal and how much is noise at time t.

Notation of the whole project: t in [0, 1] with 1 = noise, ``z_t = alpha_t * x + sigma_t * eps``, variance preserving
(``alpha_t^2 + sigma_t^2 = 1``), ``logsnr = log(alpha_t^2 / sigma_t^2)``.  Everything here is float64: near t = 1 the
teacher's steps are differences of nearly equal numbers, and a target computed in half precision is noise.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import ConfigDict
from torch import Tensor


def alpha_sigma_from_logsnr(logsnr: Tensor) -> tuple[Tensor, Tensor]:
    """Return alpha and sigma of a variance-preserving process, each of logsnr's shape and dtype.

    alpha^2 = sigmoid(logsnr), sigma^2 = sigmoid(-logsnr).
    """
    return torch.sigmoid(logsnr).sqrt(), torch.sigmoid(-logsnr).sqrt()


@dataclass(frozen=True, kw_only=True)
class CosineSchedule:
    """The cosine schedule of simple diffusion: clipped, shifted to a noise resolution, interpolated between two.

    cosine       logsnr(t) = -2 log tan(a + t (b - a)), a and b chosen so that the ends are logsnr_max and logsnr_min
    shifted      + 2 log(noise_resolution / image_resolution); the ends move with it
    interpolated between the schedules shifted to noise_resolution and to noise_resolution_end (see `interpolation`)
    """

    __pydantic_config__ = ConfigDict(extra="forbid")  # for the family's manifest, which holds one

    image_resolution: int = 64
    """Height and width of the images, in pixels."""
    noise_resolution: int = 64
    """Resolution at which the noise is as strong as in the unshifted schedule, in pixels."""
    noise_resolution_end: int | None = None
    """Second noise resolution of an interpolated schedule (the paper: 32 -> 64, 32 -> 128, 32 -> 512); None for a plain one."""
    interpolation: Literal["A", "B"] = "B"
    """B: noise_resolution at t = 1 and noise_resolution_end at t = 0. A: the other way round, as some print it.

    Only B is monotone for every pair of resolutions and matches the stated purpose (docs/method.md).
    """
    logsnr_min: float = -15.0
    """logsnr of the unshifted schedule at t = 1."""
    logsnr_max: float = 15.0
    """logsnr of the unshifted schedule at t = 0."""

    def __post_init__(self) -> None:
        for name in ("image_resolution", "noise_resolution", "noise_resolution_end"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not self.logsnr_min < self.logsnr_max:
            raise ValueError(f"logsnr_min must be below logsnr_max, got {self.logsnr_min} and {self.logsnr_max}")
        if self.interpolation not in ("A", "B"):
            raise ValueError(f"interpolation must be 'A' or 'B', got {self.interpolation!r}")

    def logsnr(self, t: Tensor | float) -> Tensor:
        """Return log SNR at times t in [0, 1] (any shape), float64, falling in t."""
        t = torch.as_tensor(t, dtype=torch.float64)
        start = math.atan(math.exp(-0.5 * self.logsnr_max))
        end = math.atan(math.exp(-0.5 * self.logsnr_min))
        cosine = -2.0 * torch.log(torch.tan(start + t * (end - start)))
        at_noise, at_data = self._shift(self.noise_resolution), self._shift(self.noise_resolution_end)
        if self.interpolation == "A":
            at_noise, at_data = at_data, at_noise
        return cosine + t * at_noise + (1.0 - t) * at_data

    def _shift(self, noise_resolution: int | None) -> float:
        return 2.0 * math.log((noise_resolution or self.noise_resolution) / self.image_resolution)

    def alpha_sigma(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return (alpha_t, sigma_t) at times t in [0, 1], float64, of t's shape."""
        return alpha_sigma_from_logsnr(self.logsnr(t))

    def time(self, logsnr: Tensor | float) -> Tensor:
        """Return the times t in [0, 1] at which log SNR has these values, float64; beyond the ends, the ends.

        Bisection, because the interpolated schedule has no closed inverse; 60 halvings reach float64's resolution.
        """
        target = torch.as_tensor(logsnr, dtype=torch.float64)
        low, high = torch.zeros_like(target), torch.ones_like(target)
        for _ in range(60):
            middle = 0.5 * (low + high)
            too_clean = self.logsnr(middle) > target
            low, high = torch.where(too_clean, middle, low), torch.where(too_clean, high, middle)
        return 0.5 * (low + high)


def karras_times(
    schedule: CosineSchedule, steps: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Tensor:
    """Return the steps + 1 times, falling from 1 to 0, whose noise-to-signal ratios are Karras et al. 2022's (eq. 5).

    sigma_i = (sigma_max^(1/rho) + i/(steps-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho and then 0; sigma there is
    sigma_t / alpha_t here, so t is where the schedule reaches logsnr = -2 log sigma_i.  The first time is set to exactly
    1 because sampling starts from pure noise.  float64, shape (steps + 1,).  Raises ValueError for steps < 1.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    fraction = torch.linspace(0.0, 1.0, steps, dtype=torch.float64)
    sigma = (sigma_max ** (1 / rho) + fraction * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    times = torch.cat([schedule.time(-2.0 * sigma.log()), torch.zeros(1, dtype=torch.float64)])
    times[0] = 1.0
    return times
