"""The studio: from a wish to encoded images and the times they took. HTTP stays outside."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from time import perf_counter

import numpy as np

from diffusion.family import Family
from diffusion.plans import Plan
from server import metrics, tickets
from server.cache import NoCache, ResultCache
from server.content import content_key
from server.dial import Wish
from server.failures import DeadlinePassed, TimedOut
from server.images import EncodePool, Format
from server.promises import Reason
from server.samples import Sample
from server.scheduler import Scheduler
from server.schemas import Timings
from server.tickets import Drawn, Progress
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
    cached: bool = False
    """Whether it came out of the result cache."""


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
    """Draws and encodes what the result cache does not have."""

    def __init__(
        self,
        scheduler: Scheduler,
        encoders: EncodePool,
        cache: ResultCache,
        family: Callable[[str], Family],
        *,
        timeout_seconds: float,
    ):
        self._scheduler = scheduler
        self._encoders = encoders
        self._cache = cache
        self._family = family
        self._timeout_seconds = timeout_seconds

    async def make(
        self,
        wish: Wish,
        output_format: Format,
        *,
        preview: tickets.Preview | None = None,
        progress: Progress | None = None,
        bounded: bool = True,
    ) -> tuple[list[Picture], Timings]:
        """Return the wish's images, in the order of their indices. Cancel this to drop the work.

        preview and progress are called as in Scheduler.draw, for the images that are drawn, with their indices.
        bounded: whether the time limit of requests holds; nobody waits for a job.
        Raises TimedOut and DeadlinePassed by its own clock, and whatever Scheduler.draw raises.
        """
        try:
            async with asyncio.timeout(self._timeout_seconds if bounded else None):
                keys = self._keys(wish, output_format)
                known = await self._known(wish, keys)
                missing = [sample for sample in wish.samples if sample.index not in known]
                drawn = await self._draw(wish, missing, preview, progress) if missing else []
                encoding = perf_counter()
                files = await asyncio.gather(*(self._encoders.encode(image.pixels, output_format) for image in drawn))
                done = perf_counter()
        except TimeoutError:
            raise TimedOut(f"the request was not done within {self._timeout_seconds:g} seconds") from None
        finally:
            if wish.lease:
                wish.lease.release()
        timings = _timings(drawn, encode_seconds=done - encoding, total_seconds=done - wish.arrived)
        _record(wish, timings, drawn, waited_for=bounded)
        if drawn:
            record_stages(wish, drawn, encoding=encoding, done=done)
        fresh = {
            sample.index: Picture(
                file, sample.seed, sample.index, image.plan if image.shortened else None, image.shortened
            )
            for sample, file, image in zip(missing, files, drawn, strict=True)
        }
        await self._keep(keys, fresh)
        pictures = known | fresh
        return [pictures[sample.index] for sample in wish.samples], timings

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

    async def _draw(
        self,
        wish: Wish,
        samples: Sequence[Sample],
        preview: tickets.Preview | None,
        progress: Progress | None,
    ) -> list[Drawn]:
        """Draw by the wish's deadline or not at all; what was drawn in time is worth encoding even if that is late.

        The scheduler counts the samples it is given; preview and progress hear the images' own indices.
        """
        preview, progress, spent = _by_index(samples, preview), _by_index(samples, progress), wish.meter.add
        if wish.deadline is None:
            return await self._scheduler.draw(samples, preview=preview, progress=progress, spent=spent)
        try:
            async with asyncio.timeout(wish.deadline - perf_counter()):
                due = wish.deadline - wish.encode_seconds
                return await self._scheduler.draw(
                    samples, deadline=due, preview=preview, progress=progress, spent=spent
                )
        except TimeoutError:
            metrics.DEADLINES.labels(wish.model, str(wish.steps), "missed").inc()
            raise DeadlinePassed("the deadline passed before the images were drawn; their work was dropped") from None

    def _keys(self, wish: Wish, output_format: Format) -> dict[int, str]:
        """The cache's key of each image by its index; none where nothing is cached. One hash serves all images.

        Whose seed the server drew, nobody will ask for by chance; and the results of a job are kept with the job.
        """
        if isinstance(self._cache, NoCache) or not wish.seed_named or not all(sample.exact for sample in wish.samples):
            return {}
        ended_by_plan = replace(wish.samples[0], index=0, alternatives=())  # others are not kept
        key = content_key(self._family(wish.model), [ended_by_plan], output_format)
        return {sample.index: f"{key}:{sample.index}" for sample in wish.samples}

    async def _known(self, wish: Wish, keys: dict[int, str]) -> dict[int, Picture]:
        """The pictures that the cache has, by their index."""
        files = await self._cache.get(list(keys.values())) if keys else None
        if files is None:
            metrics.CACHE_REQUESTS.labels("error" if keys else "bypass").inc()
            return {}
        metrics.CACHE_REQUESTS.labels("miss" if None in files else "hit").inc()
        found = zip(keys, files, strict=True)
        return {index: Picture(file, wish.seed, index, cached=True) for index, file in found if file is not None}

    async def _keep(self, keys: dict[int, str], fresh: dict[int, Picture]) -> None:
        """Put what was drawn into the cache, but for images that ended by another plan than their key says."""
        files = {keys[index]: picture.data for index, picture in fresh.items() if keys and picture.plan is None}
        if files:
            await self._cache.put(files)


def _by_index(samples: Sequence[Sample], call: Callable[..., None] | None) -> Callable[..., None] | None:
    """What calls with a sample's index where it is called with its place among those that are drawn."""
    return call and (lambda place, *news: call(samples[place].index, *news))


def _timings(drawn: list[Drawn], *, encode_seconds: float, total_seconds: float) -> Timings:
    last = max(drawn, key=lambda image: image.queue_seconds + image.device_seconds, default=None)
    return Timings(
        queue_seconds=last.queue_seconds if last else 0.0,
        device_seconds=last.device_seconds if last else 0.0,
        encode_seconds=encode_seconds,
        total_seconds=total_seconds,
    )


def _record(wish: Wish, timings: Timings, drawn: Sequence[Drawn], *, waited_for: bool) -> None:
    """Tell the metrics. What the cache answered alone is no latency, they say what drawing costs; nor is a job's."""
    steps = str(wish.steps)
    if wish.deadline_seconds is not None:
        result = "met" if timings.total_seconds <= wish.deadline_seconds else "missed"
        metrics.DEADLINES.labels(wish.model, steps, result).inc()
    if reason := wish.reason or next((image.shortened for image in drawn if image.shortened), None):
        metrics.DEGRADED.labels(wish.model, str(wish.steps_requested), reason).inc()
    for image in drawn:
        metrics.IMAGES.labels(wish.model, str(wish.steps_requested), str(image.evaluations)).inc()
    if not drawn or not waited_for:
        return
    metrics.REQUEST_SECONDS.labels(wish.model, steps).observe(timings.total_seconds)
    for stage in ("queue", "device", "encode"):
        metrics.STAGE_SECONDS.labels(wish.model, steps, stage).observe(getattr(timings, f"{stage}_seconds"))
