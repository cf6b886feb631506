"""What a search found, drawn again with fresh noise and prompts, and written into the family: its searched positions."""

import math
from collections.abc import Collection
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from diffusion.family import Family
from diffusion.files import write_json
from diffusion.frontier import Measure, Provenance
from training.composition import NOISE, Composition, combinable, compose, composition_of, students_of, words
from training.evaluate import keep, position_of, provenance_of, summary
from training.results import Extent, check_overwrite, read_result
from training.scores import Quality, Scorer
from training.search import EXHAUSTIVE, MEMORY, SEED, Search, breadth, label


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Scored(_Record):
    """A plan that the search looked at."""

    evaluations: int
    """Network evaluations of one image."""
    plan: str
    """The student of each hop: "student-4", or "whole:4" for the whole-dial student told 4."""
    frechet: float | None
    """Frechet distance on the search's samples; None for a student's own plan that the beam passed by."""


class Finalist(Scored):
    """A plan that was drawn again on the seeds of the evaluation."""

    in_words: str
    """The plan with its times, for people."""
    confirmed: Measure
    """Frechet distance on fresh seeds."""
    agreement: Measure | None
    agreement_held_out: Measure | None
    chosen: bool
    """Whether it was the best of its number of evaluations, and is the family's plan for it."""


class SearchRecord(_Record):
    """A search and its confirmation: benchmarks/dial/search-NAME.json."""

    format: int = 1
    family: str
    members: dict[str, str]
    """SHA-256 of the weights of every member that plans were composed of."""
    reference: str
    """What distances are taken to."""
    judge: str
    """What takes them."""
    exhaustive: int
    """Every plan of up to so many evaluations was looked at."""
    width: int
    """Beyond: prefixes gone on with, of those that have come equally far in equally many evaluations."""
    evaluations_per_sample: int
    """Network evaluations that the search took for each of its samples."""
    search_samples: int
    """Images of each plan in the search, the same prompts and noise for all."""
    search_seed: int
    samples: int
    """Images of each finalist in each run of the confirmation."""
    seeds: tuple[int, ...]
    """Seeds of the confirmation, none of them the search's."""
    floor: Measure
    """The distance of as many real images."""
    measured: Provenance
    finalists: tuple[Finalist, ...] = Field(min_length=1)
    """By rising evaluations, best confirmed first."""
    scores: tuple[Scored, ...]
    """Everything that the search looked at, by rising evaluations, best first."""

    @property
    def extent(self) -> Extent:
        """What must not be lost."""
        return Extent(self.samples, len(self.seeds), {self.reference, self.judge})


