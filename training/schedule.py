"""How long and how fast to train: what all trainings have among their settings."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Schedule(BaseModel):
    """How long and how fast to train."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    iterations: int = Field(default=20_000, ge=1)
    """Optimiser steps."""
    batch: int = Field(default=32, ge=1)
    """Images per step, over all processes and turns."""
    lr: float = Field(default=6e-4, gt=0)
    """Peak learning rate of AdamW."""
    warmup: int = Field(default=150, ge=0)
    """Iterations of linear warm-up."""
    decay_from: float = Field(default=0.5, ge=0, le=1)
    """Fraction of the iterations after which the rate falls linearly to 0; 1 keeps it constant."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's weight decay."""
    clip: float = Field(default=1.0, gt=0)
    """Largest gradient norm."""
    ema: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the exponential moving average that is evaluated and shipped; warmed up as (1 + i) / (10 + i)."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of weights, data order, times, noise and dropout."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Network arithmetic (autocast): auto is bf16 where the hardware computes it, fp32 elsewhere, where bf16 is emulated and
    slow; targets and losses are always float32 or better."""

    def rate(self, iteration: int) -> float:
        """Return the learning rate of an iteration."""
        warm = min(1.0, (iteration + 1) / max(1, self.warmup))
        start = self.decay_from * self.iterations
        left = 1.0 if iteration < start else (self.iterations - iteration) / max(1.0, self.iterations - start)
        return self.lr * warm * left
