"""`stepdial ablate`: train the arms of an ablation from a family's teacher, measure each, and keep what was found.

Nothing is written into the family.  Every arm becomes a small family of its own below the runs, which can be drawn from.
"""

import hashlib
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from diffusion import provenance
from diffusion.family import Family, open_family
from diffusion.files import write_json
from diffusion.frontier import Measure, Provenance
from diffusion.manifest import MANIFEST, Member, TrainingRecord
from training.arms import Trial
from training.datasets import DataSet
from training.evaluate import provenance_of
from training.feed import feed
from training.members import add_member, is_trained, locked, trained_alike, training_record
from training.results import Extent, check_overwrite, read_result
from training.run import Run
from training.scores import Scorer
from training.student_settings import StudentSettings
from training.trainer import fit
from training.yardstick import Evaluation, Yardstick

RESULTS = Path("benchmarks/ablations")
"""Where results are kept, by default."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Ablation(_Record):
    """What an arm gives at one step count."""

    arm: str
    steps: int
    frechet: Measure
    """Frechet distance, as a position's; the spread is that of drawing: one network was trained."""
    agreement: Measure | None
    agreement_held_out: Measure | None
    training: TrainingRecord
    """How the network was trained."""
    measured: Provenance


class Study(_Record):
    """Arms that compare: of one baseline, measured alike."""

    baseline: StudentSettings
    """What every arm differs from in one thing."""
    samples: int
    """Images of each run."""
    seeds: tuple[int, ...]
    """Seeds of the runs, of drawing, not of training."""
    floor: Measure
    """The distance of as many real images."""
    rows: tuple[Ablation, ...] = ()
    """By rising steps, in the order they were measured."""


class AblationsRecord(_Record):
    """The ablations of a family: benchmarks/ablations/NAME.json."""

    format: Literal[1] = 1
    family: str
    teacher: str
    """SHA-256 of the weights of the teacher that was distilled."""
    reference: str
    """What distances are taken to."""
    judge: str
    """What takes them."""
    studies: tuple[Study, ...] = ()

    @property
    def extent(self) -> Extent:
        """What must not be lost; studies of fewer images stand beside those of more."""
        return Extent(0, 0, {self.teacher, self.reference, self.judge})


def read_ablations(file: Path) -> AblationsRecord:
    """Read a result file.  Raises DataError if it is not one."""
    return read_result(AblationsRecord, file, "stepdial ablate")