def search_dial(
    scorer: Scorer,
    out: Path,
    *,
    members: Collection[str],
    limit: int,
    samples: int,
    evaluations: int,
    finalists: int,
) -> SearchRecord:
    """Search plans of up to `limit` evaluations, confirm the best, and write family and record.

    members: whose students plans are composed of.  samples: images of each plan in the search.  evaluations: how many
    network evaluations of each of them the search may take; its beam is as wide as that and MEMORY allow.  finalists: plans
    of each number of evaluations to confirm.
    Raises FamilyError for a family whose students cannot be combined, DataError for a file that would lose.
    """
    family, evaluation, yardstick = scorer.family, scorer.evaluation, scorer.yardstick
    if out.exists():
        fresh = Extent(evaluation.samples, len(evaluation.seeds), {yardstick.reference, yardstick.description})
        check_overwrite(out, read_result(SearchRecord, out, "stepdial evaluate --search").extent, fresh)
    students = combinable(family.manifest, members)
    latent = 4 * samples * math.prod(family.manifest.shape)
    search = Search(scorer, breadth(students, limit, evaluations=evaluations, held=MEMORY // latent), samples)
    cost, used = search.breadth.cost(), sorted({student.member for student in students})
    about = f"search of width {search.breadth.width}, {cost.evaluations:,} evaluations of each of {samples:,} samples"
    scorer.announce(about, cost.evaluations * samples, used)
    again = finalists * sum(range(1, limit + 1)) + sum(s.segments for s in students if s.segments <= limit)
    scorer.announce("confirmation, at most", again * scorer.images, used)
    search.run()
    floor = yardstick.floor(evaluation.samples, len(evaluation.seeds))
    record = Confirmation(search, finalists, floor).run()
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out.parent, out.name, record)
    search.forget()
    return record


class Confirmation:
    """The finalists of a search, drawn again on the evaluation's seeds."""

    def __init__(self, search: Search, finalists: int, floor: Measure):
        self.search, self.finalists, self.floor = search, finalists, floor
        self.scorer: Scorer = search.scorer
        self.family: Family = search.scorer.family
        self.students = students_of(self.family.manifest)

    def run(self) -> SearchRecord:
        """Measure the finalists of each number of evaluations and write the best into the family's frontier.

        Where the best is one student's own plan, that is what the family already offers, and no searched one is written.
        """
        found: list[Finalist] = []
        for evaluations in range(1, self.search.breadth.limit + 1):
            found += self._decide(evaluations)
        return self._record(tuple(found))

    def candidates(self, evaluations: int) -> list[Composition]:
        """Return the search's best plans of so many evaluations, every student's own, and what was found before, if it compares."""
        scores = self.search.scores
        best = sorted((c for c in scores if len(c) == evaluations), key=lambda composition: scores[composition])
        own = [s.finish(NOISE) for s in self.search.breadth.students if s.segments == evaluations]
        before = [
            found
            for choice in self.family.choices(evaluations)
            if (found := composition_of(choice.plan, self.students)) and self._known(found)
        ]
        return list(dict.fromkeys(best[: self.finalists] + own + before))

    def _decide(self, evaluations: int) -> list[Finalist]:
        """Measure the candidates of one number of evaluations, keep the best, and return all, best first."""
        candidates = self.candidates(evaluations)
        known = {candidate: self._known(candidate) for candidate in candidates}
        fresh = [candidate for candidate in candidates if known[candidate] is None]
        label = f"confirming {evaluations} evaluations"
        qualities = self.scorer.quality([compose(candidate) for candidate in fresh], label=label) if fresh else []
        measured = {c: quality for c, quality in known.items() if quality} | dict(zip(fresh, qualities, strict=True))
        order = sorted(candidates, key=lambda candidate: measured[candidate].frechet.mean)
        self._keep([order[0], *(c for c in fresh if self._own(c) and c != order[0])], measured)
        return [self._finalist(candidate, measured[candidate], candidate == order[0]) for candidate in order]

    def _known(self, candidate: Composition) -> Quality | None:
        """Return what the frontier says of a candidate, if it was measured as it would be now.

        Not by this very command: gone on with, it draws the same plans together as before, and so finds them drawn.
        """
        evaluation, yardstick, frontier = self.scorer.evaluation, self.scorer.yardstick, self.family.frontier
        position = self.family.measured(compose(candidate))
        if not frontier or not position or position.measured.command == evaluation.command:
            return None
        if (frontier.judge, frontier.reference) != (yardstick.description, yardstick.reference):
            return None
        how = (position.samples, position.seeds, position.measured.precision)
        if how != (evaluation.samples, evaluation.seeds, evaluation.precision):
            return None
        return Quality(position.frechet, position.agreement, position.agreement_held_out)

    def _keep(self, chosen: list[Composition], measured: dict[Composition, Quality]) -> None:
        """Write the best plan, and students' own that were measured beside it, in place of what was searched before."""
        positions = []
        for composition in chosen:
            plan = compose(composition)
            known = self.family.measured(plan) if self._known(composition) else None
            evaluation = self.scorer.evaluation
            position = known or position_of(self.family, plan, measured[composition], self.floor, evaluation)
            print(summary(position), " ", words(plan, self.students))
            positions.append(position)
        keep(
            self.family,
            *positions,
            reference=self.scorer.yardstick.reference,
            judge=self.scorer.yardstick.description,
            without=lambda row: row.source == "searched" and row.steps == len(chosen[0]),
        )

    def _own(self, composition: Composition) -> bool:
        return self.family.source(compose(composition)) != "searched"

    def _finalist(self, candidate: Composition, quality: Quality, chosen: bool) -> Finalist:
        return Finalist(
            **self._scored(candidate).model_dump(),
            in_words=words(compose(candidate), self.students),
            confirmed=quality.frechet,
            agreement=quality.agreement,
            agreement_held_out=quality.agreement_held_out,
            chosen=chosen,
        )

    def _scored(self, composition: Composition) -> Scored:
        distance = self.search.scores.get(composition)
        return Scored(evaluations=len(composition), plan=label(composition), frechet=distance)

    def _record(self, finalists: tuple[Finalist, ...]) -> SearchRecord:
        search, evaluation, yardstick = self.search, self.scorer.evaluation, self.scorer.yardstick
        manifest = self.family.manifest
        order = sorted(search.scores, key=lambda composition: (len(composition), search.scores[composition]))
        return SearchRecord(
            family=self.family.name,
            members={s.member: manifest.member(s.member).weights.sha256 for s in search.breadth.students},
            reference=yardstick.reference,
            judge=yardstick.description,
            exhaustive=EXHAUSTIVE,
            width=search.breadth.width,
            evaluations_per_sample=search.breadth.cost().evaluations,
            search_samples=search.samples,
            search_seed=SEED,
            samples=evaluation.samples,
            seeds=evaluation.seeds,
            floor=self.floor,
            measured=provenance_of(evaluation),
            finalists=finalists,
            scores=tuple(map(self._scored, order)),
        )
