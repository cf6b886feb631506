"""A loop over fixed memory draws what the sampler draws, batch after batch."""

from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion.capture import cuda_graphs
from diffusion.loop import Loop
from diffusion.plans import teacher_plan
from diffusion.sampler import sample
from diffusion.schedule import CosineSchedule
from diffusion.uvit import PRESETS, UViT
from diffusion.variance import analytic_variance
from tests.diffusion.captures import fixed_memory

SCHEDULE = CosineSchedule(image_resolution=8, noise_resolution=8)
SHAPE = (1, 8, 8)
RULES = ["ddim", "addim", "ancestral", "noise_ddim", "heun"]


def network(device: str = "cpu") -> UViT:
    torch.manual_seed(0)
    made = UViT(PRESETS["debug"].model_copy(update={"slots": (3,)})).eval()
    torch.nn.init.normal_(made.conv_out.weight, std=0.1)
    return made.to(device)


def both(rule: str, guidance: float, capture: Any, device: str = "cpu") -> list[tuple[Tensor, Tensor]]:
    """Two batches, drawn by one loop and by the sampler."""
    networks: Any = {"m": network(device)}
    plan, asked = teacher_plan("m", 4, rule=rule), {"guidance": guidance, "variance": analytic_variance}  # type: ignore[arg-type]
    loop = Loop(networks, plan, SCHEDULE, batch=2, columns=1, shape=SHAPE, device=device, capture=capture, **asked)
    pairs = []
    for seeds in ([5, 2**62], [6, 6]):
        condition, who = torch.tensor([[1], [3]]), {"seeds": seeds, "indices": [0, 1]}
        alone = sample(networks, plan, SCHEDULE, condition, shape=SHAPE, device=device, **asked, **who)  # type: ignore[arg-type]
        pairs.append((loop.draw(condition, **who), alone))
    return pairs


@pytest.mark.parametrize("guidance", [0.0, 2.0])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("capture", [None, fixed_memory], ids=["evaluated", "recorded"])
def test_a_loop_draws_what_the_sampler_draws(rule: str, guidance: float, capture: Any) -> None:
    pairs = both(rule, guidance, capture)
    assert all(torch.equal(one, other) for one, other in pairs) and not torch.equal(pairs[0][0], pairs[1][0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("rule", RULES)
def test_on_a_gpu_a_whole_loop_is_one_graph(rule: str) -> None:
    assert all(torch.equal(one, other) for one, other in both(rule, 2.0, cuda_graphs("cuda"), "cuda"))
