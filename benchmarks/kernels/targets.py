"""Comparison of the training target, its distance and its gradient."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.kernels.comparison import OURS, Comparison, shape_name, size_of
from kernels import TargetColumn, target_distance

SHAPES = {"cpu": ((16, 3, 32, 32),), "cuda": ((64, 3, 64, 64), (512, 3, 64, 64), (64, 3, 128, 128))}
DTYPE = {"cpu": torch.float32, "cuda": torch.bfloat16}
EPSILON = 1e-4


def eager_distance(v: Tensor, z: Tensor, x_ref: Tensor, x_teacher: Tensor, table: Tensor) -> Tensor:
    """Return what `target_distance` does, as one would write it and training does."""
    alpha_t, sigma_t, lam, slope, sigma_s, z_var = (column[:, None, None, None] for column in table.unbind(1))
    eps_hat = (z - alpha_t * x_teacher) / sigma_t
    added = z_var / eps_hat.double().square().mean((1, 2, 3), keepdim=True).clamp(min=1e-8)
    excess = (added / ((sigma_s**2 + added).sqrt() + sigma_s) / sigma_s).float()
    x_target = torch.lerp(x_ref, x_teacher, lam) + slope * excess * eps_hat
    v_diff = v.float() - (alpha_t * z - x_target) / sigma_t
    return (v_diff.square().mean((1, 2, 3)) + EPSILON**2).sqrt() - EPSILON


def targets(device: torch.device) -> Iterator[Comparison]:
    """Distance and gradient, of an aDDIM teacher."""
    for shape in SHAPES[device.type]:
        rng = torch.Generator().manual_seed(0)
        v, z, x_ref, x_teacher = (torch.randn(shape, generator=rng).to(device) for _ in range(4))
        row = {
            TargetColumn.ALPHA_T: 0.6,
            TargetColumn.SIGMA_T: 0.8,
            TargetColumn.LAMBDA: 0.3,
            TargetColumn.SLOPE: 0.5,
            TargetColumn.SIGMA_S: 0.6,
            TargetColumn.Z_VAR: 0.005,
        }
        table = torch.tensor([[row[column] for column in TargetColumn]] * shape[0], device=device)
        leaf = v.to(DTYPE[device.type]).requires_grad_()
        rest = z, x_ref, x_teacher, table
        torch.compiler.reset()  # every shape has kernels of its own
        compiled = torch.compile(eager_distance, fullgraph=True, dynamic=False)

        def ours(v: Tensor, z: Tensor, x_ref: Tensor, x_teacher: Tensor, table: Tensor) -> Tensor:
            return target_distance(v, z, x_ref, x_teacher, table, epsilon=EPSILON)

        yield Comparison(
            "target",
            f"training target and gradient, {shape_name(shape, leaf.dtype)}",
            2 * size_of(leaf, z, x_ref, x_teacher) + size_of(leaf),
            {
                OURS: _with_gradient(ours, leaf, rest),
                "PyTorch": _with_gradient(eager_distance, leaf, rest),
                "torch.compile": _with_gradient(compiled, leaf, rest),
            },
            trains=True,
        )


def _with_gradient(
    function: Callable[..., Tensor], leaf: Tensor, rest: tuple[Tensor, ...]
) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: torch.autograd.grad(function(leaf, *rest).sum(), (leaf,))
