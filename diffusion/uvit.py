"""UViT, the paper's network (simple diffusion; Multistep Consistency Models, appendix A.1).

A U-Net whose levels are ResNet blocks at high resolution and transformer blocks at low resolution, with transformer
blocks in the middle.  Conditioning is FiLM: in a ResNet block on the second norm, in a transformer block on the hidden
layer of its MLP.  It predicts v and takes no step index, so teacher and students have the same interface,
``f(z_t, logsnr_t, condition) -> v``; a network for the whole dial is told its segment count in a last column of the
condition, and one distilled with sampled guidance its w in a column before that.  Which details the paper leaves open,
and how they were settled: docs/method.md.
"""

import math
from collections.abc import Iterator
from itertools import repeat
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.condition import GUIDANCE_PARTS
from diffusion.fusion import image, modulated, normed, normed_heads, tokens
from diffusion.uvit_config import PRESETS, Level, UViTConfig

__all__ = ["PRESETS", "Level", "UViT", "UViTConfig"]


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each pixel, for (B, C, H, W); a view and no copy when memory is channels-last."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _image_norm(kind: str, channels: int) -> nn.GroupNorm | ChannelNorm:
    return nn.GroupNorm(32, channels, eps=1e-6) if kind == "group" else ChannelNorm(channels, eps=1e-6)


def _zeroed(module: nn.Linear | nn.Conv2d) -> nn.Module:
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module


class ResBlock(nn.Module):
    """norm (+ normed skip, over sqrt 2), SiLU, conv, FiLM-ed norm, SiLU, dropout, zero-initialised conv; residual."""

    def __init__(self, channels: int, *, embedding: int, dropout: float, norm: str, takes_skip: bool):
        super().__init__()
        self.norm = _image_norm(norm, channels)
        self.norm_skip = _image_norm(norm, channels) if takes_skip else None
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = nn.Linear(embedding, 2 * channels)
        self.norm_out = _image_norm(norm, channels)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = _zeroed(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(
        self, x: Tensor, embedding: Tensor, skip: Tensor | None = None, *, film: Tensor | None = None
    ) -> Tensor:
        """x, skip: (B, C, H, W); embedding: (B, E), already through SiLU; film: what self.film makes of it, if at hand."""
        film = self.film(embedding) if film is None else film
        joined = None if self.norm_skip is None or skip is None else normed(self.norm_skip, skip)
        h = self.conv(normed(self.norm, x, addend=joined, silu=True))
        h = normed(self.norm_out, h, film=film, silu=True)
        return x + self.conv_out(self.dropout(h))


class TransformerBlock(nn.Module):
    """An MLP whose hidden layer is FiLM-ed, then self-attention with normed queries and keys; both residual, zero at first."""

    fused_on: tuple[str, ...] = ("cuda",)
    """Devices where attention is one kernel. At a few hundred tokens the CPU's is slower than the formula, above all backwards."""

    def __init__(self, channels: int, *, embedding: int, dropout: float, head_dim: int):
        super().__init__()
        self.head_dim = head_dim
        self.norm_mlp = nn.LayerNorm(channels, eps=1e-6, bias=False)
        self.hidden = nn.Linear(channels, 4 * channels)
        self.film = nn.Linear(embedding, 8 * channels)
        self.dropout = nn.Dropout(dropout)
        self.mlp_out = _zeroed(nn.Linear(4 * channels, channels))
        self.norm_attention = nn.LayerNorm(channels, eps=1e-6, bias=False)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.norm_q = nn.LayerNorm(head_dim, eps=1e-6)
        self.norm_k = nn.LayerNorm(head_dim, eps=1e-6)
        self.attention_out = _zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor, embedding: Tensor, *, film: Tensor | None = None) -> Tensor:
        """x: tokens (B, N, C); embedding: (B, E), already through SiLU; film: what self.film makes of it, if at hand."""
        film = self.film(embedding) if film is None else film
        h = modulated(self.hidden(normed(self.norm_mlp, x)), film)
        x = x + self.mlp_out(self.dropout(h))
        return x + self.attention_out(self._attend(normed(self.norm_attention, x)))

    def _attend(self, x: Tensor) -> Tensor:
        batch, count, channels = x.shape
        q, k, v = normed_heads(self.qkv(x), self.norm_q, self.norm_k)
        if x.device.type in self.fused_on:
            h = F.scaled_dot_product_attention(q, k, v)
        else:
            h = torch.softmax(q @ k.transpose(-1, -2) * self.head_dim**-0.5, dim=-1) @ v
        return h.transpose(1, 2).reshape(batch, count, channels)


