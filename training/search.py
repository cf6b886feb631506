"""`stepdial evaluate --search`: find, for each number of evaluations, the best plan composed of a family's students.

A tree search by levels, one network evaluation each.  A prefix is as good as the image that it gives when it is finished in
few hops, on the finest student at last; of the prefixes that have taken equally many evaluations to the same time, the best
few are gone on with.  All plans get the same prompts and noise, and a prefix's latents are computed once for all that begins
with it.
"""

import json
import sys
from bisect import bisect_left
from collections import Counter, defaultdict
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor
from tqdm import tqdm

from kernels import noise
from training.composition import NOISE, Composition, Landing, Student, compose, hops_of, landings, shortest, time_after
from training.scores import Scorer, pass_over

EXHAUSTIVE = 2
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

    def finish(self, taken: int, t: Fraction) -> Composition:
        """Return the hops that end a prefix of `taken` evaluations at time t to show its worth; none where the limit is nearer."""
        one = tuple(landing for landing in landings(self.students, t) if not landing.s)[-1:]
        ways = (shortest(self.students, t), one) if t else ()
        return next((way for way in ways if taken + len(way) <= self.limit), ())

    def children(self, taken: int, t: Fraction) -> list[Landing]:
        """Return the next hops of a prefix of `taken` evaluations at time t that `finish` has room for."""
        return [one for one in landings(self.students, t) if not one.s or self.finish(taken + 1, one.s)]

    def scored(self, taken: int, t: Fraction) -> Composition:
        """Return the next hop of a prefix whose worth is known with the prefix's: the first that finished it, but not of noise."""
        return self.finish(taken, t)[:1] if taken else ()

    def kept(self, taken: int) -> int:
        """Return how many prefixes of `taken` evaluations are kept at each time, at most."""
        return sys.maxsize if taken < EXHAUSTIVE else self.width

    def cost(self) -> Cost:
        """Return what the search takes, by going through it without images."""
        level, evaluations, held = Counter({NOISE: 1}), 0, 0
        for taken in range(self.limit):
            following: Counter[Fraction] = Counter()
            for t, count in level.items():
                for one in self.children(taken, t):
                    known = (one,) == self.scored(taken, t)
                    evaluations += count * (bool(one.s) + (0 if known else len(self.finish(taken + 1, one.s)) or 1))
                    if one.s:
                        following[one.s] += count
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
        self._read = self._logged()
        self._latents: dict[Composition, Tensor] = {}
        self._bar = tqdm(disable=True)

    def run(self) -> dict[Composition, float]:
        """Search; return the Frechet distance of every plan looked at."""
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
        most = self.breadth.kept(taken + 1)
        for prefix in level:
            for landing in self.breadth.children(taken, time_after(prefix)):
                child = (*prefix, landing)
                worth = self._score((*child, *self.breadth.finish(taken + 1, landing.s)), child)
                if landing.s:
                    rivals = best[landing.s]
                    rivals.append((worth, child))
                    rivals.sort(key=lambda rival: rival[0])
                    for _, worse in rivals[most:]:
                        self._latents.pop(worse, None)
                    del rivals[most:]
        return [child for s in sorted(best, reverse=True) for _, child in best[s]]

    def _score(self, composition: Composition, child: Composition) -> float:
        """Return a plan's Frechet distance; its first hops are `child`, whose latents are kept if they are not images."""
        parent = child[:-1]
        known, ends = composition in self.scores, child == composition
        evaluations = (0 if ends else 1) if known else len(composition) - len(parent)
        if composition in self._read:  # the search was gone on with: latents are computed if anything new needs them
            pass_over(self._bar, evaluations * self.samples)
            self.scores[composition] = self._read[composition]
            return self.scores[composition]
        if parent not in self._latents:
            self._latents[parent] = self._follow((), parent)
        if not (known and ends):
            drawn = self._follow(parent, child)
            if not ends:
                self._latents[child] = drawn
        if not known:
            images = drawn if ends else self._follow(child, composition)
            self.scores[composition] = self.scorer.yardstick.distance(self.scorer.yardstick.features(images))
            self._write(composition)
        self._bar.update(evaluations * self.samples)
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

    def _logged(self) -> dict[Composition, float]:
        """Return the scores that an interrupted search wrote; a line it was writing when it ended does not count."""
        if not self._log.exists():
            return {}
        students = {student.label: student for student in self.breadth.students}
        lines = [json.loads(line) for line in self._log.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return {tuple(Landing(students[who], Fraction(s)) for who, s in hops): distance for hops, distance in lines}

    def _write(self, composition: Composition) -> None:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        hops = [(landing.student.label, str(landing.s)) for landing in composition]
        with self._log.open("a") as file:
            file.write(json.dumps([hops, self.scores[composition]]) + "\n")


def label(composition: Composition) -> str:
    """Return a composition as one line, early landings with their time: "student-1>1/2 student-2>1/8 student-8"."""
    t, parts = NOISE, []
    for student, s in composition:
        parts.append(student.label + ("" if s == student.start(t) else f">{s}"))
        t = s
    return " ".join(parts)
