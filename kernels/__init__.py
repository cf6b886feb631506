"""What happens to a latent between two network evaluations, and to activations between two matrix products.

Plain algebra on any device (`ddim`, `addim`, `inv_ddim`, `guide`, ...), the fused update of a whole wave (`hop`,
`last_hop`), seeded noise (`noise`), norms with what follows them (`norm`, `modulate`, `norm_heads`, with gradients), and
the distance from the training target with its gradient (`target_distance`).
All but the plain algebra run as Triton kernels on a GPU and as plain PyTorch elsewhere.

Notation: t in [0, 1] with 1 = noise, ``z_t = alpha_t * x + sigma_t * eps``, variance preserving, and the network
predicts ``v = alpha_t * eps - sigma_t * x``, so that ``x_hat = alpha_t * z_t - sigma_t * v`` and
``eps_hat = sigma_t * z_t + alpha_t * v``.
Equation numbers are those of Multistep Consistency Models (Heek, Hoogeboom, Salimans; arXiv 2403.06807).

transformers and diffusers probe for another package of this name: this file must import without Triton, must not raise
and must not carry a version attribute.
"""

from kernels.gaussian import noise
from kernels.heads import norm_heads
from kernels.modulation import modulate
from kernels.norms import norm
from kernels.prediction import clip_x, eps_from_v, guide, v_from_x_eps, x_from_v
from kernels.rules import addim, ddim, inv_ddim
from kernels.target import TargetColumn, target_distance
from kernels.wave import Column, hop, last_hop

__all__ = [
    "Column",
    "TargetColumn",
    "addim",
    "clip_x",
    "ddim",
    "eps_from_v",
    "guide",
    "hop",
    "inv_ddim",
    "last_hop",
    "modulate",
    "noise",
    "norm",
    "norm_heads",
    "target_distance",
    "v_from_x_eps",
    "x_from_v",
]
