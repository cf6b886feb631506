"""The stage between latents and pixels of a family that diffuses in latents: diffusers' AutoencoderKL."""

import torch
from pydantic import BaseModel, ConfigDict, JsonValue
from torch import Tensor

from diffusion.backbone import library_class

ENCODED = 8
"""Images that are encoded at a time."""


class AutoencoderConfig(BaseModel):
    """Everything needed to build an autoencoder; it is stored in the family."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    settings: dict[str, JsonValue]
    """The library's configuration, complete."""

    @property
    def factor(self) -> int:
        """How many pixels one latent stands for, in height and in width."""
        blocks = self.settings["block_out_channels"]
        return 2 ** (len(blocks) - 1) if isinstance(blocks, list) else 1

    @property
    def channels(self) -> tuple[int, int]:
        """Channels of a latent and of an image."""
        return int(str(self.settings["latent_channels"])), int(str(self.settings["out_channels"]))

    @property
    def scale(self) -> tuple[float, float]:
        """(factor, shift) of latents as networks see them: (what the encoder says - shift) * factor."""
        factor, shift = self.settings.get("scaling_factor"), self.settings.get("shift_factor")
        return float(str(factor or 1.0)), float(str(shift or 0.0))


class Autoencoder:
    """Decodes latents one at a time, so that the bits of an image do not depend on others, nor memory on their number."""

    def __init__(self, config: AutoencoderConfig, weights: dict[str, Tensor], device: torch.device | str):
        """Raises RuntimeError when the weights are not the configured network's, LibraryMissing without diffusers."""
        self.config = config
        with torch.device("meta"):
            network = library_class("AutoencoderKL").from_config(dict(config.settings))
        network.load_state_dict(weights, assign=True)
        self.network = network.to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Return the images of latents z (B, C, H, W), uint8 (B, height, width, channels), as `kernels.last_hop` rounds."""
        factor, shift = self.config.scale
        images = [self.network.decode(one / factor + shift, return_dict=False)[0] for one in z.float().split(1)]
        level = torch.cat(images) * 127.5 + 127.5
        level = level.clamp(0.0, 255.0).nan_to_num(0.0).round()
        return level.to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Return the latents of images x (B, channels, height, width) in [-1, 1]: the mean of the posterior."""
        factor, shift = self.config.scale
        means = [self.network.encode(one, return_dict=False)[0].mean for one in x.float().split(ENCODED)]
        return (torch.cat(means) - shift) * factor
