"""The engine: the only room that touches the device. One wave is one network evaluation and one fused update."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion.family import Family, FamilyError
from diffusion.plans import Hop, coefficient_row, plan
from diffusion.uvit import UViT, UViTConfig
from kernels import Column, hop, last_hop, noise
from server import metrics
from server.failures import DeviceLost
from server.invariance import invariant_buckets
from server.samples import Previewed, Sample, Turn

log = logging.getLogger(__name__)


def choose_device(name: str) -> torch.device:
    """Return the named device; "auto" is the GPU when there is one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def _ending(table: Tensor) -> Tensor:
    """Return the rows as if each hop were the last: the image is x_hat itself."""
    table = table.clone()
    table[:, [Column.OUT_EPS, Column.OUT_NOISE, Column.Z_VAR]] = 0.0
    table[:, Column.OUT_X] = 1.0
    return table


class Engine:
    """A family's networks on a device. Drawing is a pure function of the turns: a wave may be repeated at will."""

    def __init__(self, family: Family, *, device: torch.device, max_wave: int):
        self.family = family
        self.device = device
        self._networks: dict[str, UViT] = {}
        self._rows: dict[Hop, tuple[list[float], float]] = {}
        # powers of two keep the number of shapes to warm small and the padding below half
        self._buckets = tuple(2**power for power in range(max_wave.bit_length()) if 2**power < max_wave) + (max_wave,)
        self._exact: dict[tuple[UViTConfig, bool], tuple[int, ...]] = {}

    def prepare(self) -> None:
        """Load every network, find the exact buckets, warm all shapes, and draw the golden samples again.

        Raises FamilyError when the family's files are not what they should be or the images are not as recorded.
        """
        for member in self.family.manifest.members:
            self._networks[member.name] = self.family.network(member.name, self.device)
        for sample in self._typical_samples():
            self._find_exact_buckets(sample)
            for bucket in self._buckets:
                self._wave([Turn(sample, 0, None)] * bucket, bucket)
        self._check_golden()
        metrics.WAVE_ROWS.clear()  # warming up is no traffic
        metrics.WAVE_PADDING.clear()
        log.info("family %s is ready on %s, its dial: %s", self.family.name, self.device, [*self.family.positions])

    def wave(self, turns: Sequence[Turn]) -> list[Any]:
        """Take one hop of each turn, all of one member; return latents (C, H, W), or for last turns images (H, W, C).

        A turn that asks for a preview gets it beside its latent.

        Raises DeviceLost when the device's context is broken; any other error concerns this wave only.
        """
        results: list[Any] = [None] * len(turns)
        try:
            for numbers, bucket in self._batches(turns):
                batch = [turns[number] for number in numbers]
                for number, result in zip(numbers, self._wave(batch, bucket), strict=True):
                    results[number] = result
            if self.device.type == "cuda":  # the next wave is chosen when this one is done, not when it is queued
                torch.cuda.synchronize(self.device)
        except torch.OutOfMemoryError:
            raise
        except torch.AcceleratorError as error:
            raise DeviceLost("the device is lost") from error
        return results

    def draw(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        """Return the images of samples of one plan, uint8 (H, W, C), in as many waves as the plan has hops."""
        latents: list[Any] = [None] * len(samples)
        for number in range(samples[0].evaluations):
            latents = self.wave([Turn(sample, number, latent) for sample, latent in zip(samples, latents, strict=True)])
        return latents

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
        condition = torch.tensor([turn.condition for turn in padded], dtype=torch.int64).to(self.device)
        z = self._latents(padded)
        if turns[0].sample.guidance:
            both = torch.cat([condition, torch.zeros_like(condition)])
            v, v_uncond = self._networks[member](torch.cat([z, z]), logsnr.repeat(2), both).chunk(2)
        else:
            v, v_uncond = self._networks[member](z, logsnr, condition), None
        metrics.WAVE_ROWS.labels(member).inc(bucket)
        metrics.WAVE_PADDING.labels(member).inc(bucket - count)
        latents, images, previews = z, np.empty(0), np.empty(0)
        if not all(turn.is_last for turn in turns):
            latents = hop(z, v, table, v_uncond=v_uncond, noise=self._fresh_noise(padded))
        if any(turn.preview and not turn.is_last for turn in turns):
            previews = last_hop(z, v, _ending(table), v_uncond=v_uncond).cpu().numpy()
        if any(turn.is_last for turn in turns):
            images = last_hop(z, v, table, v_uncond=v_uncond).cpu().numpy()
        return [
            images[row] if turn.is_last else Previewed(latents[row], previews[row]) if turn.preview else latents[row]
            for row, turn in enumerate(turns)
        ]

    def _latents(self, turns: Sequence[Turn]) -> Tensor:
        """Stack the turns' latents; those that begin get the noise of their seed, which no neighbour changes."""
        new = [turn.sample for turn in turns if turn.latent is None]
        drawn = iter(self._noise(new, [0] * len(new))) if new else iter(())
        return torch.stack([next(drawn) if turn.latent is None else turn.latent for turn in turns])

    def _fresh_noise(self, turns: Sequence[Turn]) -> Tensor | None:
        if not any(turn.hop.random for turn in turns):
            return None
        return self._noise([turn.sample for turn in turns], [turn.number + 1 for turn in turns])

    def _noise(self, samples: Sequence[Sample], streams: Sequence[int]) -> Tensor:
        seeds, indices = [sample.seed for sample in samples], [sample.index for sample in samples]
        return noise(seeds, indices, self.family.manifest.shape, stream=streams, device=self.device)

    def _row(self, turn: Turn) -> tuple[list[float], float]:
        """The turn's row of the coefficient table, and its logsnr; the part that depends on the hop alone is kept."""
        known = self._rows.get(turn.hop)
        if known is None:
            schedule = self.family.manifest.schedule
            row = coefficient_row(turn.hop, schedule, variance=self.family.variance).tolist()
            known = self._rows[turn.hop] = row, schedule.logsnr(turn.hop.t).item()
        row = known[0].copy()
        row[Column.GUIDANCE] = turn.sample.guidance
        return row, known[1]

    def _typical_samples(self) -> list[Sample]:
        """One sample that begins on each member, and for the teacher one with guidance: every shape that waves have."""
        manifest, samples = self.family.manifest, []
        condition = tuple(1 for _ in manifest.conditioning.sizes)
        for member in manifest.members:
            halves = plan(member.name, (1.0, 0.5, 0.0), segments=max(member.network.segments, default=None))
            samples.append(Sample(halves, condition, seed=0))
            if member.role == "teacher":
                samples.append(Sample(halves, condition, seed=0, guidance=manifest.guidance or 1.0))
        return samples

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
            sample = Sample(plan, entry.condition, entry.seed, entry.index, self.family.guidance(plan))
            images[entry] = torch.from_numpy(self.draw([sample])[0])
        self.family.check_golden(images)
        log.info("golden check passed on %d samples", len(images))
