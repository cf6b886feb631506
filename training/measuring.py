"""`stepdial evaluate`, `report`, `curve`: what measures a family and tells of it."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from diffusion import provenance
from diffusion.family import Family, open_family
from diffusion.manifest import TEACHER_STEPS
from training.command import Command, choose_device, data_of, integers, words
from training.composition import students_of
from training.confirmation import search_dial
from training.curve import draw_curve, draw_samplers, student_curves
from training.evaluate import SOURCES, evaluate, time_again, ways
from training.extractors import clip, dinov2, inception
from training.failures import CommandError
from training.metrics import measure_metrics
from training.report import write_report
from training.rescues import measure_rescues
from training.samplers import GRIDS, measure_samplers, read_samplers
from training.scores import Scorer
from training.yardstick import REFERENCE_IMAGES, Evaluation, Yardstick

USUAL_POSITIONS = (1, 2, 4, 8, 16, TEACHER_STEPS[0])
"""What is measured of a family when nobody asks for other positions, if it is offered."""


class Evaluate(Command):
    """Measure what dial positions of a family give and cost, and write that into the family as its frontier."""

    family: Path
    """Folder of the family."""
    positions: str | None = None
    """Dial positions to measure, separated by commas; what was measured of others is kept. By default those of 1, 2, 4, 8, 16
    and 32 that the family offers."""
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
    search_members: str | None = None
    """Members that plans are composed of, separated by commas: fewer make a search faster. By default all students."""
    search_samples: int = Field(default=1000, ge=80)
    """Images of each plan in the search."""
    search_limit: int = Field(default=16, ge=1, le=64)
    """Most evaluations of a plan, for --search and --rescues."""
    search_evaluations: int = Field(default=3000, ge=1)
    """Network evaluations of each image that the search may take; the beam is as wide as they allow, at least 1."""
    search_finalists: int = Field(default=3, ge=1)
    """Plans of each number of evaluations that are confirmed, beside the students' own."""
    rescues: bool = False
    """Instead, or then: measure what images give that leave a measured position early and end in fewer hops."""
    samplers: bool = False
    """Instead, or then: measure the teacher under every sampling rule, on every grid of times, guided and unguided."""
    sampler_evaluations: str = "4,8,16,32,64"
    """Network evaluations of an image, for --samplers, separated by commas; heun takes an odd number of them."""
    sampler_grids: str = ",".join(GRIDS)
    """Grids of times for --samplers: cosine (equal steps of t), karras (those of Karras et al. 2022)."""
    unguided: bool = False
    """With --samplers: leave the guided half out."""
    metrics: bool = False
    """Instead, or then: measure distance, precision, recall, density and coverage of the positions by the judge and by every
    network given with --inception and --dinov2, and the CLIP score by --clip."""
    inception: Path | None = None
    """Inception's weights as torch-fidelity publishes them, a file: FID at 50,000 samples. Asks for --metrics."""
    dinov2: Path | None = None
    """A folder with DINOv2 as transformers saves it: FD-DINOv2. Asks for --metrics."""
    clip: Path | None = None
    """A folder with CLIP, its processor and its tokenizer as transformers saves them, for prompts. Asks for --metrics."""
    statistics: Path = Path("runs/statistics")
    """Folder for the statistics of real images by each network of --metrics; those that are there must fit, and are used."""
    reference_images: int = Field(default=REFERENCE_IMAGES, ge=80)
    """Real images behind those statistics, of a set that is endless or larger than 50,000; of a smaller one it is all."""
    results: Path = Path("benchmarks/dial")
    """Folder for the result files of --search, --samplers and --metrics."""
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
        if self.search or self.rescues or self.samplers or self._asks_metrics:
            self._beyond(family, evaluation)
        else:
            self._positions(family, evaluation)

    def _beyond(self, family: Family, evaluation: Evaluation) -> None:
        """Search, rescues, samplers, metrics: what goes beyond the family's own positions."""
        yardstick = Yardstick(family, data_of(family, self.data), evaluation.device)
        scorer = Scorer(family, yardstick, evaluation)
        if self.search:
            names = tuple(dict.fromkeys(student.member for student in students_of(family.manifest)))
            search_dial(
                scorer,
                self.results / f"search-{family.name}.json",
                members=words(self.search_members, names, "search-members") if self.search_members else names,
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
            measure_samplers(
                scorer,
                floor,
                self.results / f"samplers-{family.name}.json",
                evaluations=tuple(integers(self.sampler_evaluations, "sampler-evaluations")),
                grids=words(self.sampler_grids, GRIDS, "sampler-grids"),
                guided=not self.unguided,
            )
        scorer.forget()
        if self._asks_metrics:
            self._metrics(open_family(self.family), yardstick, evaluation)

    @property
    def _asks_metrics(self) -> bool:
        return self.metrics or any((self.inception, self.dinov2, self.clip))

    def _metrics(self, family: Family, yardstick: Yardstick, evaluation: Evaluation) -> None:
        """The positions asked for, by every feature network given."""
        device = evaluation.device
        extractors = [inception(self.inception, device)] if self.inception else []
        extractors += [dinov2(self.dinov2, device)] if self.dinov2 else []
        measure_metrics(
            family,
            yardstick,
            evaluation,
            ways(family, self.offered(family), words(self.sources, SOURCES, "sources")),
            self.results / f"metrics-{family.name}.json",
            extractors=extractors,
            prompt_judge=clip(self.clip, device) if self.clip else None,
            statistics=self.statistics,
            references=self.reference_images,
        )

    def offered(self, family: Family) -> list[int]:
        """The positions asked for, all of which the family must have."""
        if self.positions is None:
            return [steps for steps in USUAL_POSITIONS if steps in family.positions]
        positions = integers(self.positions, "positions")
        unknown = [steps for steps in positions if steps not in family.positions]
        if unknown:
            raise CommandError(
                f"positions {', '.join(map(str, unknown))} are not offered; "
                f"family {family.name!r} has {', '.join(map(str, family.positions))}"
            )
        return positions

    def _positions(self, family: Family, evaluation: Evaluation) -> None:
        """The positions asked for: quality and speed, or speed alone."""
        positions = self.offered(family)
        sources = words(self.sources, SOURCES, "sources")
        if not self.only_speed:
            evaluate(family, data_of(family, self.data), positions, evaluation, sources=sources)
            return
        measured = {plan.steps for plan in ways(family, positions, sources) if family.measured(plan)}
        if not measured.issuperset(positions):
            raise CommandError(
                f"positions {sorted(set(positions) - measured)} are not in the frontier; measure them first"
            )
        time_again(family, positions, evaluation, sources=sources)


class Report(Command):
    """Write what was measured of a family as tables into a Markdown file, each between <!-- KIND NAME --> and <!-- end -->.

    KIND is dial (every position), searched (each number of evaluations), rescues (what ending early gives), ablations (what
    stepdial ablate found), samplers (the teacher under every rule), metrics (every feature network's word), paper
    (the paper's tables) or training (how long each member took).
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


class Curve(Command):
    """Draw quality against network evaluations: students, searched plans and the teacher's samplers in one picture."""

    family: Path
    """Folder of the family."""
    samplers: Path | None = None
    """Result file of stepdial evaluate --samplers; by default benchmarks/dial/samplers-NAME.json, if there is one."""
    figure: Literal["dial", "samplers"] = "dial"
    """dial: students, searched plans and the teacher. samplers: the teacher by every rule, a panel for each grid of times, as the
    paper's Figures 3 and 5, and beside it the students that were measured on as many images."""
    out: Path = Path("docs/curve.png")
    """PNG file to write."""

    def cli_cmd(self) -> None:
        """Draw."""
        family = open_family(self.family)
        found = self.samplers or Path(f"benchmarks/dial/samplers-{family.name}.json")
        if self.samplers and not found.exists():
            raise CommandError(f"--samplers {found} does not exist; stepdial evaluate --samplers writes it")
        record = read_samplers(found) if found.exists() else None
        if self.figure == "dial":
            draw_curve(family, record, self.out)
        elif record:
            draw_samplers(record, student_curves(family, record), self.out)
        else:
            raise CommandError(f"{found} does not exist; stepdial evaluate --samplers writes it")
        print(f"wrote {self.out}")
