"""`stepdial distill`: what makes students."""

from dataclasses import replace
from pathlib import Path

from pydantic import Field, field_validator

from diffusion import provenance
from diffusion.family import Family, open_family
from diffusion.manifest import MANIFEST
from diffusion.plans import ALL_TIMES
from diffusion.uvit import PRESETS
from training.command import Reading, Spreading, data_of, integers, made
from training.datasets import DataSet
from training.estimate import Work
from training.failures import CommandError
from training.latents import in_latents
from training.members import add_member, is_trained, progress_grid, training_record
from training.preset import network_of, student_settings, teacher_settings
from training.run import Run
from training.student import distillation, new_student_run, new_whole_run, taught_by
from training.student_probe import student_probe
from training.student_settings import Interval, StudentSettings, check_asked, check_whole
from training.trainer import fit
from training.watch import Watch
from training.world import World


class Distill(StudentSettings, Reading, Spreading):  # type: ignore[misc]
    """Distil a family's teacher into students, one after another, and write them into the family. Resumes as train does.

    Several of these may run side by side for different steps.
    """

    settings_of_preset = staticmethod(student_settings)
    preset: str | None = None
    """Settings for what no flag says, from training/presets/: a preset that has students, as imagenet64-small, with -cd or -ct
    and a step count or without, as imagenet64-small-cd-4."""
    family: Path
    """Folder of the family."""
    steps: str = "1,2,4,8,16"
    """Step counts, separated by commas; one student each, or one for all with --whole. With pd from many to few, as each is
    taught by the one before."""
    whole: bool = False
    """Train one network for the whole dial, told its step count. Every batch has parts of each count, equal ones unless
    --weights says otherwise: the batch is rounded up to a multiple of the parts."""
    teacher_part: bool = False
    """With --whole: let the network learn the teacher's part too, as the count of infinitely many steps, guidance baked in."""
    guidance: float | None = Field(default=None, ge=0)  # type: ignore[assignment]
    """Guidance w baked into the students (cd, tract, pd), or with a range their default; by default the family's, that of the
    teacher's positions, or that of the student that teaches."""
    guidance_interval: Interval | None = None  # type: ignore[assignment]
    """Times t at which that guidance acts, "0.25,0.75": 1 is noise, 0 the image; by default those of whoever teaches."""
    data: str | None = None
    """Data to distil on; by default the teacher's (a folder has to be named again)."""
    runs: Path = Path("runs")
    """Where checkpoints, logs and sample grids go."""
    device: str = "auto"
    """cpu, cuda, cuda:1, or auto: the GPU if there is one."""

    @field_validator("preset")
    @classmethod
    def _is_known(cls, preset: str | None) -> str | None:
        if preset:
            student_settings(preset)
        return preset

    def cli_cmd(self) -> None:
        """Distil each student."""
        counts = integers(self.steps, "steps")
        segments = tuple([0] * self.teacher_part + counts)
        if self.teacher_part and not self.whole:
            raise CommandError("--teacher-part is for one network for the whole dial; give --whole too")
        asked = self.model_dump(include=set(StudentSettings.model_fields))
        asked |= {"guidance": self.guidance or 0.0, "guidance_interval": self.guidance_interval or ALL_TIMES}
        check_asked(StudentSettings.model_validate(asked), segments, whole=self.whole)
        if self.whole:
            check_whole(self)
        if self.dry_run:
            print(self._plan(segments))
            return
        family, world = open_family(self.family), self.world(self.device)
        if family.manifest.teacher is None:
            raise CommandError(f"family {family.name!r} has no teacher to distil")
        if self.whole:
            self._distil(segments, family, world)
            return
        for steps in reversed(counts) if self.method == "pd" else counts:
            self._distil(steps, open_family(self.family), world)

    def _plan(self, segments: tuple[int, ...]) -> str:
        """Return what a dry run says: of the family's network if it is there, else of the preset's."""
        family = open_family(self.family) if (self.family / MANIFEST).exists() or not self.preset else None
        settings = self._settings(family, segments if self.whole else segments[-1])
        teacher = family.manifest.teacher if family else None
        network = teacher.network if teacher else PRESETS[network_of(self.preset or "")]
        told = {"segments": segments if self.whole else (), "guidance": settings.guidance_range}
        network = network.model_copy(update=told)
        twice = settings.method == "pd"  # the teacher says the target, too
        asks = (2 if settings.guidance or settings.guidance_range else 1) * (1 + twice) * settings.distils
        work = Work(network, settings.batch, settings.iterations, targets=1 - twice, teacher=asks)
        if family and family.manifest.autoencoder:
            work = replace(work, autoencoder=family.manifest.autoencoder.network)
        whose = f"the network is that of family {family.name}\n" if family else ""
        return whose + self.estimated(settings, work, 1 if self.whole else len(segments))

    def _settings(self, family: Family | None, counts: int | tuple[int, ...]) -> StudentSettings:
        """The run's settings, the batch rounded up to a multiple of its parts."""
        asked = self.model_dump(include=set(StudentSettings.model_fields))
        parts = sum(map(self.weight, counts)) if isinstance(counts, tuple) else 1
        batch = -(-self.batch // parts) * parts
        guidance = self._baked(family, counts) if self.guidance is None else self.guidance
        within = self.guidance_interval or (taught_by(self, counts, family).guidance_interval if family else ALL_TIMES)
        return StudentSettings.model_validate(
            asked | {"guidance": guidance, "guidance_interval": within, "batch": batch}
        )

    def _baked(self, family: Family | None, counts: int | tuple[int, ...]) -> float:
        """The guidance of who teaches: the family's, a student's own, or without a family the preset's."""
        if family is None:
            return float(teacher_settings(network_of(self.preset or ""))["teacher_guidance"])
        source = taught_by(self, counts, family)
        return family.manifest.guidance if source.role == "teacher" else source.guidance

    def _data(self, family: Family, world: World) -> DataSet:
        with world.first(), self.naming_preset(self.preset):
            return data_of(family, self.data, self.augmentation)

    def _distil(self, counts: int | tuple[int, ...], family: Family, world: World) -> None:
        """Distil the student of one step count, or one network for several."""
        settings, data = self._settings(family, counts), self._data(family, world)
        runs = self.runs / family.name
        steps, segments = (None, counts) if isinstance(counts, tuple) else (counts, ())
        if isinstance(counts, tuple):
            name, what = "whole", "student for the whole dial"
            run = new_whole_run(settings, counts, family, runs / name, world.device)
            about = f"a batch is {settings.batch} images: {_shares(settings, counts)}"
        else:
            name, what = f"student-{counts}", f"{counts}-step student"
            run = new_student_run(settings, counts, family, runs / name, world.device)
            about = f"the {what} is taught by {taught_by(settings, counts, family).name}" if settings.distils else ""
        self.spread(run, world, parts=tuple(map(settings.weight, segments)) or (1,))
        run.settings |= data.identity
        if is_trained(self.family, name, run):
            print(f"family {family.name} has this {what} already")
            return
        if about:
            print(about)
        made("--runs", self.runs)
        autoencoder = family.autoencoder(world.device)
        fit(
            run,
            data,
            in_latents(distillation(settings, counts, family, world.device, run), autoencoder),
            draw=progress_grid(
                family.manifest,
                data,
                steps=steps,
                segments=segments,
                told=settings.told,
                decode=autoencoder.decode if autoencoder else None,
            ),
            watch=self._watch(run, settings, counts, family, data),
            workers=self.workers,
        )
        self._add(name, steps, run, settings, family, data)
        print(f"wrote the {what} of family {family.name}")

    def _watch(
        self, run: Run, settings: StudentSettings, counts: int | tuple[int, ...], family: Family, data: DataSet
    ) -> Watch:
        probe = student_probe(settings, counts, family, data, run.device) if self.probes else None
        return Watch(run, probe, times=self.probes, tracker=self.tracker)

    def _add(
        self, name: str, steps: int | None, run: Run, settings: StudentSettings, family: Family, data: DataSet
    ) -> None:
        if run.world.main:
            add_member(
                self.family,
                family.manifest,
                run,
                name=name,
                steps=steps,
                guidance=settings.guidance if settings.distils else 0.0,
                interval=settings.interval_baked_in,
                record=training_record(run, data, provenance.command()),
                data=data,
            )
        run.world.wait()


def _shares(settings: StudentSettings, segments: tuple[int, ...]) -> str:
    """How many images of a batch each count gets: "3 of each of 3 counts", "6 of 1 step, 3 of 2 steps"."""
    weights = {count: settings.weight(count) for count in segments}
    part = settings.batch // sum(weights.values())
    if len(set(weights.values())) == 1:
        return f"{part * weights[segments[0]]} of each of {len(segments)} counts"
    return ", ".join(f"{part * weight} of {count or 'infinitely many'}" for count, weight in weights.items()) + " steps"
