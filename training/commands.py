"""The commands of training: `stepdial train`, `distill`, `evaluate`, `ablate`, `sample`, `curve`,
`report`, `families`.

A command is a settings class whose fields are its flags and whose attribute docstrings are its help.
"""

import random
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from pydantic import Field
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from diffusion import provenance
from diffusion.condition import ConditionError
from diffusion.family import Family, FamilyError, open_family
from diffusion.frontier import Source
from diffusion.pictures import grid, save_picture
from diffusion.plans import Plan
from training.ablations import RESULTS, ablate
from training.arms import ARMS, SETS, chosen, trials
from training.confirmation import search_dial
from training.curve import draw_curve
from training.datasets import DataError, DataSet, open_data
from training.evaluate import SOURCES, evaluate, time_again, ways
from training.members import add_member, draw, is_trained, new_manifest, progress_grid, training_record
from training.report import write_report
from training.rescues import measure_rescues
from training.samplers import measure_samplers, read_samplers
from training.scores import Scorer
from training.student import StudentSettings, distillation, new_student_run, new_whole_run
from training.teacher import TeacherSettings, new_teacher_run, teacher_loss
from training.trainer import Run, TrainingError, fit
from training.yardstick import Evaluation, Yardstick

W = TypeVar("W", bound=str)
FAILURES = (FamilyError, DataError, TrainingError)
"""What stops a command with one sentence instead of a traceback."""


