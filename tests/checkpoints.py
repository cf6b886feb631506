"""Tiny diffusers pipelines with random weights, written to disk by diffusers itself."""

import io
import json
import string
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
"""A U-Net of 8x8 RGB images."""
LATENT_UNET = UNET | {
    "sample_size": 4,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 12,
}
"""A U-Net of 4x4 latents of 4 channels that attends to text."""
STABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
"""Stable Diffusion's noise schedule."""


def tiny_unet(seed: int = 0, **changes: Any) -> UNet2DModel:
    """Return a U-Net of pixels with random weights."""
    torch.manual_seed(seed)
    return UNet2DModel(**UNET | changes).eval()


def tiny_dit(classes: int = 1000) -> DiTTransformer2DModel:
    """Return a DiT of 4x4 latents that says its variance too, as the published ones do; their pipeline knows 1000 classes."""
    torch.manual_seed(0)
    return DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=4,
        patch_size=2,
        num_embeds_ada_norm=classes,
    ).eval()


def tiny_autoencoder() -> AutoencoderKL:
    """Return an autoencoder of 8x8 RGB images and 4x4 latents."""
    torch.manual_seed(1)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=8,
        scaling_factor=0.18215,
    ).eval()


def tiny_tokenizer(pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """Return a tokenizer that knows the letters, and 16 tokens a prompt."""
    words = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase), ",</w>"]
    vocab = {word: number for number, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocab, merges=[], pad_token=pad, model_max_length=16)


def tiny_text_encoder(kind: Any = CLIPTextModel) -> Any:
    """Return a text encoder of 12 dimensions for `tiny_tokenizer`."""
    torch.manual_seed(2)
    count = len(tiny_tokenizer())
    config = CLIPTextConfig(
        vocab_size=count,
        hidden_size=12,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=16,
        bos_token_id=count - 2,
        eos_token_id=count - 1,
        pad_token_id=count - 1,
    )
    return kind(config).eval()


def write_pixels(folder: Path, *, scheduler: dict[str, Any] | None = None, **changes: Any) -> Path:
    """Write a DDPM-style pipeline folder: a UNet2DModel and a DDPMScheduler; return the folder."""
    DDPMPipeline(tiny_unet(**changes), DDPMScheduler(**scheduler or {})).save_pretrained(folder)
    return folder


def write_dit(folder: Path) -> Path:
    """Write a class-conditional DiT pipeline folder with an autoencoder; return the folder."""
    names = ("tench, Tinca tinca", "goldfish", "great white shark", "tiger shark", "hammerhead")
    DiTPipeline(tiny_dit(), tiny_autoencoder(), DDIMScheduler(clip_sample=False)).save_pretrained(folder)
    index = json.loads(
        (folder / "model_index.json").read_text()
    )  # as published ones have it; saving leaves the names out
    (folder / "model_index.json").write_text(json.dumps(index | {"id2label": dict(enumerate(names))}))
    return folder


def write_stable(folder: Path) -> Path:
    """Write a pipeline folder as Stable Diffusion 1.5's; return the folder."""
    torch.manual_seed(0)
    StableDiffusionPipeline(
        vae=tiny_autoencoder(),
        text_encoder=tiny_text_encoder(),
        tokenizer=tiny_tokenizer(),
        unet=UNet2DConditionModel(**LATENT_UNET).eval(),
        scheduler=PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=False, **STABLE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def write_xl(folder: Path) -> Path:
    """Write a pipeline folder as SDXL's; return the folder."""
    torch.manual_seed(0)
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    sizes = {"cross_attention_dim": 24, "projection_class_embeddings_input_dim": 6 * 8 + 16}
    StableDiffusionXLPipeline(
        vae=tiny_autoencoder(),
        text_encoder=tiny_text_encoder(),
        text_encoder_2=tiny_text_encoder(CLIPTextModelWithProjection),
        tokenizer=tiny_tokenizer(),
        tokenizer_2=tiny_tokenizer(pad="a"),
        unet=UNet2DConditionModel(**LATENT_UNET | added | sizes).eval(),
        scheduler=EulerDiscreteScheduler(**STABLE),
        add_watermarker=False,
    ).save_pretrained(folder)
    return folder


def write_images(file: Path, *, size: int = 8, count: int = 16, labels: int = 0) -> Path:
    """Write random RGB images as an .npz in the layout of ADM, labelled 0 .. labels - 1 in turn; return the file."""
    images = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    arrays = {"arr_0": images} | ({"arr_1": np.arange(count) % labels} if labels else {})
    np.savez(file, **arrays)
    return file


def write_captioned(file: Path, *, count: int = 12) -> Path:
    """Write random 8x8 RGB images with captions as a WebDataset shard; return the file."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    with tarfile.open(file, "w") as shard:
        for number, image in enumerate(pixels):
            content = io.BytesIO()
            Image.fromarray(image).save(content, "png")
            for suffix, data in (("png", content.getvalue()), ("txt", b"a dog, a log")):
                member = tarfile.TarInfo(f"{number:04d}.{suffix}")
                member.size = len(data)
                shard.addfile(member, io.BytesIO(data))
    return file


if __name__ == "__main__":  # python -m tests.checkpoints FOLDER: one of each kind, to compare or to try things on
    for kind, write in {"pixels": write_pixels, "dit": write_dit, "stable": write_stable, "xl": write_xl}.items():
        write(Path(sys.argv[1]) / kind)
