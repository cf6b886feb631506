"""What defines the training of a set of students, and what of it fits together."""

import math
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from diffusion.condition import GUIDANCE_PARTS
from diffusion.manifest import Member
from diffusion.plans import ALL_TIMES
from training.failures import TrainingError
from training.objective import DISTILLING, Objective
from training.schedule import Schedule
from training.share import nearest_multiples

SHORT_ANNEAL = {1: (4, 48), 2: (8, 64), 4: (16, 96), 8: (16, 128), 16: (32, 128)}
"""Teacher steps at the start and at the end of a short run's annealing, by student steps (docs/training.md)."""
MANY = 1024
"""Segments that stand for infinitely many: times are drawn on a grid so fine, each segment one teacher step."""


def _interval(value: Any) -> Any:
    try:
        low, high = map(float, value)
    except (TypeError, ValueError):
        raise ValueError("must be two times, like 0.25,0.75") from None
    if not 0 <= low < high <= 1:
        raise ValueError("must rise within 0 to 1, like 0.25,0.75")
    return value


Interval = Annotated[tuple[float, float], BeforeValidator(_interval)]
"""Times between which guidance acts, both included: 1 is noise, 0 the image."""


class StudentSettings(Schedule):
    """What defines the training of a set of students, besides their teacher and data."""

    recipe: Literal["short", "paper"] = "short"
    """short: annealing and distance for runs of some thousand iterations, by step count. paper: appendix A.1 for every
    step count, 64 to 1280 teacher steps over 100,000 iterations and a Huber epsilon of 1e-4."""
    method: Literal["cd", "ct", "ect", "tract", "pd"] = "cd"
    """cd distils the teacher, tract does so with an average of the student as its own second teacher, pd (progressive
    distillation) makes two steps of what it distils into one; ct and ect (Easy Consistency Tuning) train on data alone."""
    taught_by: str | None = None
    """Member that is distilled. By default the teacher, or with pd the student of twice as many steps where there is one.
    A student teaches with its own steps and its own guidance."""
    start: str = "teacher"
    """Whose weights to start from: "teacher" for those of what is distilled, a member of the family, or "none" for new ones."""
    guidance: float = Field(default=0.0, ge=0)
    """Guidance w baked into the students (cd, tract, pd); with a range, the one that they draw with unless told another."""
    guidance_range: tuple[float, float] | None = None
    """Range of guidance that the students learn, "0,3": each image's w is drawn from it, and the network is told it."""
    guidance_interval: Interval = ALL_TIMES
    """Times t at which the teacher's guidance acts, "0.25,0.75": 1 is noise, 0 the image."""
    teacher_rule: Literal["addim", "ddim"] = "addim"
    """How the teacher steps (cd, tract, pd); a student that teaches steps by ddim."""
    x_var: Literal["sample", "analytic"] = "sample"
    """aDDIM's variance, measured on each sample or 0.1 / (2 + SNR)."""
    eta: float = Field(default=0.75, ge=0, le=1)
    """Fraction of the measured variance that aDDIM adds."""
    anneal: bool = True
    """Let the teacher's steps grow over the run as the recipe says; if not, they are from the start what they end at."""
    teacher_steps: str = ""
    """Teacher steps from the start to the end of annealing instead of the recipe's: "64-1280" for every step count,
    "1:4-48,2:8-64" for some."""
    distance: Literal["v_mean_huber", "snr1_x_huber", "v_mean_squared"] | None = None
    """The distance (training/distance.py); by default the recipe's."""
    huber_epsilon: float | None = Field(default=None, gt=0)
    """Epsilon of the pseudo-Huber distances; by default the recipe's."""
    poolings: int = Field(default=0, ge=0, le=8)
    """Multiscale loss: how often differences are compared again at half the resolution; the paper's 128x128 models: 1."""
    weights: str = ""
    """With one network for the whole dial: parts of a batch by step count, "1:2,2:2"; those not named have one part each."""
    drop_slot: float = Field(default=0.05, ge=0, le=1)
    """Fraction at which each conditioning slot is hidden, so that a prompt may leave a word open."""

    @field_validator("weights", "teacher_steps")
    @classmethod
    def _is_a_list(cls, text: str, info: Any) -> str:
        entry, example = {
            "weights": (r"\d+:[1-9]\d*", "1:2,2:1"),
            "teacher_steps": (r"([1-9]\d*:)?[1-9]\d*-[1-9]\d*", "64-1280 or 1:4-48,2:8-64"),
        }[info.field_name]
        if text and not all(re.fullmatch(entry, part) for part in text.split(",")):
            raise ValueError(f"must be like {example}")
        return text

    @field_validator("teacher_steps")
    @classmethod
    def _rises(cls, text: str) -> str:
        for said in by_count(text).values():
            start, end = map(int, said.split("-"))
            if start > end:
                raise ValueError(f"must not fall, as {said} does; teacher steps stay or grow over a run")
        return text

    @field_validator("guidance_range", mode="before")
    @classmethod
    def _is_a_range(cls, value: Any) -> Any:
        try:
            low, high = (None, None) if value is None else map(float, value)
        except (TypeError, ValueError):
            raise ValueError("must be two numbers, like 0,3") from None
        if low is not None and high is not None and not 0 <= low < high < math.inf:
            raise ValueError("must rise from 0 or more, like 0,3")
        return value

    @property
    def interval_baked_in(self) -> tuple[float, float]:
        """Times at which the guidance that is learnt acts; all of them where there is none."""
        return self.guidance_interval if self.distils and (self.guidance or self.guidance_range) else ALL_TIMES

    @property
    def distils(self) -> bool:
        """Whether there is a teacher; else data alone teaches, which cannot be guided."""
        return self.method in DISTILLING

    @property
    def told(self) -> tuple[int, ...]:
        """What the trained network finds in the condition after the slots when nobody asks for another guidance."""
        return () if self.guidance_range is None else (round(GUIDANCE_PARTS * self.guidance),)

    def weight(self, steps: int) -> int:
        """Return how many parts of a batch are of this step count."""
        return int(by_count(self.weights).get(steps, "1"))

    def objective(self, steps: int, source: Member | None = None) -> Objective:
        """Return the objective of the student of `steps` steps; 0 is the limit of many, the teacher's own part.

        In that limit every segment is one teacher step, and the target is what the teacher says, its guidance included.
        source: the student that is distilled, where it is one; None for the teacher.
        """
        if steps == 0:
            many = {"teacher_steps_start": MANY, "teacher_steps_end": MANY, "weight": self.weight(0)}
            return Objective.model_validate(self.objective(MANY, source).model_dump() | many)
        common: dict[str, Any] = {"method": self.method, "student_steps": steps, "guidance": self.guidance}
        common |= {"teacher_rule": self.teacher_rule, "x_var": self.x_var, "eta": self.eta}
        common |= {"poolings": self.poolings, "weight": self.weight(steps)}
        common |= {"guidance_interval": self.interval_baked_in}
        if self.guidance_range:
            common |= {"guidance": 0.0, "guidance_range": self.guidance_range}
        common |= self._recipe(steps)
        if asked := self.teacher_steps_of(steps):
            common |= {"teacher_steps_start": asked[0], "teacher_steps_end": asked[1]}
        common |= {name: value for name in ("distance", "huber_epsilon") if (value := getattr(self, name))}
        # a path in few fixed steps has no finer one to anneal to
        if not self.anneal or source or self.method in ("tract", "pd"):
            common["anneal_iterations"] = 0
        if self.method == "pd":
            common |= {"teacher_steps_start": 2 * steps, "teacher_steps_end": 2 * steps}
        if source:
            assert source.steps is not None
            common |= {"teacher_steps_start": source.steps, "teacher_steps_end": source.steps, "teacher_rule": "ddim"}
            common |= {
                "guidance": 0.0,
                "guidance_interval": ALL_TIMES,
                "teacher_told": source.guidance_range is not None,
            }
        return Objective.model_validate(common)

    def _recipe(self, steps: int) -> dict[str, Any]:
        """What the recipe says of annealing and distance."""
        # Easy Consistency Tuning's own loss is the printed formula, (SNR + 1) outside of the norm
        ect = {"distance": "snr1_x_huber"} if self.method == "ect" else {}
        if self.recipe == "paper":
            return ect
        nearest = max((known for known in SHORT_ANNEAL if known <= steps), default=1)
        start, end = SHORT_ANNEAL[nearest]
        # one step learns nothing in a short run unless the noisy end weighs in fully; from two on Huber is better
        distance = "snr1_x_huber" if steps == 1 else "v_mean_huber"
        said: dict[str, Any] = {"teacher_steps_start": max(start, steps), "teacher_steps_end": max(end, 2 * steps)}
        said |= {"anneal_iterations": int(0.6 * self.iterations), "huber_epsilon": 1e-3, "distance": distance}
        # six halvings are about as many teacher steps as annealing ends at here
        return said | (ect | {"ect_stages": 6} if ect else {})

    def teacher_steps_of(self, steps: int) -> tuple[int, int] | None:
        """Return from and to how many teacher steps `teacher_steps` has for a student of so many steps, or None."""
        schedules = by_count(self.teacher_steps)
        asked = schedules.get(steps, schedules.get(None))
        if asked is None:
            return None
        start, end = map(int, asked.split("-"))
        return start, end


