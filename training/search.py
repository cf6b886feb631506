"""`stepdial evaluate --search`: find, for each number of evaluations, the best plan composed of a family's students.

A tree search by levels, one network evaluation each.  A prefix is as good as the image that it gives when the coarsest
student finishes it; of the prefixes that have taken equally many evaluations to the same time, the best few are gone on
with.  All plans get the same prompts and noise, and a prefix's latents are computed once for all that begins with it.
"""

import json
import sys
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor
from tqdm import tqdm

from kernels import noise
from training.composition import NOISE, Composition, Student, compose, hops_of, time_after
from training.scores import Scorer, pass_over

EXHAUSTIVE = 3
"""All plans of up to so many evaluations are looked at."""
SEED = 7001
"""Noise and prompts of the search; the seeds of evaluations are others."""
MEMORY = 4 << 30
"""Bytes of latents that are held at once, at most."""


@dataclass(frozen=True)
class Cost:
    """What a search takes."""

    evaluations: int
    """Network evaluations of each sample."""
    held: int
    """Latents of each sample that are held at once."""


@dataclass(frozen=True)
class Breadth:
    """How far a search looks."""

    students: tuple[Student, ...]
    """What plans are composed of, coarse to fine."""
    limit: int
    """Most evaluations of a plan."""
    width: int
    """Prefixes of the same number of evaluations and the same time that are gone on with."""

    def children(self, taken: int, t: Fraction) -> Iterator[tuple[Student, Fraction]]:
        """Return the next hops of a prefix of `taken` evaluations at time t that can end within the limit, and their s."""
        for student in self.students:
            s = student.start(t)
            if taken + 1 + (len(self.students[0].finish(s)) if s else 0) <= self.limit:
                yield student, s

    def kept(self, taken: int) -> int:
        """Return how many prefixes of `taken` evaluations are kept at each time, at most."""
        return sys.maxsize if taken < EXHAUSTIVE else self.width

    def cost(self) -> Cost:
        """Return what the search takes, by going through it without images."""
        level, evaluations, held = Counter({NOISE: 1}), 0, 0
        for taken in range(self.limit):
            following: Counter[Fraction] = Counter()
            for t, count in level.items():
                for student, s in self.children(taken, t):
                    if s:
                        following[s] += count
                        evaluations += count * (1 + len(self.students[0].finish(s)))
                    elif not taken or student != self.students[0]:  # the coarsest has finished every prefix already
                        evaluations += count
            following = Counter({s: min(count, self.kept(taken + 1)) for s, count in following.items()})
            held = max(held, level.total() + following.total())
            level = following
        return Cost(evaluations, held)


def breadth(students: tuple[Student, ...], limit: int, *, evaluations: int, held: int) -> Breadth:
    """Return the widest search within so many evaluations of each sample and latents held; the narrowest is of width 1."""

    def cost(width: int) -> Cost:
        return Breadth(students, limit, width).cost()

    def too_dear(width: int) -> bool:
        return cost(width).evaluations > evaluations or cost(width).held > held

    widths = range(1, evaluations + 2)  # a prefix costs an evaluation, so this many are never all affordable
    widest = max(1, bisect_left(widths, True, key=too_dear))
    useful = bisect_left(widths[:widest], cost(widest).evaluations, key=lambda width: cost(width).evaluations)
    return Breadth(students, limit, widths[useful])


