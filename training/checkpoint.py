"""A diffusers pipeline folder as others made it: what is in it, and what of that makes a family.

Configurations are read as JSON, weights through diffusers from safetensors files.  Nothing is unpickled, no code that lies in
the folder is run, and nothing is fetched from anywhere.
"""

import inspect
import json
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor

from diffusion.autoencoder import AutoencoderConfig
from diffusion.backbone import Architecture, BackboneConfig, LibraryMissing, Prediction, library_class
from diffusion.condition import Conditioning, LabelConditioning, NoConditioning
from diffusion.text import EncoderConfig, TextArchitecture, text_class
from diffusion.timesteps import BetaSchedule, TimestepTable
from training.failures import first_fault

INDEX, CONFIG, SCHEDULER = "model_index.json", "config.json", "scheduler_config.json"
Weights = dict[str, Tensor]


FAULTS = (SafetensorError, OSError, ValueError, LookupError, TypeError, RuntimeError, ImportError, AttributeError)
"""What the libraries raise for configurations and weights that make no sense."""


class CheckpointError(ValueError):
    """A folder that no family can be made of: one sentence that says what is wrong with which part of it."""


class TokenizerParts(NamedTuple):
    """A tokenizer, and what it must be told."""

    content: str
    """As the tokenizers library writes it, JSON."""
    length: int
    vocabulary: int
    pad: int


class Text(NamedTuple):
    """What reads prompts: one or two encoders, each with its tokenizer."""

    encoders: tuple[EncoderConfig, ...]
    weights: Weights
    """Of encoder i, under i followed by a dot."""
    tokenizers: tuple[TokenizerParts, ...]
    zeros: bool
    """Whether no prompt is zeros."""


