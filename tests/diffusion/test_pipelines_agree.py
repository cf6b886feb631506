"""Whole pipelines of diffusers and the families imported from them: equal noise and equal wishes give equal images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from torch import Tensor

from diffusion.family import Family
from diffusion.plans import plan
from diffusion.sampler import follow
from kernels import noise
from tests.checkpoints import write_dit, write_stable, write_xl
from training.checkpoint import Checkpoint
from training.importing import import_family

STEPS, PROMPT = 4, "a cat, a mat"


def drawn_here(family: Family, z: Tensor, wish: dict[str, Any], guidance: float, times: list[float]) -> np.ndarray:
    """Images of latents z by DDIM through these times."""
    condition = torch.tensor([family.manifest.conditioning.encode(**wish)] * len(z))
    return follow(
        {"teacher": family.network("teacher")},
        plan("teacher", times).hops,
        family.manifest.schedule,
        z,
        condition,
        seeds=[0] * len(z),
        indices=range(len(z)),
        guidance=guidance,
        decode=family.decoder(),
    ).numpy()


KINDS: dict[str, tuple[Callable[[Path], Path], dict[str, Any], dict[str, Any]]] = {
    "dit": (write_dit, {"class_labels": [1, 1]}, {"label": "goldfish"}),
    "stable": (write_stable, {"prompt": PROMPT, "num_images_per_prompt": 2}, {"prompt": PROMPT}),
    "xl": (write_xl, {"prompt": PROMPT, "num_images_per_prompt": 2}, {"prompt": PROMPT}),
}


@pytest.fixture(scope="module", params=KINDS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Family]:
    """A pipeline, and the family imported from its folder."""
    folder = tmp_path_factory.mktemp(request.param)
    KINDS[request.param][0](folder / "pipeline")
    family = import_family(Checkpoint(folder / "pipeline"), folder / "family")
    return request.param, DiffusionPipeline.from_pretrained(folder / "pipeline"), family


@pytest.mark.parametrize("guidance", [0.0, 3.0])
def test_a_pipeline_and_its_family_draw_the_same_images(both: tuple[str, Any, Family], guidance: float) -> None:
    kind, pipeline, family = both
    _, asked, wish = KINDS[kind]
    pipeline.set_progress_bar_config(disable=True)
    told = {"timestep_spacing": "trailing", "clip_sample": False, "set_alpha_to_one": True}
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, **told)
    pipeline.scheduler.set_timesteps(STEPS)
    levels = family.manifest.teacher.network.timesteps.logsnr
    times = family.manifest.schedule.time(levels[pipeline.scheduler.timesteps])
    z = noise([3, 3], [0, 1], (4, 4, 4))
    if kind == "dit":  # takes no latents, but draws them by a generator
        asked = asked | {"generator": torch.Generator().manual_seed(3)}
        z = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(3))
    else:
        asked = asked | {"latents": z}
    theirs = pipeline(**asked, guidance_scale=1 + guidance, num_inference_steps=STEPS, output_type="np").images
    assert times[0].item() == pytest.approx(1.0, abs=1e-9)
    ours = drawn_here(family, z, wish, guidance, [1.0, *times[1:].tolist(), 0.0])
    assert ours.std() > 5 and np.abs(theirs * 255 - ours).max() <= 0.6  # one of the two is rounded
