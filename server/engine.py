"""The engine: the only room that touches the device. One wave is one network evaluation and one fused update."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffusion.autoencoder import Autoencoder
from diffusion.family import Family, FamilyError
from diffusion.manifest import MemberNetwork, NetworkConfig
from diffusion.plans import Evaluation, coefficient_row, correction_row, halfway, plan
from kernels import Column, hop, last_hop, noise
from server import metrics
from server.crew import Crew, CrewNetwork
from server.failures import DeviceLost, OutOfMemory
from server.invariance import invariant_buckets
from server.pace import Timing
from server.samples import Previewed, Sample, Turn, Underway

log = logging.getLogger(__name__)

REPEATS = 3
"""Waves of each size that warm-up times; their median counts."""


class Halfway(NamedTuple):
    """The latent of a sample amid a heun hop."""

    z: Tensor
    """Where the first evaluation led to, (C, H, W)."""
    kept: Tensor
    """What the second adds to its own x_hat (`diffusion.plans.halfway`)."""


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

    def __init__(self, family: Family, *, device: torch.device, max_wave: int):
        self.family = family
        self.device = device
        self._networks: dict[str, MemberNetwork | CrewNetwork] = {}
        threads = torch.get_num_threads() if device.type == "cpu" else 1
        self._crew = Crew(threads) if threads > 1 else None
        self._autoencoder: Autoencoder | None = None
        self._rows: dict[Evaluation, tuple[list[float], float]] = {}
        # powers of two keep the number of shapes to warm small and the padding below half
        self._buckets = tuple(2**power for power in range(max_wave.bit_length()) if 2**power < max_wave) + (max_wave,)
        self._is_warm = False
        self._exact: dict[tuple[NetworkConfig, bool], tuple[int, ...]] = {}

    def prepare(self) -> list[Timing]:
        """Load every network, find the exact buckets, warm and time all shapes, and draw the golden samples again.

        Returns what waves of each network and size took, in the exact mode.
        Raises FamilyError when the family's files are not what they should be or the images are not as recorded.
        """
        if self._crew:
            self._crew.lead()
        for member in self.family.manifest.members:
            network = self.family.network(member.name, self.device)
            self._networks[member.name] = CrewNetwork(network, self._crew) if self._crew else network
        self._autoencoder = self.family.autoencoder(self.device)
        for sample in self._typical_samples():
            self._find_exact_buckets(sample)
            for bucket in self._buckets:
                self._wave([Turn(sample, 0, None)] * bucket, bucket)
        timings = list(self._time_waves())
        self._check_golden()
        self._is_warm = True
        log.info("family %s is ready on %s, its dial: %s", self.family.name, self.device, [*self.family.positions])
        return timings

    def wave(self, turns: Sequence[Turn]) -> list[Any] | Underway:
        """Take one evaluation of each turn, all of one member; return latents, or for last turns images (H, W, C).

        A turn that asks for a preview gets `Previewed`. On a GPU the wave is only enqueued, and returned as `Underway`.
        Raises DeviceLost when the device's context is broken, OutOfMemory when there is no room for a wave of this size;
        any other error concerns this wave only.
        """
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
        if isinstance(failure, OutOfMemory) and self.device.type == "cuda":
            torch.cuda.empty_cache()
        raise failure  # out here, where the failed wave's tensors are no longer held by its traceback

    def draw(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        """Return the images of samples of one plan, uint8 (H, W, C), in as many waves as the plan has hops."""
        latents: list[Any] = [None] * len(samples)
        for number in range(samples[0].evaluations):
            turns = [Turn(sample, number, latent) for sample, latent in zip(samples, latents, strict=True)]
            latents = self._draw_wave(turns)
        return latents

    def _draw_wave(self, turns: Sequence[Turn]) -> list[Any]:
        """A wave from start to end."""
        results = self.wave(turns)
        return list(results.wait()) if isinstance(results, Underway) else results

    def _hand_over(self, turns: Sequence[Turn]) -> list[Any]:
        results: list[Any] = [None] * len(turns)
        for numbers, bucket in self._batches(turns):
            batch = [turns[number] for number in numbers]
            for number, result in zip(numbers, self._wave(batch, bucket), strict=True):
                results[number] = result
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
        guided = [turn.sample.guidance != 0 for turn in turns]
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

    @torch.inference_mode()
    def _wave(self, turns: Sequence[Turn], bucket: int) -> list[Any]:
        """One evaluation of a batch padded to `bucket` by repeating its first row, and the update."""
        member, count = turns[0].hop.member, len(turns)
        padded = [*turns, *[turns[0]] * (bucket - count)]
        rows = [self._row(turn) for turn in padded]
        table = torch.tensor([row for row, _ in rows], dtype=torch.float32).to(self.device)
        logsnr = torch.tensor([logsnr for _, logsnr in rows], dtype=torch.float32).to(self.device)
        condition = torch.tensor([turn.condition for turn in padded], dtype=torch.int64)
        if self.family.manifest.text is None:  # words are looked up on the host, which need not wait for the device
            condition = condition.to(self.device)
        z = self._latents(padded)
        if turns[0].sample.guidance:
            both = torch.cat([condition, torch.zeros_like(condition)])
            v, v_uncond = self._networks[member](torch.cat([z, z]), logsnr.repeat(2), both).chunk(2)
        else:
            v, v_uncond = self._networks[member](z, logsnr, condition), None
        if self._is_warm:  # warming up is no traffic
            self._tell(turns, bucket)
        latents, images = z, {}
        if not all(turn.is_last for turn in turns):
            latents = hop(z, v, table, v_uncond=v_uncond, noise=self._added(padded))
        if any(turn.is_last or turn.preview for turn in turns):
            images = self._images(turns, z, v, table, v_uncond)
        return [
            images[row]
            if turn.is_last
            else self._moved(turn, z[row], latents[row], images[row] if turn.preview else None)
            for row, turn in enumerate(turns)
        ]

    def _images(
        self, turns: Sequence[Turn], z: Tensor, v: Tensor, table: Tensor, v_uncond: Tensor | None
    ) -> dict[int, np.ndarray]:
        """x_hat as images, by row; latents are decoded where somebody looks at them."""
        if self._autoencoder is None:
            return dict(enumerate(self._to_host(last_hop(z, v, _ending(table), v_uncond=v_uncond))))
        shown = [row for row, turn in enumerate(turns) if turn.is_last or turn.preview]
        x_hat = hop(z, v, _ending(table), v_uncond=v_uncond)
        decoded = self._autoencoder.decode(torch.stack([x_hat[row] for row in shown]))
        return dict(zip(shown, self._to_host(decoded), strict=True))

    def _tell(self, turns: Sequence[Turn], bucket: int) -> None:
        """Tell the metrics of a batch's rows, each step count its share."""
        for steps, samples in Counter(turn.sample.evaluations for turn in turns).items():
            labels, share = (self.family.name, turns[0].hop.member, str(steps)), samples / len(turns)
            metrics.WAVE_ROWS.labels(*labels).inc(bucket * share)
            metrics.WAVE_PADDING.labels(*labels).inc((bucket - len(turns)) * share)

    def _moved(self, turn: Turn, z_t: Tensor, z_s: Tensor, preview: np.ndarray | None) -> Any:
        """What a turn that is not the last returns."""
        latent: Any = z_s
        if not turn.ends_hop:
            latent = Halfway(z_s, halfway(turn.hop, self.family.manifest.schedule, z_t, z_s))
        return latent if preview is None else Previewed(latent, preview)

    def _latents(self, turns: Sequence[Turn]) -> Tensor:
        """Stack the turns' latents; those that begin get the noise of their seed, which no neighbour changes."""
        new = [turn.sample for turn in turns if turn.latent is None]
        drawn = iter(self._noise(new, [0] * len(new))) if new else iter(())
        known = (turn.latent.z if turn.evaluation.corrects else turn.latent for turn in turns)
        return torch.stack([next(drawn) if latent is None else latent for latent in known])

    def _added(self, turns: Sequence[Turn]) -> Tensor | None:
        """What the update adds beside x_hat and eps_hat: fresh noise, or the first half of a heun hop."""
        if not any(turn.hop.random or turn.evaluation.corrects for turn in turns):
            return None
        hops = [sum(not earlier.corrects for earlier in turn.sample.plan.evaluations[: turn.number]) for turn in turns]
        added = self._noise([turn.sample for turn in turns], [taken + 1 for taken in hops])
        return torch.stack(
            [turn.latent.kept if turn.evaluation.corrects else added[row] for row, turn in enumerate(turns)]
        )

    def _to_host(self, images: Tensor) -> np.ndarray:
        """Images in host memory; of a GPU's they are there once the wave is finished, without waiting for it now."""
        if self.device.type != "cuda":
            return images.numpy()
        return torch.empty_like(images, device="cpu", pin_memory=True).copy_(images, non_blocking=True).numpy()

    def _noise(self, samples: Sequence[Sample], streams: Sequence[int]) -> Tensor:
        seeds, indices = [sample.seed for sample in samples], [sample.index for sample in samples]
        return noise(seeds, indices, self.family.manifest.shape, stream=streams, device=self.device)

    def _row(self, turn: Turn) -> tuple[list[float], float]:
        """The turn's row of the coefficient table, and its logsnr; the part that the sample does not change is kept."""
        known = self._rows.get(turn.evaluation)
        if known is None:
            schedule = self.family.manifest.schedule
            if turn.evaluation.corrects:
                table_row = correction_row(turn.hop, schedule)
            else:
                table_row = coefficient_row(turn.hop, schedule, variance=self.family.variance)
            known = self._rows[turn.evaluation] = table_row.tolist(), schedule.logsnr(turn.evaluation.t).item()
        row = known[0].copy()
        row[Column.GUIDANCE] = turn.sample.guidance
        return row, known[1]

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
        times = [perf_counter()]
        for _ in range(REPEATS):
            self._draw_wave(turns)
            times.append(perf_counter())
        return median(after - before for before, after in zip(times, times[1:], strict=False))

    def _find_exact_buckets(self, sample: Sample) -> None:
        """Try which buckets agree, once per architecture: shapes choose the algorithm, not the values of weights."""
        key = self._networks[sample.plan.hops[0].member].config, sample.guidance != 0
        if key in self._exact:
            return
        crowd = self._crowd(sample, self._buckets[-1])

        def draw(rows: np.ndarray) -> np.ndarray:
            return torch.stack(self._wave([crowd[row] for row in rows], len(rows))).cpu().numpy()

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


def _ending(table: Tensor) -> Tensor:
    """The coefficient table that makes x_hat of every row: what the image would be if it ended with this evaluation."""
    table = table.clone()
    table[:, Column.OUT_X] = 1.0
    for column in (Column.OUT_EPS, Column.Z_VAR, Column.OUT_NOISE):
        table[:, column] = 0.0
    return table


def _failure(error: RuntimeError) -> Exception:
    """What an error of torch means to whoever waits."""
    if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error):
        return OutOfMemory(str(error))
    if isinstance(error, torch.AcceleratorError):
        lost = DeviceLost("the device is lost")
        lost.__cause__ = error
        return lost
    return error