def _blocks(level: Level, config: UViTConfig, *, takes_skip: bool = False) -> nn.ModuleList:
    def block() -> nn.Module:
        if level.kind == "res":
            return ResBlock(
                level.channels,
                embedding=config.embedding,
                dropout=level.dropout,
                norm=config.norm,
                takes_skip=takes_skip,
            )
        return TransformerBlock(
            level.channels, embedding=config.embedding, dropout=level.dropout, head_dim=config.head_dim
        )

    return nn.ModuleList(block() for _ in range(level.blocks))


def _upsample(x: Tensor) -> Tensor:
    """Nearest neighbour by 2.  Not F.interpolate: compiled under CPU autocast its gradient is silently zero (torch 2.13)."""
    batch, channels, height, width = x.shape
    wide = x[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2).reshape(batch, channels, 2 * height, 2 * width)
    return wide.contiguous(memory_format=torch.channels_last)


class UViT(nn.Module):
    """The network.  v = UViT(z_t, logsnr_t, condition); build under ``torch.device("meta")`` to count without memory."""

    _no_split_modules = ("ResBlock", "TransformerBlock")
    """The blocks that are sharded, compiled and computed again whole, by the name that libraries look for."""

    def __init__(self, config: UViTConfig):
        super().__init__()
        self.config = config
        levels, mid, width = config.levels, config.mid, config.embedding
        below = [level.channels for level in levels[1:]] + [mid.channels]
        pixels = config.channels * config.patch**2
        count = (config.resolution // config.patch // 2 ** len(levels)) ** 2

        self.time_in = nn.Linear(levels[0].channels, width)
        self.time_out = nn.Linear(width, width)
        self.slots = nn.ModuleList(nn.Embedding(values + 1, width) for values in config.slots)
        self._counts = tuple(count for count in config.segments if count)
        self.segments = nn.Embedding(len(self._counts) + 1, width) if config.segments else None
        self.guidance_in = nn.Linear(levels[0].channels, width) if config.guidance else None
        self.guidance_out = nn.Linear(width, width) if config.guidance else None
        self.conv_in = nn.Conv2d(pixels, levels[0].channels, 3, padding=1)
        self.down = nn.ModuleList(_blocks(level, config) for level in levels)
        self.narrow = nn.ModuleList(
            nn.Conv2d(level.channels, wider, 1) for level, wider in zip(levels, below, strict=True)
        )
        self.position = nn.Parameter(torch.empty(count, mid.channels))
        self.mid = _blocks(mid, config)
        self.widen = nn.ModuleList(
            nn.Conv2d(wider, level.channels, 1) for level, wider in zip(levels, below, strict=True)
        )
        self.up = nn.ModuleList(_blocks(level, config, takes_skip=level.kind == "res") for level in levels)
        self.norm_out = _image_norm(config.norm, levels[0].channels)
        self.conv_out = _zeroed(nn.Conv2d(levels[0].channels, pixels, 3, padding=1))
        self._joined_films: tuple[Tensor, Tensor] | None = None

        nn.init.normal_(self.position, std=0.01)
        for table in self.slots:
            nn.init.normal_(table.get_parameter("weight"), std=width**-0.5)
        if self.segments is not None:  # with a teacher's other weights the network is that teacher at every count
            nn.init.zeros_(self.segments.weight)
        if self.guidance_out is not None:  # and at every w
            _zeroed(self.guidance_out)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, z_t: Tensor, logsnr_t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Predict v.

        z_t: (B, C, H, W); logsnr_t: (B,); condition: (B, slots) int64, one value of each slot, 0 = none; for a network
        that is told its guidance w one more column, w in thousandths; and for a network with segments a last one, the segment
        count itself; None only for a network without any of them.  Returns v, (B, C, H, W), in the dtype autocast or the
        weights give.  Raises ValueError when the columns do not fit.
        """
        embedding = self.embed(logsnr_t, condition)
        films = self._films(embedding)
        h = F.pixel_unshuffle(z_t, self.config.patch) if self.config.patch > 1 else z_t
        h = self.conv_in(h.contiguous(memory_format=torch.channels_last))
        skips: list[Tensor] = []
        for level, blocks, narrow in zip(self.config.levels, self.down, self.narrow, strict=True):
            h = self._level(h, level, blocks, embedding, films, skips, down=True)
            h = narrow(F.avg_pool2d(h, 2))
        middle = tokens(h) + self.position
        for block in self.mid:
            middle = block(middle, embedding, **next(films))
        h = image(middle, *h.shape[2:])
        for level, blocks, widen in reversed(list(zip(self.config.levels, self.up, self.widen, strict=True))):
            h = self._level(_upsample(widen(h)), level, blocks, embedding, films, skips, down=False)
        v = self.conv_out(normed(self.norm_out, h, silu=True))
        return F.pixel_shuffle(v, self.config.patch) if self.config.patch > 1 else v

    @staticmethod
    def _level(
        h: Tensor,
        level: Level,
        blocks: nn.Module,
        embedding: Tensor,
        films: Iterator[dict[str, Tensor]],
        skips: list[Tensor],
        *,
        down: bool,
    ) -> Tensor:
        if level.kind == "transformer":
            size = h.shape[2:]
            h = tokens(h)
            for block in blocks.children():
                h = block(h, embedding, **next(films))
            return image(h, *size)
        for block in blocks.children():
            h = block(h, embedding, **next(films)) if down else block(h, embedding, skips.pop(), **next(films))
            if down:
                skips.append(h)
        return h

    def join_films(self) -> None:
        """Have FiLM of all blocks come of one matrix product from now on.  For evaluation, where the weights lie now.

        The blocks' own weights become parts of one tensor, with the names, shapes and values that they had.  safetensors
        does not save tensors that share memory, and a network that is moved or cast afterwards has to be joined again.
        """
        layers = [block.film for block in self._blocks_in_order()]
        weight, bias = (torch.cat([getattr(layer, kind).detach() for layer in layers]) for kind in ("weight", "bias"))
        widths = [layer.out_features for layer in layers]
        for layer, own_weight, own_bias in zip(layers, weight.split(widths), bias.split(widths), strict=True):
            layer.weight.data, layer.bias.data = own_weight, own_bias
        self._joined_films = weight, bias

    def _blocks_in_order(self) -> list[Any]:
        """All blocks as a forward pass comes to them."""
        groups = [*self.down.children(), self.mid, *reversed(list(self.up.children()))]
        return [block for group in groups for block in group.children()]

    def _films(self, embedding: Tensor) -> Iterator[dict[str, Tensor]]:
        """Return what to tell every block in order: its FiLM, (B, 2C); nothing where blocks make their own."""
        if self._joined_films is None:
            return repeat({})
        widths = [block.film.out_features for block in self._blocks_in_order()]
        parts = F.linear(embedding, *self._joined_films).split(widths, dim=1)
        return iter([{"film": part} for part in parts])

    def embed(self, logsnr_t: Tensor, condition: Tensor | None) -> Tensor:
        """Return the conditioning embedding (B, E), through SiLU: sinusoids of cosine-schedule time and w, plus the tables."""
        columns, slots = 0 if condition is None else condition.shape[1], len(self.slots)
        if columns != slots + (self.guidance_in is not None) + (self.segments is not None):
            told = " and is told its guidance" if self.guidance_in is not None else ""
            told += " and takes a segment count" if self.segments is not None else ""
            raise ValueError(
                f"condition has {columns} columns, the network has {slots} slots {self.config.slots}{told}"
            )
        # inverse cosine schedule: logsnr -> (0, 1), so that one embedding serves every shifted or interpolated schedule
        time = torch.atan(torch.exp(-0.5 * logsnr_t.float().clamp(-20.0, 20.0))) / (0.5 * math.pi)
        embedding = self.time_out(F.silu(self.time_in(self._wave(time))))
        for column, table in enumerate(self.slots):
            assert condition is not None
            embedding = embedding + table(condition[:, column])
        if self.guidance_in is not None and self.guidance_out is not None:
            assert condition is not None and self.config.guidance is not None
            low, high = self.config.guidance
            place = (condition[:, slots].float() / GUIDANCE_PARTS - low) / (high - low)
            embedding = embedding + self.guidance_out(F.silu(self.guidance_in(self._wave(place))))
        if self.segments is not None:
            assert condition is not None
            embedding = embedding + self.segments(self._row(condition[:, -1]))
        return F.silu(embedding)

    def _wave(self, place: Tensor) -> Tensor:
        """Return sinusoids (B, C) of places (B,) in [0, 1], C the channels of the first level."""
        half = self.time_in.in_features // 2
        rates = torch.exp(torch.arange(half, device=place.device) * (-math.log(1e4) / (half - 1)))
        angles = 1000.0 * place[:, None] * rates
        return torch.cat([angles.sin(), angles.cos()], dim=1).to(self.time_in.weight.dtype)

    def _row(self, segments: Tensor) -> Tensor:
        """Return the table's row of each segment count (B,): 0 for infinitely many, k for the k-th count.

        Comparisons instead of a look-up, so that no other tensor has to be on the device before a CUDA graph is caught.
        """
        row = torch.zeros_like(segments)
        for count in self._counts:
            row = row + (segments >= count)
        return row
