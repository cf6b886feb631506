"""Feature networks that others trained, from local files: Inception and DINOv2 for distances, CLIP for how well a prompt is met.

Nothing is downloaded, and nothing but torch-fidelity's and transformers' own code is run.
"""

import hashlib
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion.files import file_sha256
from training.datasets import DataError

INCEPTION_SHA256 = "6726825d"
"""First digits of the SHA-256 of the weights that FID is defined by, as torch-fidelity publishes them."""
BATCH = 64
"""Images that a feature network sees at once."""


@dataclass(frozen=True)
class Extractor:
    """A feature network."""

    name: str
    """"judge", "inception" or "dinov2"."""
    sha256: str
    """Of its weights."""
    features: Callable[[np.ndarray], np.ndarray]
    """Images uint8 (N, H, W, C) -> features float32 (N, D)."""

    @property
    def is_fid(self) -> bool:
        """Whether its distances are FID, given enough images."""
        return self.name == "inception" and self.sha256.startswith(INCEPTION_SHA256)


def inception(weights: Path, device: torch.device) -> Extractor:
    """Return the Inception network of FID with weights in a file as torch-fidelity publishes them; 2,048 features.

    Raises DataError where torch-fidelity is not installed or the file does not hold them.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ModuleNotFoundError:
        raise _missing("torch-fidelity") from None
    try:
        network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(weights))
    except (OSError, RuntimeError, AttributeError, TypeError, EOFError, pickle.UnpicklingError):
        raise DataError(f"--inception {weights} does not hold Inception's weights as torch-fidelity has them") from None
    network = network.to(device)
    return Extractor(
        "inception", file_sha256(weights), lambda images: _by_batch(images, lambda part: _seen(network, part, device))
    )


def _seen(network: Any, images: np.ndarray, device: torch.device) -> Tensor:
    (features,) = network(torch.from_numpy(_colour(images)).permute(0, 3, 1, 2).to(device))
    return features


def dinov2(folder: Path, device: torch.device) -> Extractor:
    """Return a DINOv2 network in a folder as transformers saves it; its features are those of the class token.

    FD-DINOv2 is defined by the one called dinov2-large.  Raises DataError where transformers is not installed or the folder
    does not hold one.
    """
    model, processor = _loaded("dinov2", "Dinov2Model", folder, device)

    def seen(images: np.ndarray) -> Tensor:
        pixels = processor(images=list(_colour(images)), return_tensors="pt")["pixel_values"]
        return model(pixel_values=pixels.to(device)).pooler_output

    return Extractor("dinov2", folder_sha256(folder), lambda images: _by_batch(images, seen))


@dataclass(frozen=True)
class PromptJudge:
    """CLIP: how near an image is to its prompt."""

    sha256: str
    """Of its weights."""
    model: Any
    processor: Any
    tokenizer: Any

    def scores(self, images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        """Return each image's CLIP score, 100 times the cosine of image and prompt and at least 0; uint8 (N, H, W, C) -> (N,)."""
        device = next(self.model.parameters()).device
        known, words = np.unique(np.asarray(prompts), return_inverse=True)
        longest = self.model.config.text_config.max_position_embeddings

        def seen(part: np.ndarray) -> Tensor:
            pixels = self.processor(images=list(_colour(part)), return_tensors="pt")["pixel_values"].to(device)
            return F.normalize(self.model.visual_projection(self.model.vision_model(pixel_values=pixels).pooler_output))

        def read(part: np.ndarray) -> Tensor:
            told = {"padding": True, "truncation": True, "max_length": longest, "return_tensors": "pt"}
            tokens = self.tokenizer(part.tolist(), **told).to(device)
            return F.normalize(self.model.text_projection(self.model.text_model(**tokens).pooler_output))

        cosine = (_by_batch(images, seen) * _by_batch(known, read)[words]).sum(1)
        return np.maximum(100 * cosine, 0)


def clip(folder: Path, device: torch.device) -> PromptJudge:
    """Return CLIP from a folder as transformers saves it, its processor and tokenizer with it.

    Raises DataError where transformers is not installed or the folder does not hold it.
    """
    model, processor = _loaded("clip", "CLIPModel", folder, device)
    from transformers import AutoTokenizer

    if not any((folder / name).exists() for name in ("tokenizer.json", "vocab.json")):  # an empty one would be made up
        raise DataError(f"--clip {folder} does not hold the tokenizer of its CLIP")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return PromptJudge(folder_sha256(folder), model, processor, tokenizer)


def _loaded(flag: str, kind: str, folder: Path, device: torch.device) -> tuple[Any, Any]:
    """Return the model in a folder and what prepares images for it."""
    try:
        import transformers
    except ModuleNotFoundError:
        raise _missing("transformers") from None
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        if config.model_type != flag:
            raise DataError(f"--{flag} {folder} holds a {config.model_type} network")
        model, missing = getattr(transformers, kind).from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
        processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"--{flag} {folder} does not hold a network as transformers saves it, in safetensors") from None
    if missing["missing_keys"]:
        raise DataError(f"--{flag} {folder} lacks weights, {sorted(missing['missing_keys'])[0]} for one")
    return model.to(device).eval().requires_grad_(False), processor


def folder_sha256(folder: Path) -> str:
    """Return the SHA-256 of a folder's safetensors file, or of the hashes of several."""
    hashes = [file_sha256(file) for file in sorted(folder.glob("*.safetensors"))]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _missing(package: str) -> DataError:
    return DataError(f"{package} is not installed; pip install -e '.[evaluation]'")


def _colour(images: np.ndarray) -> np.ndarray:
    """Return images (N, H, W, 1 or 3) with three channels."""
    return images if images.shape[-1] == 3 else np.repeat(images, 3, axis=-1)


@torch.no_grad()
def _by_batch(what: np.ndarray, seen: Callable[[np.ndarray], Tensor]) -> np.ndarray:
    """Return what a network sees in images, or reads in prompts, float32 (N, D)."""
    parts = [seen(what[start : start + BATCH]) for start in range(0, len(what), BATCH)]
    return torch.cat([part.float().cpu() for part in parts]).numpy()
