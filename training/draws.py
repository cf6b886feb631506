"""Random numbers of a training step that belong to places of the global batch, not to the process that computes them.

The functions take any generator. A plain one stands for a whole batch; `Draws` for one share of a global batch, and gives
each place what it has in any other division of that batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from training.order import mixed_seed
from training.share import Share


class Draws(torch.Generator):
    """A generator for one share of a global batch.

    What is drawn from it with torch's own functions is this share's, and differs in another division of the batch.
    """

    def __new__(cls, device: torch.device | str, *, seed: int, share: Share) -> "Draws":
        """Make a generator on the device."""
        return super().__new__(cls, device)  # type: ignore[call-arg]

    def __init__(self, device: torch.device | str, *, seed: int, share: Share):
        """seed: the same for every share of the batch."""
        self.share, self._seed, self._calls = share, seed, 0
        self._common = torch.Generator(device).manual_seed(seed)
        self._image = torch.Generator(device)
        self._places = torch.tensor(share.places, device=device)
        self.manual_seed(mixed_seed(seed, share.index))

    def of_images(self, *columns: int) -> Tensor:
        """Return uniform numbers of each image of the share."""
        whole = torch.rand(self.share.batch, *columns, generator=self._common, device=self.device)
        return whole[self._places]

    def of_strata(self, count: int) -> Tensor:
        """Return stratified numbers of `count` images: of the whole share, or of its run of one part."""
        share = self.share
        whole = stratified_uniform(count * share.of, self._common)
        if count == share.size:
            return whole[self._places]
        return whole[share.index * count : (share.index + 1) * count]

    def of_pixels(self, shape: Sequence[int]) -> Tensor:
        """Return normal noise of each image of the share, (B, ...).

        Not `kernels.noise`, whose bits are the same on every device: on a CPU that takes several times as long.
        """
        self._calls += 1
        noise, seed = torch.empty(shape, device=self.device), mixed_seed(self._seed, self._calls)
        for image, place in zip(noise, self.share.places, strict=True):
            image.normal_(generator=self._image.manual_seed(mixed_seed(seed, place)))
        return noise


def uniform(count: int, *columns: int, generator: torch.Generator) -> Tensor:
    """Return uniform numbers in [0, 1) of each image of the batch, float32 (B, columns)."""
    if isinstance(generator, Draws):
        return generator.of_images(*columns)
    return torch.rand(count, *columns, generator=generator, device=generator.device)


def stratified_uniform(count: int, generator: torch.Generator) -> Tensor:
    """Return (B,) float64 in [0, 1): uniform, one from each of as many equal strata as the global batch has images, shuffled."""
    if isinstance(generator, Draws):
        return generator.of_strata(count)
    offsets = torch.rand(count, generator=generator, device=generator.device, dtype=torch.float64)
    return (torch.randperm(count, generator=generator, device=generator.device) + offsets) / count


def normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return standard normal noise of each image of the batch, float32 (B, ...)."""
    if isinstance(generator, Draws):
        return generator.of_pixels(shape)
    return torch.randn(shape, generator=generator, device=generator.device)
