"""Scores: the judge's view of many images, drawn in chunks that are kept, so that a long evaluation can be gone on with.

Plans that begin alike share the latents of what they have in common.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from diffusion import provenance
from diffusion.family import Family
from diffusion.frontier import Measure
from diffusion.plans import Hop, Plan
from diffusion.sampler import Decode, Network, follow
from kernels import noise
from training.datasets import DataSet, Procedural
from training.teacher import in_precision
from training.yardstick import Evaluation, Yardstick, measure

CHUNK = 512
"""Images drawn, judged and kept together."""
HELD_OUT_SEED = 1000
"""Added to a run's seed for the noise of its held-out prompts."""
HELD_OUT_PART = 4
"""One held-out prompt is drawn for so many others."""


class Scores(NamedTuple):
    """What the judge sees in the images of one plan."""

    features: np.ndarray
    """float32 (N, 64)."""
    right: np.ndarray
    """bool (N,): everything asked for is seen."""


class View(NamedTuple):
    """Something else to see in images, besides what the judge sees."""

    sha256: str
    """Of what sees it."""
    look: Callable[[Tensor, Tensor], np.ndarray]
    """Images uint8 (B, H, W, C) and conditions (B, slots) -> B rows."""


class Quality(NamedTuple):
    """What a plan gives, over the runs of an evaluation."""

    frechet: Measure
    agreement: Measure | None
    agreement_held_out: Measure | None


def evaluations(plans: Sequence[Plan]) -> int:
    """Return the network evaluations that one image of each plan takes, shared beginnings once."""
    hops = {plan.hops[:taken] for plan in plans for taken in range(1, len(plan.hops) + 1)}
    return sum(2 if hops[-1].rule == "heun" and hops[-1].s > 0 else 1 for hops in hops)


