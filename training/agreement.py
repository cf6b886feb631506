"""How nearly a family imported from diffusers computes what diffusers does: `python -m training.agreement FOLDER ... --out FILE`.

The same latents go through the pipeline's own parts and `DDIMScheduler`, and through the family; both in float32.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion import provenance
from diffusion.backbone import Backbone, library_class
from diffusion.family import Family
from diffusion.plans import plan
from diffusion.sampler import follow
from diffusion.schedule import alpha_sigma_from_logsnr
from kernels import eps_from_v, noise, x_from_v
from training.checkpoint import Checkpoint
from training.importing import import_family

STEPS = (1, 4, 20)
PROMPT = "a cat"
IMAGES = 2
Said = Callable[[Tensor, Tensor], Tensor]
"""(z_t, timestep) -> what the pipeline's network predicts."""


@torch.no_grad()
def agreement(folder: Path) -> dict[str, Any]:
    """Return the largest differences of one network evaluation and of DDIM trajectories, unguided."""
    with tempfile.TemporaryDirectory() as scratch:
        family = import_family(Checkpoint(folder), Path(scratch) / "imported")
        pipeline = library_class("DiffusionPipeline").from_pretrained(folder)
        network = family.network("teacher")
        assert isinstance(network, Backbone)
        said = _said(pipeline, network)
        z = noise([0] * IMAGES, range(IMAGES), family.manifest.shape)
        return {
            "pipeline": type(pipeline).__name__,
            "network": network.config.architecture,
            "predicts": network.config.prediction,
            "parameters": family.manifest.members[0].parameters,
            "evaluation": _evaluation(network, said, z, _condition(family)),
            "ddim": [_trajectory(family, network, pipeline, said, z, steps) for steps in STEPS],
        }


def _evaluation(network: Backbone, said: Said, z: Tensor, condition: Tensor) -> dict[str, float]:
    """What the network says at five timesteps, and as v says it said it."""
    levels, largest, size = network.config.timesteps.logsnr, 0.0, 0.0
    for timestep in torch.linspace(1, len(levels) - 1, 5).long():
        logsnr = levels[timestep].float()
        alpha, sigma = (part.item() for part in alpha_sigma_from_logsnr(levels[timestep]))
        v = network(z, logsnr.expand(len(z)), condition)
        again = {"epsilon": eps_from_v, "sample": x_from_v}.get(network.config.prediction)
        ours = again(v, z, alpha_t=alpha, sigma_t=sigma) if again else v
        theirs = said(z, timestep)
        largest = max(largest, (ours - theirs).abs().max().item())
        size = max(size, theirs.abs().max().item())
    return {"largest_difference": largest, "largest_value": size}


def _trajectory(
    family: Family, network: Backbone, pipeline: Any, said: Said, z: Tensor, steps: int
) -> dict[str, float]:
    """Where so many DDIM steps lead."""
    told = {"timestep_spacing": "trailing", "clip_sample": network.config.clip, "set_alpha_to_one": True}
    scheduler = library_class("DDIMScheduler").from_config(pipeline.scheduler.config, **told)
    scheduler.set_timesteps(steps)
    times = family.manifest.schedule.time(network.config.timesteps.logsnr[scheduler.timesteps])
    way = plan("teacher", [1.0, *times[1:].tolist(), 0.0], clip=network.config.clip)
    ours = follow(
        {"teacher": network},
        way.hops,
        family.manifest.schedule,
        z,
        _condition(family),
        seeds=[0] * len(z),
        indices=range(len(z)),
        decode=lambda x_hat: x_hat,
    )
    theirs = z
    for timestep in scheduler.timesteps:
        step = scheduler.step(said(theirs, timestep), timestep, theirs, use_clipped_model_output=True)
        theirs = step.prev_sample
    found = {"steps": steps, "largest_difference": (ours - theirs).abs().max().item()}
    found["largest_value"] = theirs.abs().max().item()
    decode = family.decoder()
    if decode:
        images = pipeline.vae.decode(theirs / pipeline.vae.config.scaling_factor).sample
        levels = (images * 127.5 + 127.5).clamp(0, 255).permute(0, 2, 3, 1)
        found["levels_of_255_with_rounding"] = (decode(ours) - levels).abs().max().item()
    return found


def _condition(family: Family) -> Tensor:
    wishes = {"none": {}, "label": {"label": 1}, "text": {"prompt": PROMPT}}
    asked = family.manifest.conditioning.encode(**wishes[family.manifest.conditioning.kind])  # type: ignore[arg-type]
    return torch.tensor([asked] * IMAGES, dtype=torch.int64)


def _said(pipeline: Any, network: Backbone) -> Said:
    """The pipeline's own network, asked for the same."""
    labels = {"class_labels": torch.ones(IMAGES, dtype=torch.int64)} if network.config.slots else {}
    if network.config.architecture == "UNet2DModel":
        return lambda z, timestep: pipeline.unet(z, timestep, **labels).sample
    if network.config.architecture == "DiTTransformer2DModel":
        channels = network.config.channels
        return lambda z, t: pipeline.transformer(z, timestep=t.expand(len(z)), **labels).sample[:, :channels]
    told: dict[str, Any] = {"prompt": PROMPT, "device": "cpu", "num_images_per_prompt": IMAGES}
    words = pipeline.encode_prompt(**told, do_classifier_free_guidance=False)
    asked = {"encoder_hidden_states": words[0]}
    if len(network.config.tokens) == 2:
        size = network.config.resolution * pipeline.vae_scale_factor
        where = torch.tensor([[size, size, 0, 0, size, size]], dtype=torch.float32).expand(IMAGES, -1)
        asked["added_cond_kwargs"] = {"text_embeds": words[2], "time_ids": where}
    return lambda z, timestep: pipeline.unet(z, timestep, **asked).sample


def main() -> None:
    """Compare pipelines and write the result."""
    parser = argparse.ArgumentParser(prog="python -m training.agreement", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="pipeline folders")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    chosen = parser.parse_args()
    result = {
        "command": f"python -m training.agreement {' '.join(folder.name for folder in chosen.folders)}",
        "commit": provenance.commit(),
        "device": provenance.device_name(torch.device("cpu")),
        "versions": provenance.versions() | {"diffusers": str(library_class("__version__"))},
        "measured_at": provenance.now(),
        "pipelines": {folder.name: agreement(folder) for folder in chosen.folders},
    }
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
