"""The roster: the families that are served. To the scheduler it is one device, to the routes the dials of all."""

import asyncio
import gc
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from weakref import WeakSet

from diffusion.family import Family, FamilyError, Precision, open_family
from diffusion.frontier import Position
from diffusion.manifest import MANIFEST
from diffusion.plans import Plan
from server import metrics
from server.content import edition
from server.device import Device
from server.dial import Dial, Lease, Wish
from server.failures import EditionGone, FamilyConflict, FieldRefused, MemoryExceeded, ModelUnknown, OutOfMemory, shown
from server.pace import Timing
from server.samples import Turn, Underway
from server.schemas import GenerateRequest

log = logging.getLogger(__name__)

DRAIN_SECONDS = 0.2
"""How often a family that is leaving is asked whether anybody still draws with it."""


@dataclass(slots=True, eq=False)
class Served:
    """A family on the roster."""

    family: Family
    dial: Dial
    device: Device
    state: Literal["loading", "ready", "leaving"]
    """Only a ready one is chosen for new requests; whether the server draws at all, the scheduler knows."""
    edition: str
    """What tells it from other families of its name (content.py)."""
    leases: WeakSet[Lease] = field(default_factory=WeakSet)
    """Those of the wishes that are not answered yet."""

    @property
    def memory_bytes(self) -> int:
        """Size of the networks' weights, in bytes."""
        return weights_bytes(self.family)

    def turn(self, request: GenerateRequest) -> Wish:
        """Return what to draw, with a lease on the family. Raises what Dial.turn raises."""
        return replace(self.dial.turn(request), lease=Lease(self.leases))

    def repeat(self, request: GenerateRequest, plan: Plan) -> Wish:
        """Return what Dial.repeat returns, with a lease on the family. Raises what it raises."""
        return replace(self.dial.repeat(request, plan), lease=Lease(self.leases))


def weights_bytes(family: Family) -> int:
    """Return the size of all networks of a family, in bytes: its own in its precision, all others in float32."""
    manifest, each = family.manifest, 2 if family.precision == "bf16" else 4
    others = sum(part.parameters for part in (manifest.autoencoder, manifest.text) if part)
    return each * sum(member.parameters for member in manifest.members) + 4 * others


