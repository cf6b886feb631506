"""How uncertain x is given z_t: the variance that aDDIM and noise-DDIM put back (Algorithm 3)."""

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor


def analytic_variance(logsnr: Tensor) -> Tensor:
    """Return 0.1 / (2 + SNR): a tenth of the posterior variance of x under a Gaussian prior of variance one half."""
    return 0.1 / (2.0 + torch.exp(logsnr))


class MeasuredVariance(BaseModel):
    """eta ||x - x_hat(z_t)||^2 / d, measured on data at a grid of noise levels, unguided."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    eta: float = Field(default=0.75, ge=0, le=1)
    """Fraction of the measured error that is put back."""
    logsnr: tuple[float, ...] = Field(min_length=2)
    """Noise levels, rising."""
    error: tuple[float, ...] = Field(min_length=2)
    """Mean of ||x - x_hat||^2 / d at each level."""

    @model_validator(mode="after")
    def _is_table(self) -> "MeasuredVariance":
        if len(self.logsnr) != len(self.error) or any(
            a >= b for a, b in zip(self.logsnr, self.logsnr[1:], strict=False)
        ):
            raise ValueError("logsnr must rise and be as long as error")
        return self

    def __call__(self, logsnr: Tensor) -> Tensor:
        """Return x_var at these levels (any shape), linear between the table's levels and constant beyond them."""
        levels, errors = (
            torch.tensor(values, dtype=logsnr.dtype, device=logsnr.device) for values in (self.logsnr, self.error)
        )
        upper = torch.searchsorted(levels, logsnr.contiguous()).clamp(1, len(levels) - 1)
        share = ((logsnr - levels[upper - 1]) / (levels[upper] - levels[upper - 1])).clamp(0.0, 1.0)
        return self.eta * torch.lerp(errors[upper - 1], errors[upper], share)
