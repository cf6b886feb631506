"""The discrete noise schedule a diffusers checkpoint was trained with: which of its timesteps has a given log SNR.

Only log SNR matters to a network, its timesteps are names for it.  Between two timesteps the name is interpolated, so the
network can be asked at any log SNR between its schedule's ends; beyond them it is asked at the end.
"""

import math
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
"""Names of diffusers: DDPM's, Stable Diffusion's (linear in the square root), and improved DDPM's cosine."""
NO_SIGNAL = -25.0
"""log SNR that stands for minus infinity, where a schedule is rescaled to end in pure noise; below every other one."""


class TimestepTable(BaseModel):
    """log SNR of every timestep, by the formulas that diffusers' schedulers share or by the betas themselves."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int = Field(default=1000, ge=2, le=100_000)
    """Number of timesteps; 0 is nearest to the data."""
    beta_schedule: BetaSchedule = "linear"
    beta_start: float = Field(default=1e-4, gt=0, lt=1)
    """beta of timestep 0; of no meaning to squaredcos_cap_v2."""
    beta_end: float = Field(default=0.02, gt=0, lt=1)
    """beta of the last timestep; likewise."""
    betas: tuple[float, ...] | None = None
    """Every beta, where no formula gives them."""
    zero_terminal_snr: bool = False
    """Whether the schedule is rescaled so that the last timestep is pure noise (arXiv 2305.08891, Algorithm 1)."""

    @model_validator(mode="after")
    def _falls(self) -> "TimestepTable":
        if self.betas is not None and len(self.betas) != self.count:
            raise ValueError(f"there are {len(self.betas)} betas for {self.count} timesteps")
        if not bool((self.logsnr.diff() < 0).all()):  # nor is it where something is not a number
            raise ValueError("the signal does not fall from timestep to timestep")
        return self

    @property
    def alphas_cumprod(self) -> Tensor:
        """alpha^2 of every timestep, float32 (count,), computed as diffusers does to the bit: the network saw these."""
        betas = self._betas()
        if self.zero_terminal_snr:
            roots = torch.cumprod(1.0 - betas, dim=0).sqrt()
            first, last = roots[0].clone(), roots[-1].clone()
            squares = ((roots - last) * (first / (first - last))) ** 2
            # by way of the betas again, for the rounding
            betas = 1 - torch.cat([squares[:1], squares[1:] / squares[:-1]])
        return torch.cumprod(1.0 - betas, dim=0)

    @property
    def logsnr(self) -> Tensor:
        """log SNR of every timestep, float64 (count,), falling; without any signal NO_SIGNAL."""
        alpha_squared = self.alphas_cumprod.double()
        return (alpha_squared.log() - torch.log1p(-alpha_squared)).clamp(min=NO_SIGNAL)

    def _betas(self) -> Tensor:
        """The betas before rescaling, float32, on the CPU even where a network is being built for the meta device."""
        start, end, count = self.beta_start, self.beta_end, self.count
        if self.betas is not None:
            return torch.tensor(self.betas, dtype=torch.float32, device="cpu")
        if self.beta_schedule == "linear":
            return torch.linspace(start, end, count, dtype=torch.float32, device="cpu")
        if self.beta_schedule == "scaled_linear":
            return torch.linspace(start**0.5, end**0.5, count, dtype=torch.float32, device="cpu") ** 2

        def alpha_bar(t: float) -> float:
            return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

        steps = [min(1 - alpha_bar((i + 1) / count) / alpha_bar(i / count), 0.999) for i in range(count)]
        return torch.tensor(steps, dtype=torch.float32, device="cpu")


def timesteps_at(logsnr: Tensor, levels: Tensor) -> Tensor:
    """Return the timesteps, fractional, from 0 to count - 1, that have these log SNRs (any shape), float64.

    levels: a table's log SNRs (count,), on the device of `logsnr`.
    """
    rising, wanted = -levels.double(), -logsnr.double()
    upper = torch.searchsorted(rising, wanted.contiguous()).clamp(1, len(levels) - 1)
    below, above = rising[upper - 1], rising[upper]
    return upper - 1 + ((wanted - below) / (above - below)).clamp(0.0, 1.0)
