"""`stepdial ablate`: what compares ways to make students."""

from pathlib import Path

from pydantic import Field

from diffusion import provenance
from diffusion.family import open_family
from diffusion.plans import ALL_TIMES
from training.ablations import RESULTS, ablate
from training.arms import ARMS, SETS, chosen, trials
from training.command import Command, choose_device, data_of, integers, words
from training.failures import CommandError
from training.student_settings import Interval, StudentSettings, check_asked
from training.yardstick import Evaluation


class Ablate(StudentSettings, Command):  # type: ignore[misc]
    """Train short distillations that differ from a baseline in one thing each, and measure every one of them.

    The other flags are the baseline. Nothing is written into the family. What is measured already is not repeated, and the same
    command goes on where it was.
    """

    family: Path
    """Folder of the family whose teacher is distilled."""
    arms: str = "paper"
    """What to change, separated by commas: names of docs/ablations.md, or of groups of them: paper (the choices of the paper's
    method), all (every arm of separate students), whole (one network for all step counts). The baseline is always there."""
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
    guidance_interval: Interval | None = None  # type: ignore[assignment]
    """Times t at which that guidance acts, "0.25,0.75": 1 is noise, 0 the image; by default the teacher's own."""
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
            raise CommandError(f"family {family.name!r} has no teacher to distil")
        known = (*SETS, *(arm.name for arm in ARMS))
        arms, counts = chosen(words(self.arms, known, "arms")), tuple(integers(self.steps, "steps"))
        asked = self.model_dump(include=set(StudentSettings.model_fields))
        given = {"guidance": self.guidance or 0.0, "guidance_interval": self.guidance_interval or ALL_TIMES}
        as_given = StudentSettings.model_validate(asked | given)
        check_asked(as_given, counts, whole=any(arm.whole for arm in arms))
        guidance = family.manifest.guidance if self.guidance is None else self.guidance
        within = self.guidance_interval or family.manifest.teacher.guidance_interval
        baseline = StudentSettings.model_validate(asked | {"guidance": guidance, "guidance_interval": within})
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
        print(f"wrote {out}")
        if self.results == RESULTS:
            print(f"the table: stepdial report --family {self.family} --file docs/ablations.md")
