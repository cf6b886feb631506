"""The studio: from a wish to encoded images and the times they took. HTTP stays outside."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from itertools import accumulate
from time import perf_counter

import numpy as np

from diffusion.plans import Plan
from server import metrics, tickets
from server.dial import Wish
from server.failures import DeadlinePassed, TimedOut
from server.images import EncodePool, Format
from server.promises import Reason
from server.scheduler import Drawn, Scheduler
from server.schemas import Timings
from server.tracing import record_stages


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded image."""

    data: bytes
    seed: int
    index: int
    plan: Plan | None = None
    """The plan that drew it, where that is a shorter one than the wish's."""
    shortened: Reason | None = None
    """Why it is shorter, where it is."""


@dataclass(frozen=True, slots=True)
class Preview:
    """An encoded image of x_hat after one of an image's hops."""

    data: bytes
    index: int
    """Which of the wish's images."""
    hop: int
    """Hops taken, 1 .. hops - 1; a hop of two evaluations is one."""


UNSENT_PREVIEWS = 64
"""Previews that wait for a client at most; who reads slower than the device draws misses the oldest of them."""


class Studio:
    """Draws and encodes."""

    def __init__(self, scheduler: Scheduler, encoders: EncodePool, *, timeout_seconds: float):
        self._scheduler = scheduler
        self._encoders = encoders
        self._timeout_seconds = timeout_seconds

    async def make(
        self, wish: Wish, output_format: Format, *, preview: tickets.Preview | None = None
    ) -> tuple[list[Picture], Timings]:
        """Return the wish's images, in the order of their indices. Cancel this to drop the work.

        preview is called as in Scheduler.draw.
        Raises TimedOut and DeadlinePassed by its own clock, and whatever Scheduler.draw raises.
        """
        try:
            async with asyncio.timeout(self._timeout_seconds):
                drawn = await self._draw(wish, preview)
                encoding = perf_counter()
                files = await asyncio.gather(*(self._encoders.encode(image.pixels, output_format) for image in drawn))
        except TimeoutError:
            raise TimedOut(f"the request was not done within {self._timeout_seconds:g} seconds") from None
        finally:
            if wish.lease:
                wish.lease.release()
        done = perf_counter()
        timings = _timings(drawn, encode_seconds=done - encoding, total_seconds=done - wish.arrived)
        _record(wish, timings, shortened=next((image.shortened for image in drawn if image.shortened), None))
        record_stages(wish, drawn, encoding=encoding, done=done)
        pictures = [
            Picture(file, sample.seed, sample.index, image.plan if image.shortened else None, image.shortened)
            for file, sample, image in zip(files, wish.samples, drawn, strict=True)
        ]
        return pictures, timings

    async def show(
        self, wish: Wish, output_format: Format, *, shown: Callable[[int], bool] = lambda hop: True
    ) -> AsyncGenerator[Preview | tuple[list[Picture], Timings], None]:
        """Yield previews of the hops that `shown` picks while the images are drawn, then what `make` returns.

        Closing the generator drops the work. Raises what `make` raises.
        """
        unsent: deque[tuple[int, int, np.ndarray]] = deque(maxlen=UNSENT_PREVIEWS)
        news = asyncio.Event()
        hops_after = tuple(accumulate(not corrects for _, corrects in wish.samples[0].plan.evaluations))

        def preview(index: int, evaluations: int, pixels: np.ndarray) -> None:
            hop = hops_after[evaluations - 1]
            if shown(hop):
                unsent.append((index, hop, pixels))
                news.set()

        making = asyncio.create_task(self.make(wish, output_format, preview=preview))
        making.add_done_callback(lambda _: news.set())
        try:
            while unsent or not making.done():
                while unsent:
                    index, hop, pixels = unsent.popleft()
                    yield Preview(await self._encoders.encode(pixels, output_format), index, hop)
                news.clear()
                if not making.done():
                    await news.wait()
            yield making.result()
        finally:
            making.cancel()
            await asyncio.gather(making, return_exceptions=True)

    async def _draw(self, wish: Wish, preview: tickets.Preview | None) -> list[Drawn]:
        """Draw by the wish's deadline or not at all; what was drawn in time is worth encoding even if that is late."""
        if wish.deadline is None:
            return await self._scheduler.draw(wish.samples, preview=preview)
        try:
            async with asyncio.timeout(wish.deadline - perf_counter()):
                deadline = wish.deadline - wish.encode_seconds
                return await self._scheduler.draw(wish.samples, deadline=deadline, preview=preview)
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


def _record(wish: Wish, timings: Timings, *, shortened: Reason | None) -> None:
    steps = str(wish.steps)
    metrics.REQUEST_SECONDS.labels(steps).observe(timings.total_seconds)
    metrics.IMAGES.labels(steps).inc(len(wish.samples))
    if wish.deadline_seconds is not None:
        result = "met" if timings.total_seconds <= wish.deadline_seconds else "missed"
        metrics.DEADLINES.labels(steps, result).inc()
    if reason := wish.reason or shortened:
        metrics.DEGRADED.labels(reason).inc()
    for stage in ("queue", "device", "encode"):
        metrics.STAGE_SECONDS.labels(steps, stage).observe(getattr(timings, f"{stage}_seconds"))
