"""The outlook: how long a request would take now, and how crowded the server is."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

from server import metrics
from server.images import EncodePool, Format, Shape
from server.load import MARGIN
from server.promises import DWELL_SECONDS, Brownout, Pressure
from server.samples import Sample
from server.scheduler import Scheduler
from server.tickets import rest


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a request is predicted to take, in seconds."""

    queue_seconds: float
    """Waiting for waves, because of the work that is there already."""
    device_seconds: float
    """In waves, as with nobody else there."""
    encode_seconds: float
    """From pixels to files."""

    @property
    def total_seconds(self) -> float:
        """From now until the last image is encoded."""
        return self.queue_seconds + self.device_seconds + self.encode_seconds


class Outlook:
    """Looks ahead, for all families of a server."""

    def __init__(self, scheduler: Scheduler, encoders: EncodePool, brownout: Brownout):
        self._scheduler, self._encoders, self._brownout = scheduler, encoders, brownout
        self._looks_again = False

    def forecast(self, samples: Sequence[Sample], shape: Shape, output_format: Format) -> Forecast:
        """Return what drawing these samples, all of one plan, and encoding them would take from now on.

        The margin is the scheduler's own for promised samples: half of all waves take longer than the middle one.
        Raises NotReady before the device was measured and while the server ends, DeviceLost once it has stopped.
        """
        if self._scheduler.state != "ready":
            raise self._scheduler.refusal()
        drawing = MARGIN * self._scheduler.predict(samples)
        device = min(drawing, MARGIN * self._device_seconds(samples))
        return Forecast(drawing - device, device, self._encoders.seconds(len(samples), shape, output_format))

    def pressure(self, images: int) -> Pressure:
        """Return how crowded the server is for a request of so many images."""
        room = (self._scheduler.max_evaluations - self._scheduler.evaluations) // images
        return Pressure(self._brownout.cap, room)

    def look(self) -> None:
        """Move the brown-out's level: at every request to draw that consents, and as long as there is one, after every rest."""
        self._brownout.observe(self._scheduler.backlog_seconds, perf_counter())
        self._scheduler.shorten_all = self._brownout.cap == 1  # images on their way cannot be lowered in smaller steps
        metrics.BROWNOUT_LEVEL.set(self._brownout.level)
        if self._brownout.level and not self._looks_again:
            self._looks_again = True
            asyncio.get_running_loop().call_later(DWELL_SECONDS, self._look_again)

    def _look_again(self) -> None:
        self._looks_again = False
        self.look()

    def _device_seconds(self, samples: Sequence[Sample]) -> float:
        """The samples alone on the device, as many in a wave as it takes."""
        pace, first = self._scheduler.pace, samples[0]
        rows, rounds = min(len(samples), pace.max_wave), math.ceil(len(samples) / pace.max_wave)
        needs = rest(first).items()
        drawing = rounds * sum(n * pace.wave_seconds(need.member, need.guided, rows, need.family) for need, n in needs)
        return drawing + pace.decode_seconds(len(samples), first.family)
