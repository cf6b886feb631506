"""What a network does between its matrix products: norm, FiLM, skip connection, SiLU; each stretch one kernel on a GPU.

Elsewhere it is PyTorch's own layers, one after another.  Both take the same parameters, so a state dict is the same.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import modulate, norm, norm_heads
from kernels.backend import uses_triton


def fuses(x: Tensor, *, over_rows: bool = False) -> bool:
    """Return whether this stretch is one kernel of ours: on a GPU with Triton.

    torch.compile makes as good a kernel of anything that goes row by row, and can join it to its neighbours, so there only
    norms over all rows of a sample (`over_rows`, GroupNorm) are ours.  (An expectation; benchmarks/kernels measures it.)
    """
    return uses_triton(x) and (over_rows or not torch.compiler.is_compiling())


def tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H*W, C); a view when memory is channels-last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def image(x: Tensor, height: int, width: int) -> Tensor:
    """(B, H*W, C) -> (B, C, H, W) in channels-last memory."""
    return x.unflatten(1, (height, width)).permute(0, 3, 1, 2)


def normed(
    layer: nn.LayerNorm | nn.GroupNorm,
    x: Tensor,
    *,
    film: Tensor | None = None,
    addend: Tensor | None = None,
    silu: bool = False,
) -> Tensor:
    """Return layer(x), with FiLM, or joined with a normed skip connection, and through SiLU, as asked.

    x: images (B, C, H, W) or tokens (B, N, C); film: scale and shift, (B, 2C), of images; addend: x's shape.
    """
    groups = layer.num_groups if isinstance(layer, nn.GroupNorm) else None
    if fuses(x, over_rows=groups is not None):
        is_image = x.ndim == 4
        n = norm(
            tokens(x) if is_image else x,
            layer.weight,
            layer.bias,
            eps=layer.eps,
            groups=groups,
            film=film,
            addend=tokens(addend) if is_image and addend is not None else addend,
            silu=silu,
            dtype=_dtype(x),
        )
        return image(n, *x.shape[2:]) if is_image else n
    n = layer(x)
    if addend is not None:
        n = (n + addend) * math.sqrt(0.5)
    if film is not None:
        scale, shift = film[:, :, None, None].chunk(2, dim=1)
        n = n * (1 + scale) + shift
    return F.silu(n) if silu else n


def modulated(hidden: Tensor, film: Tensor) -> Tensor:
    """Return silu(hidden) * (1 + scale) + shift.  hidden: tokens (B, N, C); film: scale and shift, (B, 2C)."""
    if fuses(hidden):
        return modulate(hidden, film)
    scale, shift = film[:, None].chunk(2, dim=-1)
    return F.silu(hidden) * (1 + scale) + shift


def normed_heads(qkv: Tensor, norm_q: nn.LayerNorm, norm_k: nn.LayerNorm) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries and keys, normed head by head, and values, each (B, H, N, D), of their layer's output (B, N, 3HD)."""
    q, k, v = qkv.unflatten(2, (3, -1, norm_q.normalized_shape[0])).permute(2, 0, 3, 1, 4)
    if fuses(qkv):
        q, k = norm_heads(qkv, norm_q.weight, norm_q.bias, norm_k.weight, norm_k.bias, eps=norm_q.eps)
        return q.transpose(1, 2), k.transpose(1, 2), v
    return norm_q(q), norm_k(k), v


def _dtype(x: Tensor) -> torch.dtype:
    """What the next matrix product takes: autocast's dtype where it is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
