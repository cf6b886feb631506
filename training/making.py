"""`stepdial train`: what makes teachers."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from diffusion import provenance
from diffusion.family import open_family
from diffusion.plans import ALL_TIMES
from diffusion.uvit import PRESETS
from training.command import Reading, Spreading, made, named
from training.estimate import Work
from training.members import (
    add_member,
    check_replaceable,
    guide_teacher,
    is_trained,
    new_manifest,
    progress_grid,
    training_record,
)
from training.opening import CODED, open_captioned
from training.preset import teacher_settings
from training.probe import teacher_probe
from training.student_settings import Interval
from training.teacher import TeacherSettings, new_teacher_run, teacher_loss
from training.trainer import fit
from training.watch import Watch


class Train(TeacherSettings, Reading, Spreading):  # type: ignore[misc]
    """Train a diffusion teacher on data and write it as a new family. The same command again resumes where it was."""

    settings_of_preset = staticmethod(teacher_settings)
    data: str = "shapes"
    """"shapes" and "scenes" (drawn on demand, prompts), "digits" (scikit-learn's, labels); or a path: a folder of images, one
    subfolder per class for labels; WebDataset shards; a Hugging Face data set, parquet or arrow; an .npz; CIFAR-10's folder."""
    prompts: Path | None = None
    """How captions are read: a file with the conditioning of a family that takes prompts, as in its family.json.
    Without it captions are not used."""
    family: Annotated[Path, AfterValidator(named)]
    """Folder to write the family to; its name is the folder's."""
    start: Path | None = None
    """Folder of a family of the same network and conditions, with whose teacher's weights training begins."""
    runs: Path = Path("runs")
    """Where checkpoints, logs and sample grids go."""
    teacher_guidance: float | None = Field(default=None, ge=0)
    """Guidance w that the teacher's dial positions use by default; 0 for none, 1 if not said. Said of a teacher that is there
    already, it is changed."""
    teacher_guidance_interval: Interval | None = None
    """Times t at which it acts, "0.25,0.75": 1 is noise, 0 the image; all if not said, or changed
    likewise. Students learn it so."""
    device: str = "auto"
    """cpu, cuda, cuda:1, or auto: the GPU if there is one."""

    def cli_cmd(self) -> None:
        """Train, then write the family."""
        settings = TeacherSettings.model_validate(self.model_dump(include=set(TeacherSettings.model_fields)))
        if self.dry_run:
            print(self.estimated(settings, Work(PRESETS[self.preset], settings.batch, settings.iterations)))
            return
        world = self.world(self.device)
        with world.first(), self.naming_preset(self.preset):
            data = open_captioned(self.data, self.resolution, self.augmentation, self.prompts)
        print(data)
        name = self.family.resolve().name
        guidance = 1.0 if self.teacher_guidance is None else self.teacher_guidance
        guidance = guidance if data.conditioning.sizes else 0.0
        empty = new_manifest(name, data, settings.noise_schedule(), guidance=guidance)
        start = open_family(self.start) if self.start else None
        run = new_teacher_run(settings, data, self.runs / name / "teacher", world.device, start)
        self.spread(run, world)
        if is_trained(self.family, "teacher", run):
            world.wait()
            if world.main and data.conditioning.sizes:
                guide_teacher(self.family, self.teacher_guidance, self.teacher_guidance_interval, world.device)
            world.wait()
            print(f"family {name} has this teacher already")
            return
        within = self.teacher_guidance_interval or ALL_TIMES
        check_replaceable(self.family)
        if world.main:
            made("--family", self.family)
            made("--runs", self.runs)
        probe = teacher_probe(settings, data, world.device) if self.probes else None
        fit(
            run,
            data,
            lambda network, x, condition, _, generator: teacher_loss(settings, network, x, condition, generator),
            draw=progress_grid(empty, data, guided=within),
            watch=Watch(run, probe, times=self.probes, tracker=self.tracker),
            workers=self.workers,
        )
        if world.main:
            record = training_record(run, data, provenance.command())
            add_member(
                self.family, empty, run,
                name="teacher", steps=None, guidance=0.0, interval=within, record=record, data=data,
            )  # fmt: skip
        world.wait()
        again = "" if self.data in CODED else f" --data {self.data}"
        print(f"wrote the teacher of family {name}; next: stepdial distill --family {self.family}{again}")
