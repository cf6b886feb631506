"""How far pictures drawn in bf16 are from those drawn in fp32: `python -m benchmarks.networks.pictures --out FILE`."""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.record import record
from diffusion import provenance
from diffusion.family import Precision, open_family
from diffusion.sampler import sample

ROOT = Path(__file__).parents[2]
KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def pictures(folder: Path, precision: Precision, steps: int, count: int, device: str) -> Tensor:
    """Return images of one dial position, each of another seed and condition, uint8 (count, H, W, C)."""
    family = open_family(folder, precision)
    plan, manifest = family.positions[steps], family.manifest

    def called(network: Any, z: Tensor, logsnr: Tensor, condition: Tensor) -> Tensor:
        return network(z.to(KINDS[precision]), logsnr, condition)

    networks: Any = {name: partial(called, family.network(name, device)) for name in plan.members}
    conditions = [[1 + row % size for size in manifest.conditioning.sizes] for row in range(count)]
    return sample(
        networks,
        plan,
        manifest.schedule,
        torch.tensor(conditions, dtype=torch.int64),
        seeds=list(range(count)),
        indices=[0] * count,
        shape=manifest.shape,
        guidance=family.guidance(plan),
        told=family.told(plan.members[0]),
        variance=family.variance,
        decode=family.decoder(device),
        device=device,
    ).cpu()


def differences(folder: Path, steps: int, count: int, device: str) -> dict[str, Any]:
    """Return the differences of one dial position in levels of 255: the mean, the largest of an image's means, the largest."""
    full, half = (pictures(folder, precision, steps, count, device).int() for precision in ("fp32", "bf16"))
    levels = (full - half).abs().float()
    means = levels.mean(dim=(1, 2, 3))
    found = {"mean": levels.mean().item(), "largest_mean": means.max().item(), "largest": levels.max().item()}
    return {"steps": steps, "images": count} | found


def main() -> None:
    """Draw, compare, and write the result file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.networks.pictures", description=__doc__)
    parser.add_argument("--family", type=Path, default=ROOT / "families" / "shapes")
    parser.add_argument("--positions", default="1,2,4,8,16,32", help="dial positions")
    parser.add_argument("--count", type=int, default=8, help="images of each")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, required=True, help="result file")
    asked, _ = parser.parse_args(), provenance.commit()
    positions = [int(steps) for steps in asked.positions.split(",")]
    results = [differences(asked.family, steps, asked.count, asked.device) for steps in positions]
    settings = {"family": asked.family.name, "count": asked.count}
    record("benchmarks.networks.pictures", torch.device(asked.device), results, settings=settings).write(asked.out)


if __name__ == "__main__":
    main()
