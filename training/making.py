"""`stepdial train`, `distill`, `ablate`: what makes networks."""

from pathlib import Path

import torch
from pydantic import Field

from diffusion import provenance
from diffusion.family import Family, open_family
from training.ablations import RESULTS, ablate
from training.arms import ARMS, SETS, chosen, trials
from training.command import Command, Reading, choose_device, data_of, integers, words
from training.datasets import DataSet
from training.members import add_member, is_trained, new_manifest, progress_grid, training_record
from training.opening import open_captioned
from training.probe import student_probe, teacher_probe
from training.student import StudentSettings, distillation, new_student_run, new_whole_run
from training.teacher import TeacherSettings, new_teacher_run, teacher_loss
from training.trainer import Run, fit
from training.watch import Watch
from training.yardstick import Evaluation


class Train(TeacherSettings, Reading):  # type: ignore[misc]
    """Train a diffusion teacher on data and write it as a new family. The same command again resumes where it was."""

    data: str = "shapes"
    """"shapes" and "scenes" (drawn on demand, prompts), "digits" (scikit-learn's, labels); or a path: a folder of images, one
    subfolder per class for labels; WebDataset shards; a Hugging Face data set, parquet or arrow; an .npz; CIFAR-10's folder."""
    prompts: Path | None = None
    """How captions are read: a file with the conditioning of a family that takes prompts, as in its family.json.
    Without it captions are not used."""
    family: Path
    """Folder to write the family to; its name is the folder's."""
    runs: Path = Path("runs")
    """Where checkpoints, logs and sample grids go."""
    teacher_guidance: float = Field(default=1.0, ge=0)
    """Guidance w that the teacher's dial positions use by default; 0 for none."""
    device: str = "auto"
    """cpu, cuda, cuda:1, or auto: the GPU if there is one."""

    def cli_cmd(self) -> None:
        """Train, then write the family."""
        settings = TeacherSettings.model_validate(self.model_dump(include=set(TeacherSettings.model_fields)))
        device = choose_device(self.device)
        data = open_captioned(self.data, self.resolution, self.augmentation, self.prompts)
        print(data)
        name = self.family.resolve().name
        guidance = self.teacher_guidance if data.conditioning.sizes else 0.0
        empty = new_manifest(name, data, settings.noise_schedule(), guidance=guidance)
        run = new_teacher_run(settings, data, self.runs / name / "teacher", device)
        if is_trained(self.family, "teacher", run):
            print(f"family {name} has this teacher already")
            return
        probe = teacher_probe(settings, data, device) if self.probes else None
        fit(
            run,
            data,
            lambda network, x, condition, _, generator: teacher_loss(settings, network, x, condition, generator),
            draw=progress_grid(empty, data),
            watch=Watch(run, probe, times=self.probes, tracker=self.tracker),
            workers=self.workers,
        )
        record = training_record(run, data, provenance.command())
        family = add_member(self.family, empty, run, name="teacher", steps=None, guidance=0.0, record=record, data=data)
        print(f"wrote the teacher of family {family.name}; next: stepdial distill --family {self.family}")


