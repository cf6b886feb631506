"""The judge: a small network trained on real images of the data, whose features measure distance and whose heads obedience."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from diffusion.family import file_sha256, write_tensors
from training.datasets import DataSet

FEATURES = 64
JUDGE = "judge.safetensors"
_JUDGE_SEED = 7


class Judge(nn.Module):
    """Three strided convolutions, 64 features, and one linear head per conditioning slot."""

    def __init__(self, channels: int, slots: tuple[int, ...]):
        super().__init__()
        widths = (channels, 32, 64, 96)
        layers: list[nn.Module] = []
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
            layers += [nn.Conv2d(after, after, 3, padding=1, stride=2), nn.BatchNorm2d(after), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * widths[-1], FEATURES))
        self.heads = nn.ModuleList(nn.Linear(FEATURES, values) for values in slots)

    def features(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) in [-1, 1] -> (B, 64)."""
        return self.body(x)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return each slot's logits, (B, values)."""
        h = F.relu(self.features(x))
        return [head(h) for head in self.heads]

    def agrees(self, x: Tensor, condition: Tensor) -> Tensor:
        """Tell for each image (B,) whether every slot that the condition (B, slots) names is seen in it."""
        right = [
            (condition[:, slot] == 0) | (logits.argmax(1) + 1 == condition[:, slot])
            for slot, logits in enumerate(self(x))
        ]
        return torch.stack(right).all(0)


def train_judge(data: DataSet, *, iterations: int = 1500, batch: int = 64) -> Judge:
    """Train a judge on real images, a little noise added so that it does not lean on exact flatness.  Deterministic.

    Where nothing is asked for there is nothing to learn from, and the features stay those of random weights.
    """
    torch.manual_seed(_JUDGE_SEED)
    judge = Judge(data.channels, data.conditioning.sizes)
    if not data.conditioning.sizes:
        return judge.eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=1e-2)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=iterations)
    for step in tqdm(range(iterations), desc="training the judge", unit="step", mininterval=1):
        x, condition = data.batch(step * batch, batch, seed=_JUDGE_SEED)
        x = x + 0.03 * torch.randn_like(x)
        loss = torch.stack(
            [F.cross_entropy(logits, condition[:, slot] - 1) for slot, logits in enumerate(judge(x))]
        ).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
    return judge.eval().requires_grad_(False)


def family_judge(folder: Path, data: DataSet) -> Judge:
    """Return the judge kept in the family's folder, trained and written there if there is none yet."""
    judge = Judge(data.channels, data.conditioning.sizes).eval().requires_grad_(False)
    if (folder / JUDGE).exists():
        judge.load_state_dict(load_file(folder / JUDGE))
        return judge
    judge = train_judge(data)
    write_tensors(folder, JUDGE, dict(judge.state_dict()))
    return judge


def describe_judge(folder: Path, judge: Judge, data: DataSet, *, count: int = 2000) -> str:
    """Say in one sentence what the judge is and how often it is right about `count` real images (fresh where data is endless)."""
    name = f"{FEATURES} features of a small convolutional network (sha256 {file_sha256(folder / JUDGE)[:12]})"
    if not data.conditioning.sizes:
        return f"{name} with random weights"
    x, condition = data.batch(0, count, seed=_JUDGE_SEED + 1)
    right = judge.agrees(x, condition).float().mean().item()
    return f"{name} trained on {data.name}, everything right on {right:.2%} of {count} real images"


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Frechet distance of two feature sets (N, D), (M, D) taken as Gaussians; float64.

    |m_a - m_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2), the root through eigenvalues.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)
