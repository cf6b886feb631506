"""Pictures of several samples: grids for people to look at."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

GAP = 4
PAPER = (255, 255, 255)
INK = (70, 70, 78)


def grid(
    images: Tensor, columns: int, *, zoom: int = 1, rows: Sequence[str] = (), feet: Sequence[str] = ()
) -> Image.Image:
    """Lay images uint8 (N, H, W, C), C 1 or 3, out in rows of `columns`, each magnified `zoom` times without smoothing.

    rows: captions to write left of each row.  feet: captions to write below each column, broken into lines at words.
    """
    pixels = images.cpu().numpy().repeat(zoom, axis=1).repeat(zoom, axis=2)
    pixels = pixels.repeat(3, axis=3) if pixels.shape[3] == 1 else pixels
    high, wide = pixels.shape[1] + GAP, pixels.shape[2] + GAP
    font = ImageFont.load_default(size=max(11, pixels.shape[1] // 5))
    margin = GAP + max((int(font.getlength(caption)) + 2 * GAP for caption in rows), default=0)
    lines = -(-len(pixels) // columns)
    small = ImageFont.load_default(size=max(9, wide // 9))
    broken = [_broken(caption, small, wide - GAP) for caption in feet]
    foot = max((caption.count("\n") + 1 for caption in broken), default=0) * int(1.5 * small.size)  # type: ignore[union-attr]
    sheet = np.full((lines * high + GAP + foot, margin + columns * wide, 3), PAPER, np.uint8)
    for index, picture in enumerate(pixels):
        top, left = GAP + index // columns * high, margin + index % columns * wide
        sheet[top : top + high - GAP, left : left + wide - GAP] = picture
    canvas = Image.fromarray(sheet)
    pen = ImageDraw.Draw(canvas)
    for line, caption in enumerate(rows):
        pen.text((margin - 2 * GAP, GAP + line * high + (high - GAP) // 2), caption, fill=INK, font=font, anchor="rm")
    for column, caption in enumerate(broken):
        middle = margin + column * wide + (wide - GAP) // 2
        pen.multiline_text((middle, lines * high + GAP), caption, fill=INK, font=small, anchor="ma", align="center")
    return canvas


def _broken(caption: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Break a caption into lines at its words, none wider than `width` pixels unless a word is."""
    lines = [""]
    for word in caption.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if font.getlength(longer) <= width or not lines[-1] else [*lines, word]
    return "\n".join(lines)


def save_picture(picture: Image.Image, file: Path) -> None:
    """Write a picture as an optimised PNG (or whatever the suffix says), making its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    picture.save(file, optimize=True)