@dataclass(frozen=True)
class Laboratory:
    """Everything that the arms of a study share."""

    family: Family
    data: DataSet
    yardstick: Yardstick
    evaluation: Evaluation
    study: Study
    """Without rows."""
    runs: Path
    """Where checkpoints and the arms' own families go."""
    out: Path
    """The result file."""

    @property
    def teacher(self) -> Member:
        """The teacher that is distilled."""
        assert self.family.manifest.teacher is not None
        return self.family.manifest.teacher

    @property
    def record(self) -> AblationsRecord:
        """What is known of this teacher by this yardstick, as the file is now.  Raises DataError if it is of others."""
        empty = AblationsRecord(
            family=self.family.name,
            teacher=self.teacher.weights.sha256,
            reference=self.yardstick.reference,
            judge=self.yardstick.description,
        )
        found = read_ablations(self.out) if self.out.exists() else empty
        check_overwrite(self.out, found.extent, empty.extent)
        return found

    @property
    def rows(self) -> tuple[Ablation, ...]:
        """What is known of this study."""
        return next((study.rows for study in self.record.studies if self._is_this(study)), ())

    def missing(self, trial: Trial) -> list[int]:
        """Return the step counts at which this very training was not measured yet."""
        told = trial.recorded(self._taught(trial))
        ours = [row for row in self.rows if row.arm == trial.arm.name]
        known = {row.steps for row in ours if trained_alike(row.training, told, trial.settings)}
        return [steps for steps in trial.counts if steps not in known]

    def announce(self, trials: list[Trial]) -> None:
        """Say how many networks are trained on how many images, and about how long that and measuring them takes."""
        todo = [trial for trial in trials if self.missing(trial)]
        if not todo:
            print(f"{len(trials)} runs, all measured already")
            return
        images = sum(trial.images for trial in todo)
        drawn = self.study.samples * len(self.study.seeds)
        evaluations = drawn * sum(sum(self.missing(trial)) for trial in todo)
        scorer = Scorer(self.family, self.yardstick, self.evaluation)
        seconds = images * self._seconds(todo[0]) + evaluations * scorer.seconds(self.teacher.name)
        print(
            f"{len(trials)} runs, {len(trials) - len(todo)} of them measured already: {images:,} images to train on and "
            f"{evaluations:,} network evaluations to measure with, about {seconds / 60:,.0f} minutes on "
            f"{provenance.device_name(self.evaluation.device)}"
        )

    def measure(self, trial: Trial) -> None:
        """Train an arm, unless it is trained, and measure it at each step count where it was not, keeping each at once."""
        student = self._trained(trial)
        member = student.manifest.member(trial.member)
        for steps in self.missing(trial):
            scorer = Scorer(student, self.yardstick, self.evaluation)
            quality = scorer.quality([member.plan(steps)], label=f"{trial.arm.name}, {steps} steps")[0]
            row = Ablation(
                arm=trial.arm.name,
                steps=steps,
                training=member.training,
                measured=provenance_of(self.evaluation),
                **quality._asdict(),
            )
            self._keep(row)
            scorer.forget()
            agreed = f"  right {row.agreement.mean:.1%}" if row.agreement else ""
            print(f"{steps:4d} steps  {row.arm:15} {row.frechet.mean:8.2f} ± {row.frechet.spread:.2f}{agreed}")

    def _trained(self, trial: Trial) -> Family:
        """Return the arm's own family, trained if it is not there yet."""
        if trial.after:
            self._trained(trial.after)
        run, home = self._run(trial), self._home(trial)
        if not is_trained(home, trial.member, run):
            fit(run, self.data, trial.loss(self._taught(trial), self.evaluation.device, run))
            add_member(
                home,
                self.family.manifest.model_copy(update={"members": (), "golden": None}),
                run,
                name=trial.member,
                steps=None if trial.arm.whole else trial.counts[0],
                guidance=trial.settings.guidance if trial.settings.distils else 0.0,
                interval=trial.settings.interval_baked_in,
                record=training_record(run, self.data, self.evaluation.command),
                data=self.data,
            )
        return open_family(home)

    def _run(self, trial: Trial) -> Run:
        return trial.run(self._taught(trial), self.runs / self._name / trial.name, self.evaluation.device)

    def _home(self, trial: Trial) -> Path:
        """The folder of the arm's own family: one for each run, or one for all where students teach each other."""
        return self.runs / self._name / (trial.arm.name if trial.settings.method == "pd" else trial.name)

    def _taught(self, trial: Trial) -> Family:
        """The family that an arm distils: the one that is asked about, or its own with that one's teacher."""
        if trial.settings.method != "pd":
            return self.family
        home = self._home(trial)
        if not (home / MANIFEST).exists():
            home.mkdir(parents=True, exist_ok=True)
            weights = self.teacher.weights.file
            shutil.copyfile(self.family.folder / weights, home / weights)
            update = {"members": (self.teacher,), "golden": None}
            write_json(home, MANIFEST, self.family.manifest.model_copy(update=update))
        return open_family(home)

    @property
    def _name(self) -> str:
        """A folder for the runs of this teacher and baseline, so that those of others are never in the way."""
        told = [self.teacher.weights.sha256, self.study.baseline.model_dump(mode="json")]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:8]

    def _seconds(self, trial: Trial) -> float:
        """Return how long training on one image takes, in seconds."""
        run = self._run(trial)
        loss = trial.loss(self._taught(trial), self.evaluation.device, run)
        settings = trial.settings
        batches = feed(self.data, batch=settings.batch, seed=settings.seed, iterations=range(2), device=run.device)
        with batches as following:
            for _ in range(2):  # the first warms up
                began = time.perf_counter()
                run.step(following, loss)
        return (time.perf_counter() - began) / settings.batch

    def _keep(self, row: Ablation) -> None:
        """Write what was measured beside what is known; several commands for different arms may run side by side."""
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.out.parent):
            record = self.record
            others = [known for known in self.rows if not _replaces(row, known)]
            rows = tuple(sorted([*others, row], key=lambda known: known.steps))
            study = self.study.model_copy(update={"rows": rows})
            studies = [study if self._is_this(known) else known for known in record.studies]
            studies += [] if study in studies else [study]
            write_json(self.out.parent, self.out.name, record.model_copy(update={"studies": tuple(studies)}))

    def _is_this(self, study: Study) -> bool:
        ours = self.study
        return (study.baseline, study.samples, study.seeds) == (ours.baseline, ours.samples, ours.seeds)


def _replaces(row: Ablation, known: Ablation) -> bool:
    """Tell whether a row stands for another: of its arm and steps, or of its arm's network for other step counts."""
    (ours, theirs) = (one.training.settings.get("segments") for one in (row, known))
    return row.arm == known.arm and (row.steps == known.steps or ours != theirs)


def ablate(
    family: Family,
    data: DataSet,
    trials: list[Trial],
    baseline: StudentSettings,
    evaluation: Evaluation,
    *,
    runs: Path,
    out: Path,
) -> AblationsRecord:
    """Train and measure what is not measured yet, keeping each result as soon as it is there, and return the record.

    runs: folder for checkpoints.  out: result file; one that is of another teacher or judge is refused.
    Raises TrainingError as training does, DataError for a file that is no result or of others, KeyboardInterrupt when a run was
    interrupted and saved.
    """
    yardstick = Yardstick(family, data, evaluation.device)
    floor = yardstick.floor(evaluation.samples, len(evaluation.seeds))
    study = Study(baseline=baseline, samples=evaluation.samples, seeds=evaluation.seeds, floor=floor)
    laboratory = Laboratory(family, data, yardstick, evaluation, study, runs, out)
    laboratory.announce(trials)
    for trial in trials:
        if laboratory.missing(trial):
            laboratory.measure(trial)
    return laboratory.record
