"""Pictures of several samples: grids for people to look at."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

GAP = 4
PAPER = (255, 255, 255)
INK = (70, 70, 78)


def grid(images: Tensor, columns: int, *, zoom: int = 1, rows: Sequence[str] = ()) -> Image.Image:
    """Lay images uint8 (N, H, W, C), C 1 or 3, out in rows of `columns`, each magnified `zoom` times without smoothing.

    rows: captions to write left of each row.
    """
    pixels = images.cpu().numpy().repeat(zoom, axis=1).repeat(zoom, axis=2)
    pixels = pixels.repeat(3, axis=3) if pixels.shape[3] == 1 else pixels
    high, wide = pixels.shape[1] + GAP, pixels.shape[2] + GAP
    font = ImageFont.load_default(size=max(11, pixels.shape[1] // 5))
    margin = GAP + max((int(font.getlength(caption)) + 2 * GAP for caption in rows), default=0)
    lines = -(-len(pixels) // columns)
    sheet = np.full((lines * high + GAP, margin + columns * wide, 3), PAPER, np.uint8)
    for index, picture in enumerate(pixels):
        top, left = GAP + index // columns * high, margin + index % columns * wide
        sheet[top : top + high - GAP, left : left + wide - GAP] = picture
    canvas = Image.fromarray(sheet)
    pen = ImageDraw.Draw(canvas)
    for line, caption in enumerate(rows):
        pen.text((margin - 2 * GAP, GAP + line * high + (high - GAP) // 2), caption, fill=INK, font=font, anchor="rm")
    return canvas


def save_picture(picture: Image.Image, file: Path) -> None:
    """Write a picture as an optimised PNG (or whatever the suffix says), making its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    picture.save(file, optimize=True)