class Command(BaseSettings):
    """What every command shares: flags alone set it, no environment variable does."""

    model_config = SettingsConfigDict(
        cli_kebab_case=True,
        cli_implicit_flags=True,
        use_attribute_docstrings=True,
        extra="forbid",
        cli_hide_none_type=True,
    )

    def model_post_init(self, context: Any, /) -> None:
        """Note the code that runs, before it changes under a long run."""
        provenance.commit()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Leave environment, .env and secrets out."""
        return (init_settings,)


class Train(TeacherSettings, Command):  # type: ignore[misc]
    """Train a diffusion teacher on data and write it as a new family. The same command again resumes where it was."""

    data: str = "shapes"
    """"shapes" (drawn on demand, prompts), "digits" (scikit-learn's, labels), or a folder of images, one subfolder per
    class for labels."""
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
        device, data = choose_device(self.device), open_data(self.data, self.resolution)
        name = self.family.resolve().name
        guidance = self.teacher_guidance if data.conditioning.sizes else 0.0
        empty = new_manifest(name, data, settings.noise_schedule(), guidance=guidance)
        run = new_teacher_run(settings, data, self.runs / name / "teacher", device)
        if is_trained(self.family, "teacher", run):
            print(f"family {name} has this teacher already")
            return
        fit(
            run,
            data,
            lambda network, x, condition, _, generator: teacher_loss(settings, network, x, condition, generator),
            draw=progress_grid(empty, data),
        )
        record = training_record(run, data, provenance.command())
        family = add_member(self.family, empty, run, name="teacher", steps=None, guidance=0.0, record=record, data=data)
        print(f"wrote the teacher of family {family.name}; next: stepdial distill --family {self.family}")


class Distill(StudentSettings, Command):  # type: ignore[misc]
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
        data = data_of(family, self.data)
        run = new_student_run(settings, steps, family, self.runs / family.name / f"student-{steps}", device)
        if is_trained(self.family, f"student-{steps}", run):
            print(f"family {family.name} has this {steps}-step student already")
            return
        loss = distillation(settings, steps, family, device)
        fit(run, data, loss, draw=progress_grid(family.manifest, data, steps=steps))
        self._add(f"student-{steps}", steps, run, settings, family, data)
        print(f"wrote the {steps}-step student of family {family.name}")

    def _distil_whole(self, segments: tuple[int, ...], family: Family, device: torch.device) -> None:
        settings, data = self._settings(family, len(segments)), data_of(family, self.data)
        print(
            f"a batch is {settings.batch} images: {settings.batch // len(segments)} of each of {len(segments)} counts"
        )
        run = new_whole_run(settings, segments, family, self.runs / family.name / "whole", device)
        if is_trained(self.family, "whole", run):
            print(f"family {family.name} has this student for the whole dial already")
            return
        loss = distillation(settings, segments, family, device)
        fit(run, data, loss, draw=progress_grid(family.manifest, data, segments=segments))
        self._add("whole", None, run, settings, family, data)
        print(f"wrote the student for the whole dial of family {family.name}")

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


class Evaluate(Command):
    """Measure what dial positions of a family give and cost, and write that into the family as its frontier."""

    family: Path
    """Folder of the family."""
    positions: str = "1,2,4,8,16,32"
    """Dial positions to measure, separated by commas; what was measured of others is kept."""
    sources: str = ",".join(SOURCES)
    """Ways of drawing them to measure, where the family has several, separated by commas."""
    samples: int = Field(default=2000, ge=80)
    """Images per run behind each quality number; more than the 64 features, or the distance is meaningless."""
    seeds: int = Field(default=3, ge=1)
    """Runs with different seeds, for the spread."""
    data: str | None = None
    """Real images to compare with; by default the teacher's data (a folder has to be named again)."""
    only_speed: bool = False
    """Time positions that are in the frontier already again, and leave their quality as it was measured."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Network arithmetic of the quality runs: fp32, as it is served, or bf16. Speed is always measured in fp32."""
    search: bool = False
    """Instead of measuring positions: search the best plan of each number of evaluations, composed of all students, and
    write it into the frontier once it is confirmed on the seeds of the evaluation."""
    search_samples: int = Field(default=1000, ge=80)
    """Images of each plan in the search."""
    search_limit: int = Field(default=16, ge=1, le=64)
    """Most evaluations of a plan, for --search and --rescues."""
    search_evaluations: int = Field(default=3000, ge=1)
    """Network evaluations of each image that the search may take; the beam is as wide as they allow, at least 1."""
    search_finalists: int = Field(default=3, ge=1)
    """Plans of each number of evaluations that are confirmed, beside the students' own."""
    rescues: bool = False
    """Instead, or then: measure what images give that leave a measured position early and end on a coarser student."""
    samplers: bool = False
    """Instead, or then: measure the teacher under every sampling rule, guided and unguided."""
    results: Path = Path("benchmarks/dial")
    """Folder for the result files of --search and --samplers."""
    runs: Path = Path("runs")
    """Where finished parts are kept until the command has ended; the same command goes on from there."""
    device: str = "auto"
    """cpu, cuda, cuda:1, or auto: the GPU if there is one."""

    def cli_cmd(self) -> None:
        """Measure."""
        family = open_family(self.family)
        evaluation = Evaluation(
            samples=self.samples,
            seeds=tuple(range(2001, 2001 + self.seeds)),
            precision=self.precision,
            device=choose_device(self.device),
            command=provenance.command(),
            commit=provenance.commit(),
            folder=self.runs / family.name / "scores",
        )
        if self.search or self.rescues or self.samplers:
            self._beyond(family, evaluation)
        else:
            self._positions(family, evaluation)

    def _beyond(self, family: Family, evaluation: Evaluation) -> None:
        """Search, rescues, samplers: what goes beyond the family's own positions."""
        yardstick = Yardstick(family, data_of(family, self.data), evaluation.device)
        scorer = Scorer(family, yardstick, evaluation)
        if self.search:
            search_dial(
                scorer,
                self.results / f"search-{family.name}.json",
                limit=self.search_limit,
                samples=self.search_samples,
                evaluations=self.search_evaluations,
                finalists=self.search_finalists,
            )
        if self.rescues:
            scorer.family = open_family(self.family)  # with what the search has written
            measure_rescues(scorer, self.search_limit)
        if self.samplers:
            floor = yardstick.floor(evaluation.samples, len(evaluation.seeds))
            measure_samplers(scorer, floor, self.results / f"samplers-{family.name}.json")
        scorer.forget()

    def _positions(self, family: Family, evaluation: Evaluation) -> None:
        """The positions asked for: quality and speed, or speed alone."""
        positions = integers(self.positions, "positions")
        unknown = [steps for steps in positions if steps not in family.positions]
        if unknown:
            raise SystemExit(
                f"positions {unknown} are not offered; family {family.name!r} has {list(family.positions)}"
            )
        sources = words(self.sources, SOURCES, "sources")
        if not self.only_speed:
            evaluate(family, data_of(family, self.data), positions, evaluation, sources=sources)
            return
        measured = {plan.steps for plan in ways(family, positions, sources) if family.measured(plan)}
        if not measured.issuperset(positions):
            raise SystemExit(
                f"positions {sorted(set(positions) - measured)} are not in the frontier; measure them first"
            )
        time_again(family, positions, evaluation, sources=sources)


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


class Sample(Command):
    """Draw pictures of a family into a grid, without a server."""

    family: Path
    """Folder of the family."""
    steps: str = "4"
    """Dial position; several separated by commas give one row each, of the same seeds and prompts."""
    source: Source | None = None
    """Way of drawing it where the family has several; by default the one that it serves."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the noise; picture i of the grid is image i of this seed."""
    count: int = Field(default=16, ge=1, le=4096)
    """Number of pictures (of each dial position)."""
    out: Path
    """PNG file to write."""
    prompt: str | None = None
    """What to draw, for a family that takes prompts; several separated by ";" take turns. By default drawn from the seed."""
    label: str | None = None
    """The same for a family that takes labels."""
    guidance: float | None = Field(default=None, ge=0)
    """Guidance w of the teacher's positions; by default the family's."""
    columns: int | None = Field(default=None, ge=1)
    """Pictures in a row; by default a square, or all of them with several dial positions."""
    zoom: int = Field(default=4, ge=1, le=32)
    """How many times each pixel is magnified."""
    device: str = "auto"
    """cpu, cuda, cuda:1, or auto: the GPU if there is one."""

    def cli_cmd(self) -> None:
        """Draw."""
        family, positions = open_family(self.family), integers(self.steps, "steps")
        for steps in positions:
            if steps not in family.positions:
                raise SystemExit(
                    f"steps {steps} is not offered; family {family.name!r} has {', '.join(map(str, family.positions))}"
                )
        plans = [self._plan(family, steps) for steps in positions]
        asked = self._conditions(family)
        said = [family.manifest.conditioning.describe(values) for values in asked]
        condition = torch.tensor(asked, dtype=torch.int64).reshape(self.count, -1)
        seeds, indices = [self.seed] * self.count, list(range(self.count))
        device = choose_device(self.device)
        try:
            drawn = [
                draw(family, plan, condition, seeds=seeds, indices=indices, guidance=self.guidance, device=device)
                for plan in plans
            ]
        except ValueError as error:
            raise SystemExit(str(error)) from None
        several = len(positions) > 1
        columns = self.columns or (self.count if several else max(1, round(self.count**0.5)))
        rows, feet = ([], []) if not several or columns != self.count else ([f"{n}" for n in positions], said)
        save_picture(grid(torch.cat(drawn), columns, zoom=self.zoom, rows=rows, feet=feet), self.out)
        print(f"wrote {self.out}")

    def _plan(self, family: Family, steps: int) -> Plan:
        if self.source is None:
            return family.positions[steps]
        found = [plan for plan in family.plans(steps) if family.source(plan) == self.source]
        if not found:
            raise SystemExit(f"steps {steps} is not drawn by {self.source} in family {family.name!r}")
        return found[0]

    def _conditions(self, family: Family) -> list[tuple[int, ...]]:
        conditioning = family.manifest.conditioning
        asked = self.prompt if self.prompt is not None else self.label
        if asked is None:
            rng = random.Random(self.seed)
            return [conditioning.draw(rng) for _ in range(self.count)]
        field = "prompt" if self.prompt is not None else "label"
        try:
            wishes = [conditioning.encode(**{field: wish.strip()}) for wish in asked.split(";") if wish.strip()]
        except ConditionError as error:
            raise SystemExit(str(error)) from None
        return [wishes[index % len(wishes)] for index in range(self.count)] if wishes else []


class Curve(Command):
    """Draw quality against network evaluations: students, searched plans and the teacher's samplers in one picture."""

    family: Path
    """Folder of the family."""
    samplers: Path | None = None
    """Result file of stepdial evaluate --samplers; by default benchmarks/dial/samplers-NAME.json, if there is one."""
    out: Path = Path("docs/curve.png")
    """PNG file to write."""

    def cli_cmd(self) -> None:
        """Draw."""
        family = open_family(self.family)
        found = self.samplers or Path(f"benchmarks/dial/samplers-{family.name}.json")
        if self.samplers and not found.exists():
            raise SystemExit(f"--samplers {found} does not exist; stepdial evaluate --samplers writes it")
        draw_curve(family, read_samplers(found) if found.exists() else None, self.out)
        print(f"wrote {self.out}")


class Report(Command):
    """Write what was measured of a family as tables into a Markdown file, each between <!-- KIND NAME --> and <!-- end -->.

    KIND is dial (every position), searched (each number of evaluations), rescues (what ending early gives), ablations (what
    stepdial ablate found) or training (how long each member took).
    """

    family: Path
    """Folder of the family."""
    file: Path = Path("README.md")
    """Markdown file with the markers."""

    def cli_cmd(self) -> None:
        """Write the table."""
        family = open_family(self.family)
        write_report(family, self.file)
        print(f"wrote what was measured of {family.name} into {self.file}")


class Families(Command):
    """List the families below a folder: members, sizes, dial positions, and whether every file is what was written."""

    folder: Path = Path("families")
    """Folder whose subfolders are families."""

    def cli_cmd(self) -> None:
        """List."""
        for folder in sorted(path for path in self.folder.glob("*") if path.is_dir()):
            try:
                family = open_family(folder)
            except FamilyError as error:
                print(f"{folder.name}: REFUSED: {error}")
                continue
            manifest = family.manifest
            size = sum((folder / member.weights.file).stat().st_size for member in manifest.members) / 1e6
            print(
                f"{family.name}: {manifest.resolution}x{manifest.resolution}, takes a {manifest.conditioning.kind}, {size:.1f} MB"
            )
            for member in manifest.members:
                print(
                    f"  {member.name:12} {member.parameters / 1e6:.2f} M parameters, {member.training.images:,} images seen"
                )
            measured = {position.steps for position in family.frontier.positions} if family.frontier else set()
            print(
                "  steps "
                + ", ".join(
                    f"{steps}" if steps in measured else f"{steps} (not measured)" for steps in family.positions
                )
            )


def choose_device(name: str) -> torch.device:
    """Return the torch device of a flag's value.  Exits with a sentence when it is unknown or not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError):
        raise SystemExit(
            f"device {name!r} cannot be used here; auto, cpu" + (", cuda" if torch.cuda.is_available() else "")
        ) from None


def integers(text: str, flag: str) -> list[int]:
    """Return the positive integers of "1,2,4", rising, without repeats.  Exits with a sentence for anything else."""
    try:
        values = sorted({int(part) for part in text.split(",")})
    except ValueError:
        values = []
    if not values or values[0] < 1 or values[-1] > 1024:
        raise SystemExit(f"--{flag} must be whole numbers from 1 to 1024 separated by commas, got {text!r}")
    return values


def words(text: str, known: tuple[W, ...], flag: str) -> tuple[W, ...]:
    """Return those of the known words that "a,b" names.  Exits with a sentence for anything else."""
    asked = {part.strip() for part in text.split(",")}
    if not asked <= set(known):
        raise SystemExit(f"--{flag} must be of {', '.join(known)}, separated by commas, got {text!r}")
    return tuple(word for word in known if word in asked)


def data_of(family: Family, name: str | None) -> DataSet:
    """Open the data a family was trained on, or the data named.  Exits with a sentence when it does not fit the family."""
    manifest = family.manifest
    wanted = name or manifest.members[0].training.data
    try:
        data = open_data(wanted, manifest.resolution)
    except DataError as error:
        raise SystemExit(f"{error}; name it with --data") from None
    if (data.resolution, data.channels, data.conditioning) != (
        manifest.resolution,
        manifest.channels,
        manifest.conditioning,
    ):
        raise SystemExit(f"data {wanted!r} does not have the images or the conditioning of family {family.name!r}")
    return data
