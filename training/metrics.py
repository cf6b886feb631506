"""`stepdial evaluate --metrics`: what several feature networks say of the dial's positions, and CLIP of how prompts are met.

Whatever is not FID as everybody knows it, 50,000 images and the published Inception weights, is labelled a proxy.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from diffusion.condition import PromptConditioning
from diffusion.family import Family, FamilyError
from diffusion.frontier import Measure, Provenance, Source
from diffusion.plans import Plan
from training.datasets import DataError, DataSet
from training.evaluate import provenance_of
from training.extractors import Extractor, PromptJudge
from training.frechet import Origin
from training.results import Extent, add_row, beside, read_result
from training.rulers import Metric, Ruler, judge_of, ruler
from training.scores import Scorer, View
from training.yardstick import Evaluation, Yardstick, measure


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Row(_Record):
    """A dial position drawn in one way; or real images (no plan), which are about as good as a perfect model would be."""

    steps: int
    """Network evaluations an image takes; 0 for real images."""
    source: Source | Literal["real"]
    """Where the plan comes from."""
    plan: Plan | None
    """What was run."""
    weights: dict[str, str] = {}
    """SHA-256 of the weights of the plan's members."""
    guidance: float = 0.0
    """w of the teacher; 0 for students, and of real images."""
    metrics: tuple[Metric, ...]
    """One for each network."""
    agreement: Measure | None = None
    """How often the judge sees everything that was asked for; None where nothing is, and of real images."""
    agreement_held_out: Measure | None = None
    """The same of prompts that training never saw, where there are any."""
    clip_score: Measure | None = None
    """Mean CLIP score, where it was asked for; not taken of real images."""
    measured: Provenance
    """How."""

    def is_of(self, family: Family) -> bool:
        """Tell whether the family still draws so: with these weights, this plan and this guidance."""
        if self.plan is None:
            return True
        drawn = self.plan in family.plans(self.steps) and family.guidance(self.plan) == self.guidance
        return drawn and self.weights == weights(family, self.plan)


def weights(family: Family, plan: Plan) -> dict[str, str]:
    """Return the SHA-256 of the weights of a plan's members, as far as the family has them."""
    return {member.name: member.weights.sha256 for member in family.manifest.members if member.name in plan.members}


class MetricsRecord(_Record):
    """The metrics of a family: benchmarks/dial/metrics-NAME.json."""

    format: Literal[1] = 1
    family: str
    references: tuple[Origin, ...]
    """One for each network."""
    clip: str | None
    """SHA-256 of CLIP's weights."""
    samples: int
    """Images of each run; about as many real ones are behind precision, recall, density and coverage."""
    seeds: tuple[int, ...]
    """Of the runs."""
    rows: tuple[Row, ...] = ()
    """By rising steps."""

    @property
    def extent(self) -> Extent:
        """What must not be lost."""
        networks = {one.model_dump_json() for one in self.references}
        return Extent(self.samples, len(self.seeds), networks | ({self.clip} if self.clip else set()))


def read_metrics(file: Path) -> MetricsRecord:
    """Read a result file.  Raises DataError if it is not one."""
    return read_result(MetricsRecord, file, "stepdial evaluate --metrics")


def views(family: Family, extractors: list[Extractor], prompt_judge: PromptJudge | None) -> dict[str, View]:
    """Return what is seen in drawn images besides what the judge sees.  Raises DataError for CLIP without prompts."""
    seen = {extractor.name: View(extractor.sha256, _looking(extractor)) for extractor in extractors}
    if prompt_judge:
        conditioning = family.manifest.conditioning
        if not isinstance(conditioning, PromptConditioning):
            raise DataError(f"--clip needs prompts, and family {family.name!r} takes none")
        seen["clip"] = View(prompt_judge.sha256, _meeting(prompt_judge, conditioning))
    return seen


def _looking(extractor: Extractor) -> Callable[[Tensor, Tensor], np.ndarray]:
    return lambda images, condition: extractor.features(images.cpu().numpy())


def _meeting(prompt_judge: PromptJudge, conditioning: PromptConditioning) -> Callable[[Tensor, Tensor], np.ndarray]:
    def look(images: Tensor, condition: Tensor) -> np.ndarray:
        prompts = [conditioning.describe(tuple(asked)) for asked in condition.tolist()]
        return prompt_judge.scores(images.cpu().numpy(), prompts)

    return look


