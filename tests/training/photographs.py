"""Pictures for tests of data: photograph-like ones, and files as they lie about in people's folders, broken ones among them."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

GOOD = ("alpha.png", "animated.gif", "bits.png", "cmyk.jpg", "grey.png", "palette.gif", "photo.jpg", "photo.webp")
GOOD += ("sixteen.png", "turned.jpg", "wide.PNG")
BROKEN = ("cut.jpg", "cut.png", "cut.webp", "empty.jpg", "listing.jpg", "noise.png")


def photograph(seed: int, size: tuple[int, int] = (60, 44)) -> Image.Image:
    """A picture with something of the spectrum of photographs: random patches, coarse ones stronger than fine ones."""
    rng = np.random.default_rng(seed)
    total = np.full((size[1], size[0], 3), 128.0)
    for cells in (2, 5, 16):
        patches = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += (np.asarray(patches.resize(size, Image.Resampling.BICUBIC), float) - 128) * (1.4 / cells**0.5)
    return Image.fromarray(total.clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """The bytes of an image file."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def paint(file: Path, colour: object = (200, 30, 40), mode: str = "RGB", size: tuple[int, int] = (20, 14)) -> Path:
    """Write a picture of one colour."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(file)
    return file


def album(folder: Path, photographs: int = 6) -> Path:
    """Write a folder of photographs, of the odd formats of GOOD and the broken files of BROKEN."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(photographs):
        photograph(seed).save(folder / f"p{seed}.jpg", quality=90)
    picture = photograph(77)
    turned = Image.Exif()
    turned[0x0112] = 6
    deep = np.asarray(picture.convert("L"), np.uint16) * 257
    written = {
        "alpha.png": encoded(Image.merge("RGBA", (*picture.split(), picture.convert("L")))),
        "animated.gif": encoded(picture.convert("P"), "GIF", save_all=True, append_images=[photograph(78).convert("P")]),
        "bits.png": encoded(picture.convert("1")),
        "cmyk.jpg": encoded(picture.convert("CMYK"), "JPEG"),
        "grey.png": encoded(picture.convert("L")),
        "palette.gif": encoded(picture.convert("P"), "GIF"),
        "photo.jpg": encoded(picture, "JPEG", progressive=True),
        "photo.webp": encoded(picture, "WEBP"),
        "sixteen.png": encoded(Image.fromarray(deep)),
        "turned.jpg": encoded(picture, "JPEG", exif=turned),
        "wide.PNG": encoded(photograph(79, (90, 12))),
        "listing.jpg": b"photo.jpg\nphoto.webp\n",
        "empty.jpg": b"",
        "noise.png": b"\x89PNG\r\n\x1a\n" + np.random.default_rng(0).bytes(400),
    }  # fmt: skip
    for kind in ("jpg", "png", "webp"):
        whole = encoded(photograph(80), {"jpg": "JPEG"}.get(kind, kind.upper()))
        written[f"cut.{kind}"] = whole[: len(whole) * 2 // 3]
    for name, data in written.items():
        (folder / name).write_bytes(data)
    (folder / "notes.txt").write_text("not an image, and not called one")
    (folder / "._p0.jpg").write_bytes(b"what a Mac leaves beside a file")
    return folder