class Search:
    """A search on one set of samples.  Scores are written down as they are found, so that it can be gone on with."""

    def __init__(self, scorer: Scorer, breadth: Breadth, samples: int):
        self.scorer, self.breadth, self.samples = scorer, breadth, samples
        self.scores: dict[Composition, float] = {}
        """Frechet distance of every plan looked at, by its composition."""
        _, condition = scorer.yardstick.data.batch(0, samples, seed=SEED)
        self._condition = condition.to(scorer.evaluation.device)
        plans = [compose(student.finish(NOISE)) for student in breadth.students]
        self._log = scorer.evaluation.folder / f"search-{scorer.key(plans, samples, SEED)}.jsonl"
        self._labels = {student.label: student for student in breadth.students}
        self._latents: dict[Composition, Tensor] = {}
        self._bar = tqdm(disable=True)

    def run(self) -> dict[Composition, float]:
        """Search; return the Frechet distance of every plan looked at."""
        self._read()
        self._latents[()] = self._noise()
        total = self.breadth.cost().evaluations * self.samples
        with tqdm(total=total, desc="search", unit="eval", mininterval=1, unit_scale=True) as self._bar:
            level: list[Composition] = [()]
            for taken in range(self.breadth.limit):
                level = self._next(level, taken)
                self._latents = {prefix: z for prefix, z in self._latents.items() if not prefix or len(prefix) > taken}
        return self.scores

    def forget(self) -> None:
        """Remove the scores written down: they are recorded elsewhere."""
        self._log.unlink(missing_ok=True)

    def _next(self, level: list[Composition], taken: int) -> list[Composition]:
        """Score all that one more evaluation makes of a level's prefixes; return those to go on with."""
        best: dict[Fraction, list[tuple[float, Composition]]] = defaultdict(list)
        coarsest, most = self.breadth.students[0], self.breadth.kept(taken + 1)
        for prefix in level:
            for student, s in self.breadth.children(taken, time_after(prefix)):
                child = (*prefix, student)
                if s:
                    rivals = best[s]
                    rivals.append((self._score((*child, *coarsest.finish(s)), child), child))
                    rivals.sort(key=lambda rival: rival[0])
                    for _, worse in rivals[most:]:
                        self._latents.pop(worse, None)
                    del rivals[most:]
                elif not taken or student != coarsest:
                    self._score(child, child)
        return [child for s in sorted(best, reverse=True) for _, child in best[s]]

    def _score(self, composition: Composition, child: Composition) -> float:
        """Return a plan's Frechet distance; its first hops are `child`, whose latents are kept if they are not images."""
        parent = child[:-1]
        evaluations = (len(composition) - len(parent)) * self.samples
        if composition in self.scores:
            pass_over(self._bar, evaluations)
            return self.scores[composition]
        if parent not in self._latents:  # the search was gone on with, and all of the parent's scores were read
            self._latents[parent] = self._follow((), parent)
        drawn = self._follow(parent, child)
        if child != composition:
            self._latents[child] = drawn
            drawn = self._follow(child, composition)
        self._bar.update(evaluations)
        self.scores[composition] = self.scorer.yardstick.distance(self.scorer.yardstick.features(drawn))
        self._write(composition)
        return self.scores[composition]

    def _follow(self, prefix: Composition, composition: Composition) -> Tensor:
        """Take a prefix's latents to where the composition ends: latents, or images uint8 (N, H, W, C)."""
        hops, z = list(hops_of(composition))[len(prefix) :], self._latents[prefix]
        parts = []
        for start in range(0, self.samples, self.scorer.batch):
            rows = slice(start, start + self.scorer.batch)
            indices = range(self.samples)[rows]
            parts.append(self.scorer.follow(hops, z[rows], self._condition[rows], seed=SEED, indices=indices))
        return torch.cat(parts)

    def _noise(self) -> Tensor:
        shape, device = self.scorer.family.manifest.shape, self.scorer.evaluation.device
        return noise([SEED] * self.samples, range(self.samples), shape, device=device)

    def _read(self) -> None:
        """Read the scores that an interrupted search wrote; a line it was writing when it ended does not count."""
        if not self._log.exists():
            return
        for line in self._log.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                labels, distance = json.loads(line)
                self.scores[tuple(self._labels[label] for label in labels.split())] = distance

    def _write(self, composition: Composition) -> None:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("a") as file:
            file.write(json.dumps([label(composition), self.scores[composition]]) + "\n")


def label(composition: Composition) -> str:
    """Return a composition as one line: "student-4 student-4 whole:2"."""
    return " ".join(student.label for student in composition)