def by_count(text: str) -> dict[int | None, str]:
    """Return what "1:a,2:b,c" says by step count, under None what it says of all."""
    parts = [part.rpartition(":") for part in text.split(",") if part]
    return {int(count) if count else None: said for count, _, said in parts}


def check_asked(settings: StudentSettings, counts: Sequence[int], *, whole: bool = False) -> None:
    """Raise TrainingError for settings that the training of these step counts would not heed, naming flag and what is allowed.

    counts: 0 is the teacher's part.  whole: one network for all of them.
    """
    if settings.guidance and not settings.distils:
        raise TrainingError(
            f"--guidance {settings.guidance:g}: method {settings.method} trains on data alone, which has no guidance to bake in; "
            f"leave it out, or take {', '.join(DISTILLING)}"
        )
    if settings.guidance_interval != ALL_TIMES and not settings.distils:
        raise TrainingError(
            f"--guidance-interval: method {settings.method} trains on data alone, which has no guidance; leave it out"
        )
    if settings.teacher_steps and settings.method in ("pd", "ect"):
        own = "two steps of what it halves" if settings.method == "pd" else "stages of its own"
        raise TrainingError(
            f"--teacher-steps: method {settings.method} has {own}; leave it out, or take ct, cd or tract"
        )
    if settings.weights and not whole:
        raise TrainingError("--weights is for one network for the whole dial; give --whole too")
    _check_named("weights", settings.weights, counts)
    _check_named("teacher-steps", settings.teacher_steps, [count for count in counts if count])
    for count in filter(None, counts):
        for number in settings.teacher_steps_of(count) or ():
            _check_divides(count, number)