class Roster:
    """Families by name, the default one first. All changes are made on the event loop, by `load` and `unload`."""

    def __init__(
        self,
        make_dial: Callable[[Family], Dial],
        make_device: Callable[[Family], Device],
        measure: Callable[[Served, Iterable[Timing]], Awaitable[None]],
        forget: Callable[[str], None],
        is_needed: Callable[[str], bool] = lambda name: False,
        *,
        memory_bytes: int | None = None,
        root: Path | None = None,
        precision: Precision = "fp32",
    ):
        """measure takes in how fast a family is that is loaded later, forget lets go of that; root holds the families that
        may be, precision is what their networks compute in. is_needed says whether work that was accepted but is no wish
        yet, jobs, keeps a family of that name."""
        self._make_dial, self._make_device, self._measure = make_dial, make_device, measure
        self._forget_pace, self._is_needed = forget, is_needed
        self._memory_bytes, self._root, self._precision = memory_bytes, root, precision
        self._served: dict[str, Served] = {}

    def add(self, family: Family) -> None:
        """Serve a family from the start. Raises FamilyConflict, MemoryExceeded."""
        self._admit(family, "ready")
        _tell(family)

    def __iter__(self) -> Iterator[Served]:
        """Iterate over all families, those that come or go too."""
        return iter(self._served.values())

    @property
    def ready(self) -> list[Served]:
        """The families that requests may choose, the default one first."""
        return [served for served in self if served.state == "ready"]

    def find(self, model: str | None) -> Served:
        """Return the family of that name, or the default one. Raises ModelUnknown."""
        for served in self.ready:
            if model in (None, served.family.name):
                return served
        names = ", ".join(repr(served.family.name) for served in self.ready)
        raise ModelUnknown(f"model {shown(model)} is not served; served is {names}")

    def keep_to(self, edition: str) -> Served:
        """Return the family that accepted work is of, though it may be leaving. Raises EditionGone where it has left."""
        for served in self:
            if served.edition == edition and served.state != "loading":
                return served
        raise EditionGone(edition.partition("@")[0])

    def family(self, name: str) -> Family:
        """Return a family that wishes are drawn with, whether new requests may choose it or not."""
        return self._served[name].family

    def labels(self, request: GenerateRequest) -> tuple[str, str]:
        """Return the metrics' labels of a request: its family, and what Dial.label says; "none" for what is not served."""
        try:
            served = self.find(request.model)
        except ModelUnknown:
            return "none", "none"
        return served.family.name, served.dial.label(request)

    def prepare(self) -> list[Timing]:
        """Prepare the families of the start, on the device thread. Raises what their devices raise."""
        return [timing for served in list(self) for timing in _prepare(served)]

    def wave(self, turns: Sequence[Turn]) -> Sequence[Any] | Underway:
        """Take one evaluation of each turn, all of one need, on the device of their family."""
        return self._served[turns[0].sample.family].device.wave(turns)

    async def load(self, folder: str) -> Served:
        """Load the family in that folder of the root, and return once it is ready.

        It is prepared beside the device thread, so that waves go on meanwhile. Raises FieldRefused for a folder without
        a family or with one that must not be served, FamilyConflict, MemoryExceeded.
        """
        if self._root is None or not (self._root / folder / MANIFEST).is_file():
            raise FieldRefused("folder", f"there is no family {shown(folder)} in the folder that --families names")
        try:
            family = await asyncio.to_thread(open_family, self._root / folder, self._precision)
            served = self._admit(family, "loading")
            try:
                await self._measure(served, await asyncio.to_thread(_prepare, served))
            except BaseException:
                del self._served[family.name]
                raise
        except FamilyError as error:
            raise FieldRefused("folder", str(error)) from error
        except OutOfMemory as error:
            raise MemoryExceeded("the device has no room for the family's networks beside the others") from error
        served.state = "ready"
        _tell(family)
        return served

    async def unload(self, name: str) -> None:
        """Choose the family for no new request, wait until everybody who chose it has an answer, and let it go.

        Raises ModelUnknown, FamilyConflict.
        """
        served = self._served.get(name)
        if served is None:
            raise ModelUnknown(f"no family {shown(name)} is loaded")
        if served.state != "ready":
            raise FamilyConflict(f"family {name!r} is {served.state}")
        if len(self.ready) == 1:
            raise FamilyConflict(f"family {name!r} is the only one that is served")
        served.state = "leaving"
        while served.leases or self._is_needed(name):
            await asyncio.sleep(DRAIN_SECONDS)
            gc.collect()  # a wish that was refused before it was drawn may be held by its traceback, in a cycle
        del self._served[name]
        self._forget_pace(name)
        _forget(served.family)
        log.info("family %s is unloaded", name)

    def _admit(self, family: Family, state: Literal["loading", "ready"]) -> Served:
        if family.name in self._served:
            raise FamilyConflict(f"there is a family {family.name!r} already; it is {self._served[family.name].state}")
        size, used = weights_bytes(family), sum(served.memory_bytes for served in self)
        if self._memory_bytes is not None and used + size > self._memory_bytes:
            raise MemoryExceeded(
                f"the networks of family {family.name!r} take {size} bytes; "
                f"{self._memory_bytes} are allowed for all families and {used} are taken"
            )
        served = Served(family, self._make_dial(family), self._make_device(family), state, edition(family))
        self._served[family.name] = served
        return served


def _prepare(served: Served) -> list[Timing]:
    return [timing._replace(family=served.family.name) for timing in served.device.prepare()]


def _tell(family: Family) -> None:
    for member in family.manifest.members:
        metrics.STUDENT_INFO.labels(family.name, member.name, member.weights.sha256).set(1)
    metrics.begin(family.name, [*family.positions, "auto"])
    if family.frontier is None:
        return
    for position in filter(None, map(family.measured, family.positions.values())):
        for metric in ("frechet", "agreement", "agreement_held_out"):
            measure = getattr(position, metric)
            if measure is not None:
                labels = family.name, str(position.steps), metric, family.frontier.reference
                metrics.STUDENT_QUALITY.labels(*labels).set(measure.mean)
        _tell_age(family, position)


def _tell_age(family: Family, position: Position) -> None:
    """Tell when a position was measured, and how new its networks are; a record without a time tells nothing."""
    labels = family.name, str(position.steps)
    metrics.FRONTIER_SECONDS.labels(*labels).set(position.latency_ms.mean / 1000)
    trained = [_unix_seconds(family.manifest.member(name).training.finished_at) for name in position.plan.members]
    measured = _unix_seconds(position.measured.measured_at)
    if measured is not None:
        metrics.FRONTIER_MEASURED.labels(*labels).set(measured)
    if None not in trained:
        metrics.FRONTIER_TRAINED.labels(*labels).set(max(filter(None, trained)))


def _unix_seconds(moment: str) -> float | None:
    """Seconds since 1970 of an ISO 8601 time, UTC where it names no zone; None for anything else."""
    try:
        found = datetime.fromisoformat(moment)
    except ValueError:
        return None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def _forget(family: Family) -> None:
    for gauge in (
        metrics.STUDENT_INFO,
        metrics.STUDENT_QUALITY,
        metrics.FRONTIER_SECONDS,
        metrics.FRONTIER_MEASURED,
        metrics.FRONTIER_TRAINED,
    ):
        gauge.remove_by_labels({"model": family.name})
