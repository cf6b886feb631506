"""Training in latents: a loss of latents as one of images, which a frozen autoencoder encodes."""

import torch
from torch import Tensor, nn

from diffusion.autoencoder import Autoencoder
from training.run import Loss


def in_latents(loss: Loss, autoencoder: Autoencoder | None) -> Loss:
    """Return a loss of latents as one of images; a loss of pixels, where there is no autoencoder, as it is."""
    if autoencoder is None:
        return loss

    def encoded(network: nn.Module, x: Tensor, condition: Tensor, iteration: int, generator: torch.Generator) -> Tensor:
        return loss(network, autoencoder.encode(x), condition, iteration, generator)

    return encoded
