"""Text encoders of families that take prompts of any words: from tokens to what a network attends to, once a prompt."""

from functools import lru_cache
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from torch import Tensor

from diffusion.backbone import LibraryMissing

TextArchitecture = Literal["CLIPTextModel", "CLIPTextModelWithProjection"]
"""Names of the classes of transformers that can read prompts."""
KEPT = 256
"""Prompts whose encoding is kept; of SDXL's they take 160 MB."""


class EncoderConfig(BaseModel):
    """Everything needed to build one text encoder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: TextArchitecture
    """Name of the class of transformers."""
    settings: dict[str, JsonValue]
    """That library's configuration of it, complete."""


class TextConfig(BaseModel):
    """How prompts are read: by one encoder as in Stable Diffusion 1 and 2, or by two as in SDXL."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoders: tuple[EncoderConfig, ...] = Field(min_length=1, max_length=2)
    nothing: tuple[int, ...]
    """The condition of an empty prompt, which stands for no prompt; also what a token that is hidden becomes."""
    zeros: bool = False
    """Whether no prompt is all zeros instead, as in SDXL."""


class TextEncoder:
    """Encodes prompts one at a time, so that what a prompt becomes does not depend on others, and keeps the last KEPT."""

    def __init__(self, config: TextConfig, weights: dict[str, Tensor], *, pixels: int):
        """weights: of encoder i, under i followed by a dot.  pixels: height and width of the images, which SDXL is told.

        Raises RuntimeError when the weights are not the configured encoders', LibraryMissing without transformers.
        """
        self.config, self._device = config, torch.device("cpu")
        self.encoders = [_built(encoder, _under(f"{index}.", weights)) for index, encoder in enumerate(config.encoders)]
        self._size = torch.tensor([[pixels, pixels, 0, 0, pixels, pixels]], dtype=torch.float32)
        self._read = lru_cache(KEPT)(self._encode)

    def embed(self, condition: Tensor, device: torch.device) -> dict[str, Any]:
        """Return what a UNet2DConditionModel takes for conditions (B, tokens), on the device, where the encoders then stay."""
        if device != self._device:
            self.encoders = [encoder.to(device) for encoder in self.encoders]
            self._size, self._device = self._size.to(device), device
            self._read.cache_clear()
        read = [self._read(tuple(row)) for row in condition.tolist()]
        asked: dict[str, Any] = {"encoder_hidden_states": torch.cat([hidden for hidden, _ in read])}
        if len(self.encoders) == 2:
            pooled = torch.cat([pooled for _, pooled in read])
            asked["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": self._size.expand(len(read), -1)}
        return asked

    @torch.no_grad()
    def _encode(self, condition: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """One prompt's (1, tokens, width) and pooled (1, width) encodings, float32 also under autocast."""
        named = [value or nothing for value, nothing in zip(condition, self.config.nothing, strict=True)]
        tokens = torch.tensor([named], device=self._device) - 1
        parts = tokens.chunk(len(self.encoders), dim=1)
        with torch.autocast(self._device.type, enabled=False):
            if len(self.encoders) == 1:
                hidden = self.encoders[0](tokens)[0]
                return hidden, hidden[:, :0, 0]
            said = [
                encoder(part, output_hidden_states=True) for encoder, part in zip(self.encoders, parts, strict=True)
            ]
        hidden, pooled = torch.cat([one.hidden_states[-2] for one in said], dim=-1), said[1][0]
        if self.config.zeros and not any(condition):
            return torch.zeros_like(hidden), torch.zeros_like(pooled)
        return hidden, pooled


def text_class(name: str) -> Any:
    """Return a class of transformers by its name.  Raises LibraryMissing where transformers is not installed."""
    try:
        import transformers
    except ModuleNotFoundError:
        raise LibraryMissing from None
    return getattr(transformers, name)


def _built(config: EncoderConfig, weights: dict[str, Tensor]) -> Any:
    kind = text_class(config.architecture)
    encoder = kind(kind.config_class(**config.settings))
    encoder.load_state_dict(weights)
    return encoder.eval().requires_grad_(False)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