class Scorer:
    """Draws images of a family and has them judged.  Finished chunks lie in the evaluation's folder until `forget`."""

    def __init__(
        self, family: Family, yardstick: Yardstick, evaluation: Evaluation, views: Mapping[str, View] | None = None
    ):
        """views: what else to see in every image, by name; `see` returns it."""
        self.family, self.yardstick, self.evaluation = family, yardstick, evaluation
        self.batch = 64 if evaluation.device.type == "cpu" else CHUNK
        self.views = {
            "features": View("", lambda images, condition: yardstick.features(images)),
            "right": View("", yardstick.right),
            **(views or {}),
        }
        self._networks: dict[str, Network] = {}
        self._kept: set[Path] = set()

    @cached_property
    def identity(self) -> dict[str, object]:
        """Everything but plans with their members, prompts and noise that scores depend on, fit for JSON."""
        return {
            "code": provenance.code("training/features.py", "training/datasets.py", "training/shapes.py"),
            "judge": self.yardstick.description,
            "views": {name: view.sha256 for name, view in self.views.items()},
            "precision": self.evaluation.precision,
            "device": provenance.device_name(self.evaluation.device),
            **self.family.manifest.model_dump(mode="json", include={"schedule", "variance", "conditioning"}),
        }

    @property
    def images(self) -> int:
        """Images that `quality` draws of each plan, those of held-out prompts included."""
        _, others = self.held_out or (None, 0)
        return (self.evaluation.samples + others) * len(self.evaluation.seeds)

    @property
    def held_out(self) -> tuple[DataSet, int] | None:
        """Prompts that training never saw, and how many of them a run draws; None where nothing is held out."""
        data, part = self.yardstick.data, max(1, self.evaluation.samples // HELD_OUT_PART)
        return (data.unseen(), part) if isinstance(data, Procedural) else None

    def key(self, plans: Sequence[Plan], *asked: object) -> str:
        """Return a file name for what is computed of plans and of whatever else JSON says was asked."""
        members = {name: self.family.manifest.member(name).weights.sha256 for plan in plans for name in plan.members}
        hops = [plan.model_dump(mode="json") for plan in plans]
        return hashlib.sha256(json.dumps([self.identity, members, hops, asked], sort_keys=True).encode()).hexdigest()

    def network(self, member: str) -> Network:
        """Return a member's network in the evaluation's precision, loaded once."""
        if member not in self._networks:
            network = self.family.network(member, self.evaluation.device)
            self._networks[member] = in_precision(network, self.evaluation.precision)
        return self._networks[member]

    def follow(
        self,
        hops: Sequence[Hop],
        z: Tensor,
        condition: Tensor,
        *,
        seed: int,
        indices: Sequence[int],
        taken: int = 0,
        guidance: float = 0.0,
        told: Sequence[int] | None = None,
    ) -> Tensor:
        """Take latents along hops as `diffusion.sampler.follow` does, all of one seed.

        told: what the networks find in the condition after the slots; by default their default guidance, where they are told it.
        """
        return follow(
            {hop.member: self.network(hop.member) for hop in hops},
            hops,
            self.family.manifest.schedule,
            z,
            condition,
            seeds=[seed] * len(z),
            indices=indices,
            taken=taken,
            guidance=guidance,
            told=self.family.told(hops[0].member) if told is None else told,
            variance=self.family.variance,
            decode=self._decode,
        )

    @cached_property
    def _decode(self) -> Decode | None:
        return self.family.decoder(self.evaluation.device)

    def quality(self, plans: Sequence[Plan], *, guidance: float | None = None, label: str) -> list[Quality]:
        """Measure plans over the evaluation's seeds; all plans get the same prompts and noise."""
        data, samples, held_out = self.yardstick.data, self.evaluation.samples, self.held_out
        distances: list[list[float]] = []
        right: list[list[float]] = []
        unseen: list[list[float]] = []
        for seed in self.evaluation.seeds:
            scores = self.score(plans, data, samples, seed, guidance=guidance, label=label)
            distances.append([self.yardstick.distance(plan.features) for plan in scores])
            right.append([plan.right.mean() for plan in scores])
            if held_out:
                scores = self.score(plans, *held_out, seed, guidance=guidance, label=label)
                unseen.append([plan.right.mean() for plan in scores])
        return [
            Quality(
                measure([run[at] for run in distances]),
                measure([run[at] for run in right]) if data.conditioning.sizes else None,
                measure([run[at] for run in unseen]) if unseen else None,
            )
            for at in range(len(plans))
        ]

    def score(
        self, plans: Sequence[Plan], data: DataSet, samples: int, seed: int, *, guidance: float | None, label: str
    ) -> list[Scores]:
        """Draw an image of each plan for each of the seed's first prompts and return the plans' scores."""
        seen = self.see(plans, data, samples, seed, guidance=guidance, label=label)
        return [Scores(plan["features"], plan["right"]) for plan in seen]

    def see(
        self, plans: Sequence[Plan], data: DataSet, samples: int, seed: int, *, guidance: float | None, label: str
    ) -> list[dict[str, np.ndarray]]:
        """Draw as `score` does and return, for each plan, what every view sees: the judge's "features" and "right", and others."""
        weights = {self.family.guidance(plan, guidance) for plan in plans}
        assert len(weights) == 1  # latents are shared, so they must have been guided alike
        (weight,) = weights
        (told,) = {self.family.told(plan.members[0], guidance) for plan in plans}  # and told alike
        held_out = isinstance(data, Procedural) and data.held_out
        about = f"{label}, seed {seed}" + (", held out" if held_out else "")
        parts = []
        with tqdm(total=samples * evaluations(plans), desc=about, unit="eval", mininterval=1, leave=False) as bar:
            for start in range(0, samples, CHUNK):
                _, condition = data.batch(start, min(CHUNK, samples - start), seed=seed)
                at = (seed + HELD_OUT_SEED if held_out else seed, start)
                parts.append(self._chunk(plans, condition, at, weight, told, bar))
        return [
            {name: np.concatenate([part[name][at] for part in parts]) for name in self.views}
            for at in range(len(plans))
        ]

    def _chunk(
        self,
        plans: Sequence[Plan],
        condition: Tensor,
        at: tuple[int, int],
        guidance: float,
        told: Sequence[int],
        bar: tqdm,
    ) -> dict[str, np.ndarray]:
        """Return what each view sees in one chunk, (plans, B, ...), from its file if it was drawn before."""
        file = self.evaluation.folder / f"{self.key(plans, condition.tolist(), at, guidance, *told)}.npz"
        self._kept.add(file)
        if file.exists():
            pass_over(bar, len(condition) * evaluations(plans))
        else:
            images = self._draw(plans, condition, at, guidance, told, bar)
            drawn = [torch.cat(images[plan]) for plan in plans]
            seen = {name: np.stack([view.look(d, condition) for d in drawn]) for name, view in self.views.items()}
            self.evaluation.folder.mkdir(parents=True, exist_ok=True)
            temporary = file.with_suffix(".partial")
            with temporary.open("wb") as out:
                np.savez(out, **seen)  # type: ignore[arg-type]  # its stub takes names for its own flag
            temporary.replace(file)
        with np.load(file) as kept:
            return dict(kept)

    def _draw(
        self,
        plans: Sequence[Plan],
        condition: Tensor,
        at: tuple[int, int],
        guidance: float,
        told: Sequence[int],
        bar: tqdm,
    ) -> dict[Plan, list[Tensor]]:
        """Draw every plan's images of a chunk: depth first through the tree of their hops, a batch at a time."""
        seed, start = at
        images: dict[Plan, list[Tensor]] = {plan: [] for plan in plans}

        def grow(z: Tensor, asked: Tensor, indices: Sequence[int], taken: int, group: Sequence[Plan]) -> None:
            for hop in dict.fromkeys(plan.hops[taken] for plan in group):
                branch = [plan for plan in group if plan.hops[taken] == hop]
                z_s = self.follow(
                    [hop], z, asked, seed=seed, indices=indices, taken=taken, guidance=guidance, told=told
                )
                bar.update(len(z) * (2 if hop.rule == "heun" and hop.s > 0 else 1))
                if hop.s == 0:
                    images[branch[0]].append(z_s.cpu())
                else:
                    grow(z_s, asked, indices, taken + 1, branch)

        for first in range(0, len(condition), self.batch):
            asked = condition[first : first + self.batch].to(self.evaluation.device)
            indices = range(start + first, start + first + len(asked))
            shape = self.family.manifest.shape
            z = noise([seed] * len(asked), indices, shape, device=self.evaluation.device)
            grow(z, asked, indices, 0, list(images))
        return images

    def announce(self, what: str, count: int, members: Sequence[str]) -> None:
        """Say how many network evaluations something takes, and about how long, going by one batch of each member."""
        each = float(np.mean([self.seconds(member) for member in members]))
        device = provenance.device_name(self.evaluation.device)
        print(f"{what}: {count:,} network evaluations, about {count * each / 60:,.0f} minutes on {device}")

    def seconds(self, member: str) -> float:
        """Return how long one network evaluation of one image takes in a batch, in seconds."""
        images = range(self.batch)
        condition = torch.zeros(self.batch, len(self.family.manifest.conditioning.sizes), dtype=torch.int64)
        condition = condition.to(self.evaluation.device)
        z = noise([0] * self.batch, images, self.family.manifest.shape, device=self.evaluation.device)
        segments = next(iter(self.family.manifest.member(member).network.segments), None)
        for _ in range(2):  # the first warms up
            began = time.perf_counter()
            hop = Hop(member=member, t=1.0, s=0.0, segments=segments)
            self.follow([hop], z, condition, seed=0, indices=images).cpu()
        return (time.perf_counter() - began) / self.batch

    def forget(self) -> None:
        """Remove the chunks that this scorer used: what they say is recorded."""
        for file in self._kept:
            file.unlink(missing_ok=True)
        self._kept.clear()


def pass_over(bar: tqdm, done: int) -> None:
    """Move a progress bar over work that was done before, which says nothing about speed."""
    bar.n += done
    bar.initial += done
    bar.last_print_n += done
    bar.refresh()