class Checkpoint:
    """A pipeline folder whose index could be read."""

    def __init__(self, folder: Path):
        """Raises CheckpointError when the folder is no pipeline or diffusers is not installed."""
        self.folder = folder
        try:
            library_class("DiffusionPipeline")
        except LibraryMissing as error:
            raise CheckpointError(f"{folder.name} cannot be imported: {error}") from None
        self.index = self._json(folder / INDEX, INDEX)

    @cached_property
    def network_name(self) -> str:
        """The part that is the network: "unet" or "transformer".  Raises CheckpointError when there is none that is known."""
        for name in ("unet", "transformer"):
            if self.class_of(name) in get_args(Architecture):
                return name
        found = self.class_of("unet") or self.class_of("transformer") or "none"
        raise CheckpointError(
            f"the network of {self.folder.name} is {found}; known are {', '.join(get_args(Architecture))}"
        )

    def class_of(self, name: str) -> str | None:
        """Return the class of a part, None where the pipeline has no such part."""
        part = self.index.get(name)
        return part[1] if isinstance(part, list) and len(part) == 2 else None

    def backbone(self, tokens: tuple[tuple[int, int], ...] = ()) -> tuple[BackboneConfig, Weights]:
        """Return the network's configuration and weights.  Raises CheckpointError.

        tokens: (tokens, vocabulary) of each of its text encoders.
        """
        name = self.network_name
        architecture = str(self.class_of(name))
        settings, weights = self._model(name, architecture)
        _check_settings(name, architecture, settings, encoders=len(tokens))
        if architecture == "UNet2DModel" and settings.get("num_class_embeds"):  # one more, which means none
            settings["num_class_embeds"] += 1
            table = weights["class_embedding.weight"]
            weights["class_embedding.weight"] = torch.cat([torch.zeros_like(table[:1]), table])
        timesteps, prediction, clip = self._schedule()
        try:
            config = BackboneConfig.model_validate(
                {
                    "architecture": architecture,
                    "settings": settings,
                    "prediction": prediction,
                    "timesteps": timesteps,
                    "clip": clip and self.class_of("vae") is None,
                    "tokens": tokens,
                }
            )
        except ValidationError as error:
            raise CheckpointError(f"{name}/{CONFIG} does not fit: {first_fault(error)}") from None
        return config, weights

    def autoencoder(self) -> tuple[AutoencoderConfig, Weights] | None:
        """Return the autoencoder's configuration and weights; None for a pipeline of pixels.  Raises CheckpointError."""
        found = self.class_of("vae")
        if found is None:
            return None
        if found != "AutoencoderKL":
            raise CheckpointError(f"the vae of {self.folder.name} is {found}; known is AutoencoderKL")
        settings, weights = self._model("vae", found)
        if any(settings.get(name) for name in ("latents_mean", "latents_std")):
            raise CheckpointError("the vae normalises each channel of its latents by itself, which is not known here")
        return AutoencoderConfig(settings=settings), weights

    def text(self) -> Text | None:
        """Return what reads prompts; None for a network without text.  Raises CheckpointError."""
        if self.class_of(self.network_name) != "UNet2DConditionModel":
            return None
        numbers = [""] if self.class_of("text_encoder_2") is None else ["", "_2"]
        encoders: list[EncoderConfig] = []
        weights: Weights = {}
        tokenizers: list[TokenizerParts] = []
        for index, number in enumerate(numbers):
            config, found = self._encoder(f"text_encoder{number}")
            encoders.append(config)
            weights |= {f"{index}.{key}": value for key, value in found.items()}
            tokenizers.append(self._tokenizer(f"tokenizer{number}", config))
        zeros = len(numbers) == 2 and bool(self.index.get("force_zeros_for_empty_prompt", True))
        return Text(tuple(encoders), weights, tuple(tokenizers), zeros)

    def conditioning(self, config: BackboneConfig) -> Conditioning:
        """Return what may be asked for of a network without text: its classes, by the index's names or by their numbers."""
        if not config.slots:
            return NoConditioning()
        names = self.index.get("id2label")
        known = names if isinstance(names, dict) else {}
        return LabelConditioning(labels=tuple(str(known.get(str(number), number)) for number in range(config.slots[0])))

    def _schedule(self) -> tuple[TimestepTable, Prediction, bool]:
        """The timesteps, what the network predicts, and whether x_hat is clipped, as the part "scheduler" says."""
        name = str(self.class_of("scheduler"))
        if not name.endswith("Scheduler"):
            raise CheckpointError(f"the scheduler of {self.folder.name} is {name}, which is none of diffusers")
        given = self._json(self._place("scheduler") / SCHEDULER, f"scheduler/{SCHEDULER}")
        try:
            scheduler = library_class(name).from_config(given)
        except FAULTS as error:
            raise CheckpointError(f"scheduler/{SCHEDULER} does not make a {name} of diffusers") from error
        settings = dict(scheduler.config)
        if not hasattr(scheduler, "alphas_cumprod") or settings.get("timestep_type") == "continuous":
            raise CheckpointError(f"the noise schedule of {name} is not one of discrete betas, as known here")
        prediction = settings.get("prediction_type", "epsilon")
        if prediction not in get_args(Prediction):
            raise CheckpointError(f"the network predicts {prediction}; known are {', '.join(get_args(Prediction))}")
        clip = bool(settings.get("clip_sample")) and settings.get("clip_sample_range", 1.0) == 1.0
        return _table(scheduler, settings), prediction, clip

    def _model(self, name: str, class_name: str) -> tuple[dict[str, Any], Weights]:
        """A part's complete configuration and its weights."""
        place = self._weighed(name)
        try:
            model, news = library_class(class_name).from_pretrained(
                str(place),
                use_safetensors=True,
                local_files_only=True,
                low_cpu_mem_usage=False,
                output_loading_info=True,
                variant=_variant(place),
            )
        except FAULTS as error:
            raise CheckpointError(f"{name}: its configuration and weights do not make a {class_name}") from error
        weights = _checked(name, model, news)
        known = inspect.signature(type(model).__init__).parameters
        settings = {key: value for key, value in dict(model.config).items() if key in known}
        return json.loads(json.dumps(settings)), weights

    def _weighed(self, name: str) -> Path:
        """The folder of a part that has weights: its configuration is JSON, and there are safetensors files."""
        place = self._place(name)
        self._json(place / CONFIG, f"{name}/{CONFIG}")
        if not list(place.glob("*.safetensors")):
            pickled = ", only pickled ones, which are not opened" if list(place.glob("*.bin")) else ""
            raise CheckpointError(f"{name} has no weights in safetensors files{pickled}")
        return place

    def _encoder(self, name: str) -> tuple[EncoderConfig, Weights]:
        """A text encoder's configuration and weights."""
        found = str(self.class_of(name))
        if found not in get_args(TextArchitecture):
            raise CheckpointError(f"{name} is {found}; known are {', '.join(get_args(TextArchitecture))}")
        place = self._weighed(name)
        try:
            model, news = text_class(found).from_pretrained(
                str(place),
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                dtype=torch.float32,
                variant=_variant(place),
            )
        except FAULTS as error:
            raise CheckpointError(f"{name}: its configuration and weights do not make a {found}") from error
        weights = _checked(name, model, news)
        settings = json.loads(model.config.to_json_string(use_diff=False))
        return EncoderConfig.model_validate({"architecture": found, "settings": settings}), weights

    def _tokenizer(self, name: str, encoder: EncoderConfig) -> TokenizerParts:
        """A tokenizer and what it must be told."""
        place = self._place(name)
        if not place.is_dir() or place == self.folder:
            raise CheckpointError(f"{name} is missing")
        try:
            tokenizer = text_class("CLIPTokenizer").from_pretrained(str(place), local_files_only=True)
        except FAULTS as error:
            raise CheckpointError(f"{name} does not make a CLIPTokenizer") from error
        length = int(str(encoder.settings["max_position_embeddings"]))
        vocabulary = int(str(encoder.settings["vocab_size"]))
        if len(tokenizer) > vocabulary:
            raise CheckpointError(f"{name} knows {len(tokenizer)} tokens, its encoder {vocabulary}")
        return TokenizerParts(tokenizer.backend_tokenizer.to_str(), length, vocabulary, tokenizer.pad_token_id)

    def _place(self, name: str) -> Path:
        """The folder of a part; in pipelines of one network it may be the pipeline's own."""
        return self.folder / name if (self.folder / name).is_dir() else self.folder

    def _json(self, file: Path, name: str) -> dict[str, Any]:
        try:
            found = json.loads(file.read_text())
        except FileNotFoundError:
            raise CheckpointError(f"{self.folder.name} is not a diffusers pipeline: {name} is missing") from None
        except (OSError, ValueError):
            raise CheckpointError(f"{name} cannot be read as JSON") from None
        if not isinstance(found, dict):
            raise CheckpointError(f"{name} is not a JSON object")
        return found