def _check_named(flag: str, text: str, counts: Sequence[int]) -> None:
    unknown = sorted(count for count in by_count(text) if count is not None and count not in counts)
    if unknown:
        raise TrainingError(
            f"--{flag} names the step counts {', '.join(map(str, unknown))}, which are not trained; "
            f"trained are {', '.join(map(str, counts))}"
        )


def _check_divides(count: int, teacher_steps: int) -> None:
    """Raise TrainingError unless the boundaries of so many segments are among so many teacher steps."""
    if teacher_steps % count:
        raise TrainingError(
            f"--teacher-steps: {teacher_steps} are no multiple of the student's {count} steps, so its segments would not end at "
            f"teacher steps; {nearest_multiples(teacher_steps, count)} would do"
        )


def check_whole(settings: StudentSettings) -> None:
    """Raise TrainingError where one network cannot learn several step counts by these settings."""
    if settings.method == "pd":
        raise TrainingError(
            "method pd halves the steps of one student after another; one network for all takes another"
        )


def check_guidance(settings: StudentSettings) -> None:
    """Raise TrainingError where a range of guidance cannot be learnt."""
    if settings.guidance_range is None:
        return
    low, high = settings.guidance_range
    if not settings.distils:
        raise TrainingError(f"method {settings.method} trains on data alone, which has no guidance to sample")
    if not low <= settings.guidance <= high:
        raise TrainingError(f"--guidance {settings.guidance:g} is outside of --guidance-range {low:g},{high:g}")
