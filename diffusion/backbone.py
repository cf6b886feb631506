"""Networks that come from diffusers, with the one call of this project: v = backbone(z_t, logsnr_t, condition).

The network itself is the library's, its weights and its arithmetic untouched.  Around it, log SNR becomes the timestep that
has it, the condition becomes what the architecture takes, and its prediction (noise, image or v) becomes v.  A student for
the whole dial adds its segment count to the time embedding, and one that is told its guidance w adds that; both begin as zeros.
"""

import math
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, JsonValue, model_validator
from torch import Tensor, nn

from diffusion.condition import GUIDANCE_PARTS
from diffusion.schedule import alpha_sigma_from_logsnr
from diffusion.timesteps import TimestepTable, timesteps_at

if TYPE_CHECKING:
    from diffusion.text import TextEncoder

Architecture = Literal["UNet2DModel", "DiTTransformer2DModel", "UNet2DConditionModel"]
"""Names of the library's classes that can be a backbone."""
Prediction = Literal["epsilon", "sample", "v_prediction"]
"""What a checkpoint's network says, in the library's words: the noise, the image, or v."""


BLOCKS: dict[Architecture, tuple[str, ...]] = {
    "UNet2DModel": ("ResnetBlock2D", "Attention"),
    # the network itself asks the first block's embedding, which so must be whole without its block
    "DiTTransformer2DModel": ("BasicTransformerBlock", "CombinedTimestepLabelEmbeddings"),
    "UNet2DConditionModel": ("ResnetBlock2D", "BasicTransformerBlock"),
}
"""Classes of the blocks that each architecture is made of, which the library names for one of them alone."""


class LibraryMissing(Exception):
    """What came from diffusers needs diffusers, which is not installed here."""

    def __init__(self) -> None:
        super().__init__("its networks are diffusers', which is not installed; pip install -e '.[diffusers]'")


class BackboneConfig(BaseModel):
    """Everything needed to build a backbone; it is stored in the family and, with the library, alone rebuilds the network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: Architecture
    settings: dict[str, JsonValue]
    """The library's configuration of the network, complete; of labels it counts one more, row 0, which means none."""
    prediction: Prediction = "epsilon"
    timesteps: TimestepTable
    clip: bool = False
    """Whether a teacher's x_hat is clipped to [-1, 1], as the checkpoint's own scheduler does; never in latents."""
    tokens: tuple[tuple[int, int], ...] = ()
    """(tokens, vocabulary) of each text encoder that a prompt goes through; empty for networks without text."""
    segments: tuple[int, ...] = ()
    """Segment counts that one network for the whole dial was trained for, as in UViTConfig."""
    guidance: tuple[float, float] | None = None
    """Range of the guidance w that the network is told and was trained for; None for networks that are not told it."""

    @model_validator(mode="after")
    def _fits(self) -> "BackboneConfig":
        size, channels = self.settings.get("sample_size"), self.settings.get("in_channels")
        if not isinstance(size, int) or not isinstance(channels, int):
            raise ValueError(f"sample_size and in_channels must be whole numbers, got {size!r} and {channels!r}")
        counts = self.segments
        if counts and (counts != tuple(sorted(set(counts))) or counts[0] < 0 or counts[-1] == 0):
            raise ValueError(f"segments must be rising counts, got {counts}")
        if self.guidance and not 0.0 <= self.guidance[0] < self.guidance[1]:
            raise ValueError(f"guidance must be a range that rises from 0 or more, got {self.guidance}")
        return self

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    @property
    def resolution(self) -> int:
        """Height and width of a latent."""
        return int(str(self.settings["sample_size"]))

    @property
    def channels(self) -> int:
        """Channels of a latent."""
        return int(str(self.settings["in_channels"]))

    @property
    def slots(self) -> tuple[int, ...]:
        """Number of values of each conditioning slot: of a label, or of every token of a prompt; value 0 means none."""
        if self.tokens:
            return tuple(vocabulary for length, vocabulary in self.tokens for _ in range(length))
        known = {"UNet2DModel": "num_class_embeds", "DiTTransformer2DModel": "num_embeds_ada_norm"}
        rows = self.settings.get(known.get(self.architecture, ""))
        if not isinstance(rows, int):
            return ()
        return (rows - 1,) if self.architecture == "UNet2DModel" else (rows,)


