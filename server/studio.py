"""The studio: from a wish to encoded images and the times they took. HTTP stays outside."""

import asyncio
from dataclasses import dataclass
from time import perf_counter

from diffusion.plans import Plan
from server import metrics
from server.dial import Wish
from server.failures import DeadlinePassed, TimedOut
from server.images import EncodePool, Format
from server.scheduler import Drawn, Scheduler
from server.schemas import Timings


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded image."""

    data: bytes
    seed: int
    index: int
    plan: Plan | None = None
    """The plan that drew it, where that is a shorter one than the wish's."""


class Studio:
    """Draws and encodes."""

    def __init__(self, scheduler: Scheduler, encoders: EncodePool, *, timeout_seconds: float):
        self._scheduler = scheduler
        self._encoders = encoders
        self._timeout_seconds = timeout_seconds

    async def make(self, wish: Wish, output_format: Format) -> tuple[list[Picture], Timings]:
        """Return the wish's images, in the order of their indices. Cancel this to drop the work.

        Raises TimedOut and DeadlinePassed by its own clock, and whatever Scheduler.draw raises.
        """
        try:
            async with asyncio.timeout(self._timeout_seconds):
                drawn = await self._draw(wish)
                encoding = perf_counter()
                files = await asyncio.gather(*(self._encoders.encode(image.pixels, output_format) for image in drawn))
        except TimeoutError:
            raise TimedOut(f"the request was not done within {self._timeout_seconds:g} seconds") from None
        done = perf_counter()
        timings = _timings(drawn, encode_seconds=done - encoding, total_seconds=done - wish.arrived)
        _record(wish, timings, shortened=any(image.shortened for image in drawn))
        pictures = [
            Picture(file, sample.seed, sample.index, image.plan if image.shortened else None)
            for file, sample, image in zip(files, wish.samples, drawn, strict=True)
        ]
        return pictures, timings

    async def _draw(self, wish: Wish) -> list[Drawn]:
        """Draw by the wish's deadline or not at all; what was drawn in time is worth encoding even if that is late."""
        if wish.deadline is None:
            return await self._scheduler.draw(wish.samples)
        try:
            async with asyncio.timeout(wish.deadline - perf_counter()):
                return await self._scheduler.draw(wish.samples, deadline=wish.deadline - wish.encode_seconds)
        except TimeoutError:
            metrics.DEADLINES.labels(str(wish.steps), "missed").inc()
            raise DeadlinePassed("the deadline passed before the images were drawn; their work was dropped") from None


def _timings(drawn: list[Drawn], *, encode_seconds: float, total_seconds: float) -> Timings:
    last = max(drawn, key=lambda image: image.queue_seconds + image.device_seconds)
    return Timings(
        queue_seconds=last.queue_seconds,
        device_seconds=last.device_seconds,
        encode_seconds=encode_seconds,
        total_seconds=total_seconds,
    )


def _record(wish: Wish, timings: Timings, *, shortened: bool) -> None:
    steps = str(wish.steps)
    metrics.REQUEST_SECONDS.labels(steps).observe(timings.total_seconds)
    metrics.IMAGES.labels(steps).inc(len(wish.samples))
    if wish.deadline_seconds is not None:
        result = "met" if timings.total_seconds <= wish.deadline_seconds else "missed"
        metrics.DEADLINES.labels(steps, result).inc()
    if reason := wish.degraded(shortened=shortened):
        metrics.DEGRADED.labels(reason).inc()
    for stage in ("queue", "device", "encode"):
        metrics.STAGE_SECONDS.labels(steps, stage).observe(getattr(timings, f"{stage}_seconds"))
