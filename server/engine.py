"""The engine: the only room that touches the device. One wave is one network evaluation and one fused update."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from queue import SimpleQueue
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion.allocator import give_back_freed_memory
from diffusion.capture import Capture, cuda_graphs
from diffusion.family import Family, FamilyError
from diffusion.manifest import MemberNetwork, NetworkConfig
from diffusion.plans import plan
from diffusion.recording import RecordedNetwork, recorder
from diffusion.uvit import UViT
from server import metrics
from server.crew import LEADS, CrewNetwork, crew_of
from server.evaluator import Evaluator, kind_of
from server.failures import DeviceLost, OutOfMemory
from server.invariance import invariant_buckets
from server.pace import DECODER, Timing
from server.samples import Sample, Turn, Underway

log = logging.getLogger(__name__)

REPEATS = 3
"""Waves of each size that warm-up times; their median counts."""


class DeviceMissing(Exception):
    """The device that is to draw is not in this machine, or this PyTorch cannot use it."""


def choose_device(name: str) -> torch.device:
    """Return the named device; "auto" is the GPU when there is one. Raises DeviceMissing."""
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        raise DeviceMissing(f"device {name} is not there: PyTorch sees {count} CUDA devices; auto or cpu goes without")
    return device


class Engine:
    """A family's networks on a device. Drawing is a pure function of the turns: a wave may be repeated at will."""

    def __init__(self, family: Family, *, device: torch.device, max_wave: int, capture: Capture | None = None):
        """capture: what records waves while warming up; by default CUDA graphs on a GPU, and nothing elsewhere."""
        self.family = family
        self.device = device
        self._capture = cuda_graphs(device) if capture is None and device.type == "cuda" else capture
        self._networks: dict[str, MemberNetwork | RecordedNetwork | CrewNetwork] = {}
        self._crew = crew_of(torch.get_num_threads()) if device.type == "cpu" else None
        self._decode: Callable[[Tensor], Tensor] | None = None
        self._evaluators: tuple[Evaluator, ...] = ()
        self._idle: SimpleQueue[Evaluator] = SimpleQueue()
        # powers of two keep the number of shapes to warm small and the padding below half
        self._buckets = tuple(2**power for power in range(max_wave.bit_length()) if 2**power < max_wave) + (max_wave,)
        self._is_warm = False
        self._exact: dict[tuple[NetworkConfig, bool], tuple[int, ...]] = {}

    def prepare(self) -> list[Timing]:
        """Load every network, find the exact buckets, warm and time all shapes, and draw the golden samples again.

        Returns what waves of each network and size took, in the exact mode, and decoding an image where there are latents.
        Raises FamilyError when the family's files are not what they should be or the images are not as recorded, OutOfMemory
        when the device has no room for it, DeviceLost.
        """
        try:
            return self._prepare()
        except RuntimeError as error:
            failure = _failure(error)
        self._networks, self._decode = {}, None
        self._appoint(0)
        self._free_memory(failure)
        raise failure  # out here, as in `wave`

    def _prepare(self) -> list[Timing]:
        if self._crew:
            self._crew.lead()
        self._networks = {member.name: self._network(member.name) for member in self.family.manifest.members}
        self._decode = self._decoder()
        self._appoint(LEADS if self._crew else 1)
        for sample in self._typical_samples():
            self._warm(sample)
            self._find_exact_buckets(sample)
        timings = [*self._time_waves(), *self._time_decoding()]
        self._check_golden()
        self._is_warm = True
        give_back_freed_memory()  # what loading took is not what drawing takes
        log.info("family %s is ready on %s, its dial: %s", self.family.name, self.device, [*self.family.positions])
        return timings

    def _appoint(self, number: int) -> None:
        """Have so many evaluators, each of which evaluates one wave at a time."""
        make = partial(Evaluator, self.family, self.device, self._networks, self._decode)
        self._evaluators, self._idle = tuple(make() for _ in range(number)), SimpleQueue()
        for evaluator in self._evaluators:
            self._idle.put(evaluator)

    def _network(self, name: str) -> MemberNetwork | RecordedNetwork | CrewNetwork:
        """A member's network as it is fastest to evaluate on the device (docs/performance.md)."""
        network = self.family.network(name, self.device)
        if self.device.type == "cuda" and isinstance(network, UViT):
            network.join_films()
        if self.device.type != "cpu":
            return network
        way = RecordedNetwork(network, recorder()) if isinstance(network, UViT) else network
        return CrewNetwork(way, self._crew) if self._crew else way

    def _decoder(self) -> Callable[[Tensor], Tensor] | None:
        """What makes images of latents, where there are latents; on a CPU not the lead, which computes with one thread."""
        autoencoder = self.family.autoencoder(self.device)
        if autoencoder is None:
            return None
        return partial(self._crew.alone, autoencoder.decode) if self._crew else autoencoder.decode

    def wave(self, turns: Sequence[Turn]) -> list[Any] | Underway:
        """Take one evaluation of each turn, all of one member; return latents, or for last turns images (H, W, C).

        A turn that asks for a preview gets `Previewed`. On a GPU the wave is only enqueued, with a crew only begun where no other
        network makes the images, and returned as `Underway`.
        Raises DeviceLost when the device's context is broken, OutOfMemory when there is no room for a wave of this size;
        any other error concerns this wave only.
        """
        if self._crew and self._is_warm and self._decode is None:  # which waits for all parts, also the next wave's
            return Underway(self._crew.begin(self._run, turns).result)
        return self._run(turns)

    def _run(self, turns: Sequence[Turn]) -> Any:
        """A wave, of which a GPU has been told but is not done."""
        try:
            results = self._hand_over(turns)
        except RuntimeError as error:
            failure = _failure(error)
        else:
            if self.device.type != "cuda":
                return results
            done = torch.cuda.Event()
            done.record(torch.cuda.current_stream(self.device))
            return Underway(partial(self._finish, done, results))
        self._free_memory(failure)
        raise failure  # out here, where the failed wave's tensors are no longer held by its traceback

    def _free_memory(self, failure: Exception) -> None:
        if isinstance(failure, OutOfMemory) and self.device.type == "cuda":
            torch.cuda.empty_cache()

    def draw(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        """Return the images of samples of one plan, uint8 (H, W, C), in as many waves as the plan has hops."""
        latents: list[Any] = [None] * len(samples)
        for number in range(samples[0].evaluations):
            turns = [Turn(sample, number, latent) for sample, latent in zip(samples, latents, strict=True)]
            latents = self.draw_wave(turns)
        return latents

    def draw_wave(self, turns: Sequence[Turn]) -> list[Any]:
        """Take one evaluation of each turn as `wave` does, and return when it is done."""
        results = self.wave(turns)
        return list(results.wait()) if isinstance(results, Underway) else results

    def _hand_over(self, turns: Sequence[Turn]) -> list[Any]:
        results: list[Any] = [None] * len(turns)
        evaluator = self._idle.get()
        try:
            for numbers, bucket in self._batches(turns):
                batch = [turns[number] for number in numbers]
                for number, result in zip(numbers, evaluator.evaluate(batch, bucket), strict=True):
                    results[number] = result
                if self._is_warm:  # warming up is no traffic
                    self._tell(batch, bucket)
        finally:
            self._idle.put(evaluator)
        return results

    @staticmethod
    def _finish(done: torch.cuda.Event, results: list[Any]) -> list[Any]:
        """Wait for an enqueued wave; a broken context is noticed here."""
        try:
            done.synchronize()
        except RuntimeError as error:
            raise _failure(error) from error
        return results

    def _batches(self, turns: Sequence[Turn]) -> list[tuple[list[int], int]]:
        """Cut a wave into batches of like guidance, each with the bucket to pad it to: (turns' numbers, bucket)."""
        batches = []
        guided = [turn.guidance != 0 for turn in turns]
        for is_guided, group in groupby(sorted(range(len(turns)), key=guided.__getitem__), key=guided.__getitem__):
            numbers = list(group)
            network = self._networks[turns[numbers[0]].hop.member]
            exact = any(turns[number].sample.exact for number in numbers)
            buckets = self._exact[network.config, is_guided] if exact else self._buckets
            while numbers:
                bucket = next((size for size in buckets if size >= len(numbers)), buckets[-1])
                batches.append((numbers[:bucket], bucket))
                numbers = numbers[bucket:]
        return batches

    def _tell(self, turns: Sequence[Turn], bucket: int) -> None:
        """Tell the metrics of a batch's rows, each step count its share."""
        for steps, samples in Counter(turn.sample.evaluations for turn in turns).items():
            labels, share = (self.family.name, turns[0].hop.member, str(steps)), samples / len(turns)
            metrics.WAVE_ROWS.labels(*labels).inc(bucket * share)
            metrics.WAVE_PADDING.labels(*labels).inc((bucket - len(turns)) * share)

    def _typical_samples(self) -> list[Sample]:
        """One sample that begins on each member, and for the teacher one with guidance: every shape that waves have."""
        manifest, samples = self.family.manifest, []
        for member in manifest.members:
            condition = (*(1 for _ in manifest.conditioning.sizes), *self.family.told(member.name))
            halves = plan(member.name, (1.0, 0.5, 0.0), segments=max(member.network.segments, default=None))
            samples.append(Sample(halves, condition, seed=0))
            if member.role == "teacher":
                samples.append(Sample(halves, condition, seed=0, guidance=manifest.guidance or 1.0))
        return samples

    def _warm(self, sample: Sample) -> None:
        """Run waves of every size, and have them recorded where something records them and nothing is looked up on the host."""
        capture = self._capture if self.family.manifest.text is None else None
        for bucket in reversed(self._buckets):  # the largest one's memory has room for all others
            self._record(sample, bucket)
            self._evaluators[0].evaluate([Turn(sample, 0, None)] * bucket, bucket)
            why = capture and self._evaluators[0].record(self._crowd(sample, bucket), bucket, capture)
            if why:
                guided, member = "guided" if sample.guidance else "unguided", sample.plan.members[0]
                size = f"waves of {bucket}, {guided}, of {member}"
                log.warning("%s are not recorded, but evaluated each time: %s", size, why)

    def _record(self, sample: Sample, bucket: int) -> None:
        """Have a network recorded for a size on this thread, beside which waves of other families go on."""
        network = self._networks[sample.plan.members[0]]
        if isinstance(network, RecordedNetwork | CrewNetwork):
            rows = bucket * (2 if sample.guidance else 1)
            z = torch.zeros(rows, *self.family.manifest.shape, dtype=kind_of(self.family))
            network.record(
                z, torch.zeros(rows), torch.tensor([Turn(sample, 0, None).condition] * rows, dtype=torch.int64)
            )

    def _time_waves(self) -> Iterator[Timing]:
        """Time exact waves of every size, once per architecture: how long it takes does not depend on the weights."""
        measured: dict[tuple[NetworkConfig, bool], list[tuple[int, float]]] = {}
        for sample in self._typical_samples():
            member, guided = sample.plan.members[0], sample.guidance != 0
            key = self._networks[member].config, guided
            if key not in measured:
                measured[key] = [(rows, self._time_wave([Turn(sample, 0, None)] * rows)) for rows in self._buckets]
            yield from (Timing(member, guided, rows, seconds) for rows, seconds in measured[key])

    def _time_wave(self, turns: Sequence[Turn]) -> float:
        """Seconds of a wave: the median of a few."""
        return _median_seconds(lambda: self.draw_wave(turns))

    def _time_decoding(self) -> Iterator[Timing]:
        """Time the decoder on one image; several are decoded one after another."""
        if decode := self._decode:
            latent = torch.zeros(1, *self.family.manifest.shape, device=self.device)
            decode(latent)  # the first time finds its algorithms
            yield Timing(DECODER, False, 1, _median_seconds(lambda: decode(latent).cpu()))

    def _find_exact_buckets(self, sample: Sample) -> None:
        """Try which buckets agree, once per architecture: shapes choose the algorithm, not the values of weights."""
        key = self._networks[sample.plan.hops[0].member].config, sample.guidance != 0
        if key in self._exact:
            return
        crowd = self._crowd(sample, self._buckets[-1])

        def draw(rows: np.ndarray) -> np.ndarray:
            return torch.stack(self._evaluators[0].evaluate([crowd[row] for row in rows], len(rows))).cpu().numpy()

        self._exact[key] = invariant_buckets(draw, self._buckets)
        guided, member = "guided" if sample.guidance else "unguided", sample.plan.members[0]
        log.info("exact samples, %s, of networks like %s are drawn %s at a time", guided, member, self._exact[key])

    @staticmethod
    def _crowd(sample: Sample, size: int) -> list[Turn]:
        """Turns of one member that differ in seed and in time."""
        first = sample.plan.hops[0]
        crowd = []
        for seed, t in enumerate(np.linspace(0.95, 0.2, size).tolist()):
            through = plan(first.member, (1.0, t, 0.1, 0.0), segments=first.segments)
            crowd.append(Turn(replace(sample, plan=through, seed=seed), 1, None))
        return crowd

    def _check_golden(self) -> None:
        """Draw what training recorded and let the family compare. Raises FamilyError."""
        recorded = [entry for entry, _ in self.family.golden()]
        if not recorded:
            raise FamilyError(f"family {self.family.name!r} has no golden samples to check the networks with")
        images = {}
        for entry in recorded:
            plan = self.family.golden_plan(entry)
            condition = (*entry.condition, *self.family.told(plan.members[0]))
            sample = Sample(plan, condition, entry.seed, entry.index, self.family.guidance(plan))
            images[entry] = torch.from_numpy(self.draw([sample])[0])
        self.family.check_golden(images)
        log.info("golden check passed on %d samples", len(images))


def _median_seconds(work: Callable[[], object]) -> float:
    """Seconds that work takes: the median of a few times."""
    times = [perf_counter()]
    for _ in range(REPEATS):
        work()
        times.append(perf_counter())
    return median(after - before for before, after in zip(times, times[1:], strict=False))


def _failure(error: RuntimeError) -> Exception:
    """What an error of torch means to whoever waits."""
    if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error):
        return OutOfMemory(str(error))
    if isinstance(error, torch.AcceleratorError):
        lost = DeviceLost("the device is lost")
        lost.__cause__ = error
        return lost
    return error