class Distill(StudentSettings, Reading):  # type: ignore[misc]
    """Distil a family's teacher into students, one after another, and write them into the family. Resumes as train does.

    Several of these may run side by side for different steps.
    """

    family: Path
    """Folder of the family."""
    steps: str = "1,2,4,8,16"
    """Step counts, separated by commas; one student each, or one for all with --whole."""
    whole: bool = False
    """Train one network for the whole dial, told its step count. Every batch has equal parts of each count: the batch is
    rounded up to a multiple of their number."""
    teacher_part: bool = False
    """With --whole: let the network learn the teacher's part too, as the count of infinitely many steps, guidance baked in."""
    guidance: float | None = Field(default=None, ge=0)  # type: ignore[assignment]
    """Guidance w baked into the students (cd); by default the family's, that of the teacher's positions."""
    data: str | None = None
    """Data to distil on; by default the teacher's (a folder has to be named again)."""
    runs: Path = Path("runs")
    """Where checkpoints, logs and sample grids go."""
    device: str = "auto"
    """cpu, cuda, cuda:1, or auto: the GPU if there is one."""

    def cli_cmd(self) -> None:
        """Distil each student."""
        family, device = open_family(self.family), choose_device(self.device)
        if family.manifest.teacher is None:
            raise SystemExit(f"family {family.name!r} has no teacher to distil")
        if self.teacher_part and not self.whole:
            raise SystemExit("--teacher-part is for one network for the whole dial; give --whole too")
        counts = integers(self.steps, "steps")
        if self.whole:
            self._distil_whole((0, *counts) if self.teacher_part else tuple(counts), family, device)
            return
        for steps in counts:
            self._distil(steps, family, device)

    def _settings(self, family: Family, parts: int = 1) -> StudentSettings:
        """The run's settings, the batch rounded up to a multiple of `parts`."""
        asked = self.model_dump(include=set(StudentSettings.model_fields))
        guidance = family.manifest.guidance if self.guidance is None else self.guidance
        batch = -(-self.batch // parts) * parts
        return StudentSettings.model_validate(asked | {"guidance": guidance, "batch": batch})

    def _distil(self, steps: int, family: Family, device: torch.device) -> None:
        settings = self._settings(family)
        data = data_of(family, self.data, self.augmentation)
        run = new_student_run(settings, steps, family, self.runs / family.name / f"student-{steps}", device)
        run.settings |= data.identity
        if is_trained(self.family, f"student-{steps}", run):
            print(f"family {family.name} has this {steps}-step student already")
            return
        loss = distillation(settings, steps, family, device)
        draw = progress_grid(family.manifest, data, steps=steps)
        watch = self._watch(run, settings, steps, family, data)
        fit(run, data, loss, draw=draw, watch=watch, workers=self.workers)
        self._add(f"student-{steps}", steps, run, settings, family, data)
        print(f"wrote the {steps}-step student of family {family.name}")

    def _distil_whole(self, segments: tuple[int, ...], family: Family, device: torch.device) -> None:
        settings, data = self._settings(family, len(segments)), data_of(family, self.data, self.augmentation)
        print(
            f"a batch is {settings.batch} images: {settings.batch // len(segments)} of each of {len(segments)} counts"
        )
        run = new_whole_run(settings, segments, family, self.runs / family.name / "whole", device)
        run.settings |= data.identity
        if is_trained(self.family, "whole", run):
            print(f"family {family.name} has this student for the whole dial already")
            return
        loss = distillation(settings, segments, family, device)
        draw = progress_grid(family.manifest, data, segments=segments)
        watch = self._watch(run, settings, segments, family, data)
        fit(run, data, loss, draw=draw, watch=watch, workers=self.workers)
        self._add("whole", None, run, settings, family, data)
        print(f"wrote the student for the whole dial of family {family.name}")

    def _watch(
        self, run: Run, settings: StudentSettings, counts: int | tuple[int, ...], family: Family, data: DataSet
    ) -> Watch:
        probe = student_probe(settings, counts, family, data, run.device) if self.probes else None
        return Watch(run, probe, times=self.probes, tracker=self.tracker)

    def _add(
        self, name: str, steps: int | None, run: Run, settings: StudentSettings, family: Family, data: DataSet
    ) -> None:
        add_member(
            self.family,
            family.manifest,
            run,
            name=name,
            steps=steps,
            guidance=settings.guidance if settings.method == "cd" else 0.0,
            record=training_record(run, data, provenance.command()),
            data=data,
        )


class Ablate(StudentSettings, Command):  # type: ignore[misc]
    """Train short distillations that differ from a baseline in one thing each, and measure every one of them.

    The other flags are the baseline. Nothing is written into the family. What is measured already is not repeated, and the same
    command goes on where it was.
    """

    family: Path
    """Folder of the family whose teacher is distilled."""
    arms: str = "paper"
    """What to change, separated by commas: names of docs/ablations.md, or of groups of them: paper (what the paper
    compares), all (every arm of separate students), whole (one network for all step counts). The baseline is always there."""
    steps: str = "1,2,4,8,16"
    """Step counts, separated by commas."""
    iterations: int = Field(default=600, ge=1)
    """Optimiser steps of each student."""
    batch: int = Field(default=16, ge=1)
    """Images per step."""
    lr: float = Field(default=3.5e-4, gt=0)
    """Peak learning rate of AdamW."""
    warmup: int = Field(default=50, ge=0)
    """Iterations of linear warm-up."""
    decay_from: float = Field(default=0.4, ge=0, le=1)
    """Fraction of the iterations after which the rate falls linearly to 0; 1 keeps it constant."""
    ema: float = Field(default=0.998, ge=0, lt=1)
    """Decay of the exponential moving average that is measured; warmed up as (1 + i) / (10 + i)."""
    guidance: float | None = Field(default=None, ge=0)  # type: ignore[assignment]
    """Guidance w baked into the students (cd); by default the family's, that of the teacher's positions."""
    samples: int = Field(default=2000, ge=80)
    """Images per run behind each quality number; more than the 64 features, or the distance is meaningless."""
    seeds: int = Field(default=3, ge=1)
    """Runs of drawing with different seeds, for the spread."""
    data: str | None = None
    """Data to distil on and to compare with; by default the teacher's (a folder has to be named again)."""
    results: Path = RESULTS
    """Folder for the result file."""
    runs: Path = Path("runs")
    """Where checkpoints, logs and the trained students go."""
    device: str = "auto"
    """cpu, cuda, cuda:1, or auto: the GPU if there is one."""

    def cli_cmd(self) -> None:
        """Train and measure."""
        family = open_family(self.family)
        if family.manifest.teacher is None:
            raise SystemExit(f"family {family.name!r} has no teacher to distil")
        known = (*SETS, *(arm.name for arm in ARMS))
        arms, counts = chosen(words(self.arms, known, "arms")), tuple(integers(self.steps, "steps"))
        asked = self.model_dump(include=set(StudentSettings.model_fields))
        guidance = family.manifest.guidance if self.guidance is None else self.guidance
        baseline = StudentSettings.model_validate(asked | {"guidance": guidance})
        out = self.results / f"{family.name}.json"
        folder = self.runs / family.name
        evaluation = Evaluation(
            samples=self.samples,
            seeds=tuple(range(2001, 2001 + self.seeds)),
            precision="fp32",
            device=choose_device(self.device),
            command=provenance.command(),
            commit=provenance.commit(),
            folder=folder / "scores",
        )
        data = data_of(family, self.data)
        ablate(family, data, trials(arms, baseline, counts), baseline, evaluation, runs=folder / "ablate", out=out)
        print(f"the table: stepdial report --family {self.family} --file docs/ablations.md")
