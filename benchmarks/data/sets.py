"""Write the same photograph-like images as every kind of data set there is: `python -m benchmarks.data.sets FOLDER`."""

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

IMAGES = 640
SIZE = (500, 375)
"""As most of ImageNet's."""
CLASSES = 10


def photograph(seed: int) -> bytes:
    """Return a JPEG of random patches, coarse ones stronger than fine ones, with a camera's noise: about 50 kB."""
    rng = np.random.default_rng(seed)
    total = np.full((SIZE[1], SIZE[0], 3), 128.0)
    for cells in (3, 12, 48, 150):
        patches = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += (np.asarray(patches.resize(SIZE, Image.Resampling.BICUBIC), float) - 128) * (2 / cells**0.5)
    total += rng.normal(0, 3, total.shape[:2])[..., None]
    stream = io.BytesIO()
    Image.fromarray(total.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def write(folder: Path) -> None:
    """Write `images/`, `shards/`, `saved/`, `table.parquet`, `adm.npz` (64x64) and `cifar/` below the folder."""
    import datasets
    import webdataset

    photographs = [(photograph(seed), seed % CLASSES) for seed in range(IMAGES)]
    for seed, (data, label) in enumerate(photographs):
        (folder / "images" / str(label)).mkdir(parents=True, exist_ok=True)
        (folder / "images" / str(label) / f"{seed}.jpg").write_bytes(data)
    (folder / "shards").mkdir(exist_ok=True)
    with webdataset.ShardWriter(str(folder / "shards" / "%06d.tar"), maxcount=80, verbose=0) as shards:
        for seed, (data, label) in enumerate(photographs):
            shards.write({"__key__": f"{seed:06d}", "jpg": data, "cls": label})
    rows = {
        "image": [{"bytes": data, "path": None} for data, _ in photographs],
        "label": [kind for _, kind in photographs],
    }
    names = [f"class {number}" for number in range(CLASSES)]
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=names)})
    table = datasets.Dataset.from_dict(rows, features=features)
    table.save_to_disk(folder / "saved")
    table.to_parquet(folder / "table.parquet")
    rng = np.random.default_rng(0)
    np.savez(
        folder / "adm.npz", rng.integers(0, 256, (4000, 64, 64, 3), dtype=np.uint8), rng.integers(0, CLASSES, 4000)
    )
    (folder / "cifar").mkdir(exist_ok=True)
    for number in range(1, 6):
        records = rng.integers(0, 256, (10_000, 3073), dtype=np.uint8)
        records[:, 0] %= CLASSES
        (folder / "cifar" / f"data_batch_{number}.bin").write_bytes(records.tobytes())


if __name__ == "__main__":
    write(Path(sys.argv[1]))
