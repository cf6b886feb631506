"""Random stretches of a network between two matrix products, computed by PyTorch's own layers in float64."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-6
FOLLOWING = ("bare", "silu", "film, silu", "skip, silu")


@dataclass
class Stretch:
    """Arguments of `norm`, exact in their dtype."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    film: Tensor | None
    addend: Tensor | None
    groups: int
    silu: bool

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are there, by name."""
        named = {name: getattr(self, name) for name in ("x", "weight", "bias", "film", "addend")}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def moved(self, device: str) -> tuple[Tensor | None, ...]:
        """x, weight, bias, film and addend on a device."""
        tensors = (self.x, self.weight, self.bias, self.film, self.addend)
        return tuple(None if tensor is None else tensor.to(device) for tensor in tensors)

    def reference(self, gradient: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The result and its gradients in float64, through torch.nn.functional."""
        given = {name: tensor.double().requires_grad_() for name, tensor in self.tensors().items()}
        x, weight, bias = given["x"], given["weight"], given.get("bias")
        if self.groups:
            n = F.group_norm(x.transpose(1, 2), self.groups, weight, bias, EPS).transpose(1, 2)
        else:
            n = F.layer_norm(x, weight.shape, weight, bias, EPS)
        if self.addend is not None:
            n = (n + given["addend"]) * math.sqrt(0.5)
        if self.film is not None:
            scale, shift = given["film"][:, None].chunk(2, dim=2)
            n = n * (1 + scale) + shift
        y = F.silu(n) if self.silu else n
        y.backward(gradient.double())
        return y.detach(), {name: tensor.grad for name, tensor in given.items()}


def make_stretch(
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    following: str,
    *,
    groups: int = 0,
    biased: bool = True,
    offset: float = 3.0,
    seed: int = 0,
) -> Stretch:
    """A stretch of (B, N, C) whose channels differ in mean and size; weights stay float32, as under autocast."""
    rng = torch.Generator().manual_seed(seed)
    batch, _, channels = shape

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=rng)

    return Stretch(
        x=((normal(*shape) + offset) * (1 + normal(channels).abs())).to(dtype),
        weight=1 + 0.3 * normal(channels),
        bias=0.3 * normal(channels) if biased else None,
        film=(0.5 * normal(batch, 2 * channels)).to(dtype) if "film" in following else None,
        addend=normal(*shape).to(dtype) if "skip" in following else None,
        groups=groups,
        silu="silu" in following,
    )


def relative_error(result: Tensor, expected: Tensor) -> float:
    """The relative L2 error."""
    return float((result.cpu().double() - expected.double()).norm() / expected.double().norm())


def tolerance(dtype: torch.dtype) -> float:
    """float32 arithmetic, and the rounding of the result."""
    return {torch.float32: 1e-6, torch.float16: 3e-4, torch.bfloat16: 2.1e-3}[dtype]
