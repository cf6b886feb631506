"""Comparison of the FiLM layers of all of a network's blocks, one by one and in one matrix product."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernels.comparison import Comparison, shape_name, size_of

DTYPE = {"cpu": torch.float32, "cuda": torch.bfloat16}
EMBEDDING = {"cpu": 256, "cuda": 1024}
WIDTHS = {"cpu": (128,) * 4 + (1536,) * 4, "cuda": (512,) * 6 + (4096,) * 6 + (8192,) * 16}
"""What the layers make, of the bundled family's network and of imagenet64-small."""
BATCHES = {"cpu": (1, 4, 16), "cuda": (1, 8, 64)}


def films(device: torch.device) -> Iterator[Comparison]:
    """FiLM of every block for a wave of each size."""
    kind, dtype = device.type, DTYPE[device.type]
    layers = [
        (torch.randn(width, EMBEDDING[kind], device=device).to(dtype), torch.randn(width, device=device).to(dtype))
        for width in WIDTHS[kind]
    ]
    joined = torch.cat([weight for weight, _ in layers]), torch.cat([bias for _, bias in layers])
    for batch in BATCHES[kind]:
        embedding = torch.randn(batch, EMBEDDING[kind], device=device).to(dtype)

        def one_by_one(embedding: Tensor = embedding) -> list[Tensor]:
            return [F.linear(embedding, weight, bias) for weight, bias in layers]

        def together(embedding: Tensor = embedding) -> tuple[Tensor, ...]:
            return F.linear(embedding, *joined).split(WIDTHS[kind], dim=1)

        yield Comparison(
            "film",
            f"FiLM of {len(layers)} blocks, {shape_name((batch, sum(WIDTHS[kind])), dtype)}",
            size_of(*joined) + size_of(embedding) + batch * sum(WIDTHS[kind]) * embedding.element_size(),
            {"one by one": one_by_one, "in one product": together},
        )