def measure_metrics(
    family: Family,
    yardstick: Yardstick,
    evaluation: Evaluation,
    plans: list[Plan],
    out: Path,
    *,
    extractors: list[Extractor],
    prompt_judge: PromptJudge | None,
    statistics: Path,
    references: int,
) -> MetricsRecord:
    """Measure plans by every network over the evaluation's seeds; the file grows row by row, what fits beside it is kept.

    extractors: networks besides the family's judge.  statistics: folder for those of real images.
    Raises DataError when those there do not fit, or the result file is none or would lose, FamilyError without plans.
    """
    if not plans:
        raise FamilyError("the positions asked for are drawn in none of the ways asked for")
    scorer = Scorer(family, yardstick, evaluation, views(family, extractors, prompt_judge))
    rulers = [
        ruler(network, yardstick.data, statistics, samples=evaluation.samples, references=references)
        for network in (judge_of(yardstick), *extractors)
    ]
    fresh = MetricsRecord(
        family=family.name,
        references=tuple(one.reference for one in rulers),
        clip=prompt_judge.sha256 if prompt_judge else None,
        samples=evaluation.samples,
        seeds=evaluation.seeds,
        rows=(_real(rulers, evaluation),),
    )
    record = beside(fresh, read_metrics(out) if out.exists() else fresh, out)
    members = sorted({member for plan in plans for member in plan.members})
    scorer.announce("metrics", sum(plan.runs(family.guidance(plan)) for plan in plans) * scorer.images, members)

    def replaces(row: Row, known: Row) -> bool:
        return known.plan == row.plan or not known.is_of(family)

    for plan in plans:
        row = _row(scorer, rulers, plan)
        print(summary(row))
        record = add_row(record, row, out, read_metrics, replaces=replaces, order=lambda one: (one.steps, one.source))
    scorer.forget()
    return record


def _row(scorer: Scorer, rulers: list[Ruler], plan: Plan) -> Row:
    """Draw a plan's images in every run and return what is seen in them."""
    evaluation, source = scorer.evaluation, scorer.family.source(plan)
    about, data = f"{plan.steps} steps, {source}", scorer.yardstick.data

    def drawn(prompts: DataSet, samples: int) -> list[dict[str, np.ndarray]]:
        return [scorer.see([plan], prompts, samples, seed, guidance=None, label=about)[0] for seed in evaluation.seeds]

    held_out = scorer.held_out
    runs, unseen = drawn(data, evaluation.samples), drawn(*held_out) if held_out else []
    names = {one.extractor.name: one.extractor.name for one in rulers} | {"judge": "features"}
    return Row(
        steps=plan.steps,
        source=source,
        plan=plan,
        weights=weights(scorer.family, plan),
        guidance=scorer.family.guidance(plan),
        metrics=tuple(one.metric([run[names[one.extractor.name]] for run in runs]) for one in rulers),
        agreement=_mean(runs, "right") if data.conditioning.sizes else None,
        agreement_held_out=_mean(unseen, "right") if unseen else None,
        clip_score=_mean(runs, "clip") if "clip" in scorer.views else None,
        measured=provenance_of(evaluation),
    )


def _mean(runs: list[dict[str, np.ndarray]], view: str) -> Measure:
    return measure([float(run[view].mean()) for run in runs])


def _real(rulers: list[Ruler], evaluation: Evaluation) -> Row:
    """Return what is seen in real images."""
    floors = tuple(one.floor for one in rulers)
    return Row(steps=0, source="real", plan=None, metrics=floors, measured=provenance_of(evaluation))


def summary(row: Row) -> str:
    """Return one line for people."""
    line = f"{row.steps:4d} steps  {row.source:8}"
    for one in row.metrics:
        line += f"  {one.network}: distance {one.frechet.mean:.2f} ± {one.frechet.spread:.2f}"
        line += f" precision {one.precision.mean:.2f} recall {one.recall.mean:.2f}"
    if row.agreement:
        line += f"  right {row.agreement.mean:.1%}"
    if row.agreement_held_out:
        line += f"  held out {row.agreement_held_out.mean:.1%}"
    return line + (f"  CLIP {row.clip_score.mean:.1f}" if row.clip_score else "")
