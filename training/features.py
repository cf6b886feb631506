"""The judge: a small network whose features measure distance to real images and whose heads tell what an image shows.

It is trained on real images, whole and damaged, to read their labels and to tell how badly they are damaged: noisy, blurred, or
bent.  A network trained on labels alone learns to overlook just that, and then finds every sample as good as real.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from diffusion.family import FamilyError
from diffusion.files import file_sha256, write_tensors
from training.datasets import DataSet
from training.feed import feed, usual_workers

FEATURES = 64
JUDGE = "judge.safetensors"
_JUDGE_SEED = 7


class Judge(nn.Module):
    """Three strided convolutions, 64 features, one linear head per conditioning slot and one for the damage."""

    def __init__(self, channels: int, slots: tuple[int, ...]):
        super().__init__()
        widths = (channels, 32, 64, 96)
        layers: list[nn.Module] = []
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
            layers += [nn.Conv2d(after, after, 3, padding=1, stride=2), nn.BatchNorm2d(after), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * widths[-1], FEATURES))
        self.heads = nn.ModuleList(nn.Linear(FEATURES, values) for values in slots)
        self.damage = nn.Linear(FEATURES, 3)

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


def train_judge(data: DataSet, *, iterations: int = 4000, batch: int = 64) -> Judge:
    """Train a judge on real images, more than half of them whole, the others damaged in one to three ways.  Deterministic."""
    torch.manual_seed(_JUDGE_SEED)
    judge = Judge(data.channels, data.conditioning.sizes)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=1e-2)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=iterations)
    ahead = feed(data, batch=batch, seed=_JUDGE_SEED, iterations=range(iterations), workers=usual_workers(data))
    with ahead as batches:
        for x, condition in tqdm(batches, total=iterations, desc="training the judge", unit="step", mininterval=1):
            damage = torch.rand(batch, 3) * (torch.rand(batch, 3) < 0.5) * (torch.rand(batch, 1) < 0.5)
            x = damaged(x, damage)
            h = F.relu(judge.features(x))
            loss = 10 * F.mse_loss(judge.damage(h), damage)
            for slot, head in enumerate(judge.heads):
                # what an image does not have (a second shape) is nothing to read
                loss = loss + F.cross_entropy(head(h), condition[:, slot] - 1, ignore_index=-1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
    return judge.eval().requires_grad_(False)


def damaged(x: Tensor, amount: Tensor) -> Tensor:
    """Return images x (B, C, H, W) in [-1, 1] bent, blurred and made noisy, each by amount (B, 3) in [0, 1].

    At 1, a smooth random field moves points by about a twentieth of the image, the image is its 3x3 mean, and the noise
    has a standard deviation of 0.12.
    """
    batch, _, high, wide = x.shape
    bend, blur, noise = (amount[:, kind].view(-1, 1, 1, 1) for kind in range(3))
    upright = torch.eye(2, 3).expand(batch, -1, -1)
    field = F.interpolate(torch.randn(batch, 2, 6, 6), (high, wide), mode="bicubic").permute(0, 2, 3, 1)
    place = F.affine_grid(upright, list(x.shape), align_corners=False) + 0.1 * bend * field
    x = F.grid_sample(x, place, padding_mode="border", align_corners=False)
    x = torch.lerp(x, F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1), blur)
    return x + 0.12 * noise * torch.randn_like(x)


def family_judge(folder: Path, data: DataSet) -> Judge:
    """Return the judge kept in the family's folder, trained and written there if there is none yet."""
    judge = Judge(data.channels, data.conditioning.sizes).eval().requires_grad_(False)
    if (folder / JUDGE).exists():
        try:
            judge.load_state_dict(load_file(folder / JUDGE))
        except (SafetensorError, OSError, RuntimeError):
            raise FamilyError(
                f"{JUDGE} does not hold a judge of this data; remove it to have one trained anew"
            ) from None
        return judge
    judge = train_judge(data)
    write_tensors(folder, JUDGE, dict(judge.state_dict()))
    return judge


def describe_judge(folder: Path, judge: Judge, data: DataSet, *, count: int = 2000) -> str:
    """Say in one sentence what the judge is and how often it is right about `count` real images (fresh where data is endless)."""
    name = f"{FEATURES} features of a small convolutional network (sha256 {file_sha256(folder / JUDGE)[:12]})"
    name += f" trained on {data.name} to read labels and to tell damage"
    if not data.conditioning.sizes:
        return name
    x, condition = data.batch(0, count, seed=_JUDGE_SEED + 1)
    right = judge.agrees(x, condition).float().mean().item()
    return f"{name}, everything right on {right:.2%} of {count} real images"
