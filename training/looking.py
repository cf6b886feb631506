"""`stepdial look`: data as training would see it."""

import json
import resource
import time
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from diffusion import provenance
from diffusion.pictures import grid, save_picture
from training.command import Reading, choose_device
from training.datasets import DataSet
from training.feed import feed, usual_workers
from training.opening import open_captioned
from training.yardstick import measure

PARTS = 5
"""Parts in which images are read, each timed, for the spread."""
BATCH = 32


class Look(Reading):
    """Look at data as training would see it: what it is, what in it cannot be used, how fast it is read."""

    data: str
    """What to look at, as in stepdial train."""
    prompts: Path | None = None
    """How captions are read, as in stepdial train."""
    resolution: int = Field(default=64, ge=4, le=4096)
    """Height and width of the images, in pixels."""
    images: int = Field(default=2000, ge=BATCH * PARTS)
    """Images to read, rounded up to a multiple of 160, from the beginning of the stream that training sees with seed 0."""
    whole: bool = False
    """Read every image there is, so that all are named that cannot be used."""
    skipped: Path | None = None
    """File to write the names of images that cannot be used to, with the reasons, a JSON line each."""
    out: Path | None = None
    """PNG file to write the first eight images to, as they are cropped, with what they are labelled."""
    result: Path | None = None
    """JSON file to write what was found to, with the speed."""

    def cli_cmd(self) -> None:
        """Look."""
        data = open_captioned(self.data, self.resolution, self.augmentation, self.prompts)
        print(data)
        if self.skipped:
            data.skipped.keep(self.skipped)
        if self.out:
            self._picture(data)
        workers = usual_workers(data) if self.workers is None else self.workers
        count = data.size if self.whole and data.size else self.images
        each = -(-count // (PARTS * BATCH))
        parts = [_read(data, range(part * each, (part + 1) * each), workers) for part in range(PARTS)]
        speed, busy = (measure([part[name] for part in parts]) for name in ("images_per_second", "cpu_ms_per_image"))
        print(f"{speed.mean:,.0f} ± {speed.spread:,.0f} images/s, read by {workers or 'no'} processes ahead;", end=" ")
        print(f"{busy.mean:.2f} ± {busy.spread:.2f} ms of processor time an image")
        print(data.skipped if data.skipped else "every image that was read can be used")
        if self.result:
            self._write(data, workers, PARTS * each * BATCH, parts)

    def _picture(self, data: DataSet) -> None:
        assert self.out
        pixels = data.pixels(0, 8, seed=0)
        data.skipped.note(pixels.skipped)
        said = [data.conditioning.describe(tuple(condition)) for condition in pixels.conditions.tolist()]
        picture = grid(torch.from_numpy(pixels.images), 8, zoom=max(1, 128 // data.resolution), feet=said)
        save_picture(picture, self.out)

    def _write(self, data: DataSet, workers: int, count: int, parts: list[dict[str, float]]) -> None:
        assert self.result
        record: dict[str, Any] = {
            "data": str(data),
            "resolution": data.resolution,
            "images_read": count,
            "skipped": len(data.skipped),
            "workers": workers,
            **{name: measure([part[name] for part in parts]).model_dump() for name in parts[0]},
            "command": provenance.command(),
            "commit": provenance.commit(),
            "device": provenance.device_name(choose_device("cpu")),
            "versions": provenance.versions(),
            "measured_at": provenance.now(),
        }
        self.result.parent.mkdir(parents=True, exist_ok=True)
        self.result.write_text(json.dumps(record, indent=1) + "\n")


def _read(data: DataSet, iterations: range, workers: int) -> dict[str, float]:
    """Read batches as training would; return images per second, and milliseconds of processor time for each image."""
    began, busy = time.perf_counter(), _busy()
    with feed(data, batch=BATCH, seed=0, iterations=iterations, workers=workers) as batches:
        for _ in batches:
            pass
    count = BATCH * len(iterations)
    return {
        "images_per_second": count / (time.perf_counter() - began),
        "cpu_ms_per_image": 1e3 * (_busy() - busy) / count,
    }


def _busy() -> float:
    """Return the processor time of this process and of those it has started and seen end, in seconds."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)