def _variant(place: Path) -> str | None:
    """The variant of the weights to load: half precision where there is no other."""
    others = [file for file in place.glob("*.safetensors") if ".fp16" not in file.name]
    return None if others else "fp16"


def _checked(name: str, model: Any, news: dict[str, Any]) -> Weights:
    """The weights of a part that was loaded.  Raises CheckpointError when some are missing, surplus or no numbers."""
    # old text encoders carry the numbers of their positions along
    lacking = [
        key for key in (*news["missing_keys"], *news["unexpected_keys"]) if not key.endswith("embeddings.position_ids")
    ]
    if lacking:
        raise CheckpointError(f"{name}: its weights are not those of its configuration; one is {lacking[0]}")
    weights = {key: value.contiguous() for key, value in model.state_dict().items()}
    for key, value in weights.items():
        if not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{name}: its weights are not all numbers; one is {key}")
    return weights


def _check_settings(name: str, architecture: str, settings: dict[str, Any], *, encoders: int) -> None:
    """Raise CheckpointError for what the library can build and `Backbone` cannot ask."""
    size, channels = settings.get("sample_size"), settings.get("in_channels")
    if isinstance(size, list) and len(set(size)) == 1:
        settings["sample_size"] = size = size[0]
    if not isinstance(size, int):
        raise CheckpointError(f"{name}/{CONFIG}: sample_size is {size}; squares of a known size are drawn")
    if settings.get("out_channels") not in (None, channels, 2 * (channels or 0)):
        raise CheckpointError(
            f"{name}/{CONFIG}: in_channels is {channels} and out_channels {settings['out_channels']}; "
            "a network that is shown more than a latent, to fill in or to edit, is not known"
        )
    if settings.get("time_embedding_type", "positional") != "positional":
        raise CheckpointError(
            f"{name}/{CONFIG}: time_embedding_type is {settings['time_embedding_type']}, not positional"
        )
    if settings.get("class_embed_type") is not None:
        raise CheckpointError(f"{name}/{CONFIG}: class_embed_type is {settings['class_embed_type']}, not null")
    if architecture != "UNet2DConditionModel":
        return
    known = {"addition_embed_type": "text_time" if encoders == 2 else None, "encoder_hid_dim_type": None}
    known |= {"time_cond_proj_dim": None, "num_class_embeds": None}
    for field, value in known.items():
        if settings.get(field) != value:
            raise CheckpointError(f"{name}/{CONFIG}: {field} is {settings.get(field)}, where {value} is known")


def _table(scheduler: Any, settings: dict[str, Any]) -> TimestepTable:
    """The timesteps of a scheduler: by its formula where that is known here and gives what it has, else its betas."""
    zero = bool(settings.get("rescale_betas_zero_snr"))
    found = scheduler.alphas_cumprod.float().cpu()
    known = settings.get("beta_schedule") in get_args(BetaSchedule) and settings.get("trained_betas") is None
    common = {"count": len(found), "zero_terminal_snr": zero}
    try:
        if known:
            names = ("beta_schedule", "beta_start", "beta_end")
            table = TimestepTable.model_validate(common | {name: settings[name] for name in names})
        else:  # they are rescaled already
            table = TimestepTable(count=len(found), betas=tuple(scheduler.betas.tolist()))
    except ValidationError as error:
        raise CheckpointError(f"scheduler/{SCHEDULER}: {first_fault(error)}") from None
    # some schedulers put a little signal into an end without any
    if not torch.allclose(table.alphas_cumprod[:-1], found[:-1], rtol=1e-5, atol=0):
        raise CheckpointError(f"scheduler/{SCHEDULER}: its noise schedule is not what its betas say")
    return table
