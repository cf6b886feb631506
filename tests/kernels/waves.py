"""Random waves that mix every rule, with their result by the paper's equations."""

from dataclasses import dataclass

import numpy as np
import paper_equations as paper
import torch
from torch import Tensor

from kernels import Column

RULES = ("ddim", "addim", "ancestral", "ddim last", "addim last", "ddim first")


@dataclass
class Wave:
    """One wave: the arguments of `hop`, and z_s in float64."""

    z_t: Tensor
    v: Tensor
    coefficients: Tensor
    v_uncond: Tensor | None
    noise: Tensor
    expected: np.ndarray

    def arguments(self, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
        """The positional arguments of the plain and the Triton version."""
        uncond = None if self.v_uncond is None else self.v_uncond.to(device)
        return self.z_t.to(device), self.v.to(device), self.coefficients.to(device), uncond, self.noise.to(device)


def make_wave(shape: tuple[int, ...], dtype: torch.dtype, *, guided: bool, seed: int = 0) -> Wave:
    """A wave of two samples of each rule, one of them clipped and (if guided) one guided; v is exact in dtype."""
    rng = np.random.default_rng(seed)
    batch = 2 * len(RULES)
    table = torch.zeros(batch, len(Column))
    z, v, u, noise = (torch.from_numpy(rng.standard_normal((batch, *shape))).float() for _ in range(4))
    v, u = v.to(dtype), u.to(dtype)
    expected = np.empty((batch, *shape))
    for i in range(batch):
        rule, clip = RULES[i % len(RULES)], i >= len(RULES)
        w = rng.uniform(0.5, 4.0) if guided and i % 2 else 0.0
        t = 1.0 if rule.endswith("first") else rng.uniform(0.02, 1.0)
        s = 0.0 if rule.endswith("last") else t * rng.uniform(0.1, 0.95)
        expected[i] = _fill(
            table[i], rule.split()[0], t, s, w, clip, *(a[i].double().numpy() for a in (z, v, u, noise))
        )
    return Wave(z, v, table, u if guided else None, noise, expected)


def _fill(
    row: Tensor,
    rule: str,
    t: float,
    s: float,
    w: float,
    clip: bool,
    z: np.ndarray,
    v: np.ndarray,
    u: np.ndarray,
    noise: np.ndarray,
) -> np.ndarray:
    """Write a row of the table and return the sample's z_s."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = times = paper.cosine(t), paper.cosine(s)
    x_var = 0.1 / (2 + alpha_t**2 / sigma_t**2)
    between = alpha_t / alpha_s
    out_noise = np.sqrt((sigma_t**2 - between**2 * sigma_s**2) * sigma_s**2) / sigma_t if rule == "ancestral" else 0.0
    row[Column.ALPHA_T], row[Column.SIGMA_T], row[Column.OUT_X] = alpha_t, sigma_t, alpha_s
    row[Column.OUT_EPS] = np.sqrt(sigma_s**2 - out_noise**2)
    row[Column.Z_VAR] = (alpha_s - alpha_t * sigma_s / sigma_t) ** 2 * x_var if rule == "addim" else 0.0
    row[Column.OUT_NOISE], row[Column.GUIDANCE], row[Column.CLIP] = out_noise, w, clip

    x, x_uncond = paper.x_from_v(v, z, *times[0]), paper.x_from_v(u, z, *times[0])
    x = x + w * (x - x_uncond)
    x = np.clip(x, -1, 1) if clip else x
    if rule == "addim":
        return paper.addim(x, z, x_var, *times[0], *times[1])
    if rule == "ancestral":
        return paper.ancestral(x, z, noise, *times[0], *times[1])
    return paper.ddim(x, z, *times[0], *times[1])


def worst_relative_error(result: Tensor, expected: np.ndarray) -> float:
    """The largest relative L2 error of a sample."""
    result64 = result.double().cpu().numpy().reshape(len(expected), -1)
    reference = expected.reshape(len(expected), -1)
    return float((np.linalg.norm(result64 - reference, axis=1) / np.linalg.norm(reference, axis=1)).max())