class Backbone(nn.Module):
    """A network of diffusers.  v = Backbone(z_t, logsnr_t, condition); builds under ``torch.device("meta")``."""

    text: "TextEncoder | None" = None
    """What reads prompts; shared by the networks of a family, none of their weights.  The family gives it."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.config = config
        self.network: Any = library_class(config.architecture).from_config(dict(config.settings))
        self._levels = config.timesteps.logsnr
        self._counts = tuple(count for count in config.segments if count)
        self._told: Tensor | None = None
        self._no_split_modules = BLOCKS[config.architecture]
        embeddings = self._time_embeddings()
        width = embeddings[0].linear_2.out_features
        self.segments = nn.Embedding(len(self._counts) + 1, width) if config.segments else None
        waves = embeddings[0].linear_1.in_features
        self.guidance_in = nn.Linear(waves, width) if config.guidance else None
        self.guidance_out = nn.Linear(width, width) if config.guidance else None
        if self.segments is not None:  # with a teacher's other weights the network is that teacher at every count
            nn.init.zeros_(self.segments.weight)
        if self.guidance_out is not None:  # and at every w
            nn.init.zeros_(self.guidance_out.weight)
            nn.init.zeros_(self.guidance_out.bias)
        if config.segments or config.guidance:
            for embedding in embeddings:
                embedding.register_forward_hook(self._tell)

    def forward(self, z_t: Tensor, logsnr_t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Predict v, float32 or better; arguments and errors as in `UViT`."""
        self._told = None
        asked = self._asked(z_t, condition)
        if self._levels.device != z_t.device:
            self._levels = self._levels.to(z_t.device)
        timesteps = timesteps_at(logsnr_t, self._levels).float()
        # what is told stays until the next call: a backward pass that computes blocks again asks for it again
        said = self.network(z_t, timesteps, **asked, return_dict=False)[0]
        # of networks that say their variance too, the second half of the channels
        return self._v(said[:, : self.config.channels], z_t, logsnr_t)

    def train(self, mode: bool = True) -> "Backbone":
        """Set training mode, but for the library's own dropping of labels: what is hidden, training decides."""
        super().train(mode)
        for module in self.modules():
            if hasattr(module, "token_drop"):
                module.train(False)
        return self

    def _asked(self, z_t: Tensor, condition: Tensor | None) -> dict[str, Any]:
        """What the architecture takes beside z_t and timestep."""
        slots = len(self.config.slots)
        columns = 0 if condition is None else condition.shape[1]
        if columns != slots + (self.guidance_in is not None) + (self.segments is not None):
            told = " and is told its guidance" if self.guidance_in is not None else ""
            told += " and takes a segment count" if self.segments is not None else ""
            raise ValueError(f"condition has {columns} columns, the network has {slots} slots{told}")
        if condition is not None and columns > slots:
            self._told = self.told(condition[:, slots:].to(z_t.device))
        if self.config.architecture == "UNet2DConditionModel":
            assert self.text is not None and condition is not None
            return self.text.embed(condition[:, :slots], z_t.device)
        if condition is None or not slots:
            return {}
        label = condition[:, 0]
        if self.config.architecture == "DiTTransformer2DModel":  # its row for none is the last
            label = torch.where(label == 0, self.config.slots[0], label - 1)
        return {"class_labels": label}

    def told(self, columns: Tensor) -> Tensor:
        """Return what is added to every embedding of time (B, width) for the columns after the slots.

        columns: (B, 1 or 2) int64: w in thousandths, of a network that is told it, then the segment count likewise.
        """
        added = torch.zeros((), device=columns.device)
        if self.guidance_in is not None and self.guidance_out is not None:
            assert self.config.guidance is not None
            low, high = self.config.guidance
            place = (columns[:, 0].float() / GUIDANCE_PARTS - low) / (high - low)
            added = added + self.guidance_out(F.silu(self.guidance_in(_wave(place, self.guidance_in.in_features))))
        if self.segments is not None:
            added = added + self.segments(self._row(columns[:, -1]))
        return added

    def _v(self, said: Tensor, z_t: Tensor, logsnr_t: Tensor) -> Tensor:
        """v of a prediction: of eps (eps - sigma z) / alpha, of x (alpha z - x) / sigma."""
        if self.config.prediction == "v_prediction":
            return said.float()
        alpha, sigma = (part[:, None, None, None] for part in alpha_sigma_from_logsnr(logsnr_t.double()))
        said, z = said.double(), z_t.double()
        v = (said - sigma * z) / alpha if self.config.prediction == "epsilon" else (alpha * z - said) / sigma
        return v.float()

    def _time_embeddings(self) -> list[Any]:
        """The modules that embed time: one of a U-Net, one in every block of a DiT."""
        if self.config.architecture == "DiTTransformer2DModel":
            return [block.norm1.emb.timestep_embedder for block in self.network.transformer_blocks]
        return [self.network.time_embedding]

    def _tell(self, _module: nn.Module, _inputs: Any, embedding: Tensor) -> Tensor:
        """Add what the segment count says to an embedding of time."""
        return embedding if self._told is None else embedding + self._told

    def _row(self, segments: Tensor) -> Tensor:
        """The table's row of each segment count (B,), as in `UViT`."""
        row = torch.zeros_like(segments)
        for count in self._counts:
            row = row + (segments >= count)
        return row


def _wave(place: Tensor, channels: int) -> Tensor:
    """Sinusoids (B, channels) of places (B,) in [0, 1], as UViT has them."""
    half = channels // 2
    rates = torch.exp(torch.arange(half, device=place.device) * (-math.log(1e4) / (half - 1)))
    angles = 1000.0 * place[:, None] * rates
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, channels - 2 * half))


def library_class(name: str) -> Any:
    """Return a class of diffusers by its name.  Raises LibraryMissing where diffusers is not installed."""
    try:
        import diffusers
    except ModuleNotFoundError:
        raise LibraryMissing from None
    return getattr(diffusers, name)
