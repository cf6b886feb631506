"""The arms of an ablation: short distillations that differ from a baseline in one thing each."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from diffusion.family import Family
from training.run import Loss, Run
from training.student import distillation, new_student_run, new_whole_run, recorded
from training.student_settings import StudentSettings


@dataclass(frozen=True)
class Arm:
    """One thing that is changed."""

    name: str
    about: str
    """What it is, in words for a table."""
    change: Callable[[StudentSettings], dict[str, Any]] = lambda baseline: {}
    """The settings that differ, from the baseline's."""
    whole: Literal["one", "all"] | None = None
    """One network for all step counts, shown as many images in all as one separate student, or as all of them together."""

    def settings(self, baseline: StudentSettings) -> StudentSettings:
        """Return the arm's settings."""
        return StudentSettings.model_validate(baseline.model_dump() | self.change(baseline))

    def is_baseline(self, baseline: StudentSettings, steps: int) -> bool:
        """Tell whether a student of so many steps is trained just as the baseline is: the recipe says the same."""
        return not self.whole and _trained_by(self.settings(baseline), steps) == _trained_by(baseline, steps)


def _trained_by(settings: StudentSettings, steps: int) -> dict[str, Any]:
    """Return everything that training a student of so many steps depends on."""
    said_by_objective = {"recipe", "method", "guidance", "teacher_rule", "x_var", "eta"}
    said_by_objective |= {
        "anneal",
        "teacher_steps",
        "distance",
        "huber_epsilon",
        "poolings",
        "weights",
        "guidance_range",
        "guidance_interval",
    }
    return settings.model_dump(exclude=said_by_objective) | {"objective": settings.objective(steps)}


def _with(**changes: Any) -> Callable[[StudentSettings], dict[str, Any]]:
    return lambda baseline: changes


def _around(baseline: StudentSettings) -> tuple[float, float]:
    """A range of guidance with the baseline's in its middle."""
    return 0.0, 2 * baseline.guidance or 1.0


BASELINE = Arm("baseline", "a separate student of each step count, by the recipe")
ARMS = (
    BASELINE,
    Arm("unguided", "no guidance baked in", _with(guidance=0.0)),
    Arm("ct", "trained on data alone (and so unguided)", _with(method="ct")),
    Arm("pd", "progressive distillation: two steps of the student of twice as many become one", _with(method="pd")),
    Arm("ddim", "the teacher steps by DDIM", _with(teacher_rule="ddim")),
    Arm("addim-analytic", "aDDIM's variance is 0.1 / (2 + SNR)", _with(x_var="analytic")),
    Arm("constant", "as many teacher steps from the start as at the end", _with(anneal=False)),
    Arm("v-mean-huber", "pseudo-Huber of v", _with(distance="v_mean_huber")),
    Arm("snr1-x-huber", "(SNR + 1) times the pseudo-Huber of x, as printed", _with(distance="snr1_x_huber")),
    Arm("v-mean-squared", "the squared v-loss", _with(distance="v_mean_squared")),
    Arm("from-nothing", "new weights to start from, not the teacher's", _with(start="none")),
    Arm("tract", "the student's running average says what it should say nearer to the data", _with(method="tract")),
    Arm("ect", "Easy Consistency Tuning's schedule, on data alone (and so unguided)", _with(method="ect")),
    Arm(
        "told",
        "guidance drawn from a range, of which the network is told",
        lambda baseline: {"guidance_range": _around(baseline)},
    ),
    Arm("guided-amid", "guidance at times from 1/4 to 3/4 alone", _with(guidance_interval=(0.25, 0.75))),
    Arm("multiscale", "differences compared at half the resolution too", _with(poolings=1)),
    Arm("eta-0.25", "a quarter of the variance in aDDIM", _with(eta=0.25)),
    Arm("eta-0.5", "half of the variance in aDDIM", _with(eta=0.5)),
    Arm("eta-1", "all of the variance in aDDIM", _with(eta=1.0)),
    Arm("huber-1e-4", "epsilon 1e-4 in the distance", _with(huber_epsilon=1e-4)),
    Arm("huber-1e-2", "epsilon 1e-2 in the distance", _with(huber_epsilon=1e-2)),
    Arm("lr-half", "half the learning rate", lambda baseline: {"lr": baseline.lr / 2}),
    Arm("lr-double", "twice the learning rate", lambda baseline: {"lr": baseline.lr * 2}),
    Arm("ema-0", "the last weights, not their average", _with(ema=0.0)),
    Arm("ema-0.95", "an average over about 20 iterations", _with(ema=0.95)),
    Arm("whole-one", "one network for all counts, the images of one student", whole="one"),
    Arm("whole-all", "one network for all counts, the images of all students", whole="all"),
)
"""Every arm, in the order of the table."""
_SINGLE = tuple(arm.name for arm in ARMS if not arm.whole)
SETS = {
    "paper": _SINGLE[: _SINGLE.index("from-nothing") + 1],
    "all": _SINGLE,
    "whole": tuple(arm.name for arm in ARMS if arm.whole),
}
"""Groups of arms by name: the choices of the paper's method, every arm of separate students, and one network against them."""


def chosen(names: Iterable[str]) -> tuple[Arm, ...]:
    """Return the arms and groups of arms named, in the order of the table; always the baseline too."""
    wanted = {BASELINE.name} | {name for asked in names for name in SETS.get(asked, (asked,))}
    return tuple(arm for arm in ARMS if arm.name in wanted)


@dataclass(frozen=True)
class Trial:
    """One network to train for an arm."""

    arm: Arm
    counts: tuple[int, ...]
    """Its step counts: one, or, of an arm of one network for all, all of them."""
    settings: StudentSettings
    after: "Trial | None" = None
    """The one that has to be trained before, because this one is taught by it."""

    @property
    def name(self) -> str:
        """A folder name: "ct-4", "whole-all-1-2-4", "pd-4-of-8"."""
        taught = ["of", str(self.after.counts[0])] if self.after else []
        return "-".join([self.arm.name, *map(str, self.counts), *taught])

    @property
    def member(self) -> str:
        """The network's name in a family."""
        return "whole" if self.arm.whole else f"student-{self.counts[0]}"

    @property
    def told(self) -> int | tuple[int, ...]:
        """What training is told: the one step count, or several for one network."""
        return self.counts if self.arm.whole else self.counts[0]

    @property
    def images(self) -> int:
        """Images that training shows."""
        return self.settings.iterations * self.settings.batch

    def run(self, family: Family, folder: Path, device: torch.device) -> Run:
        """Start its training, at iteration 0."""
        if self.arm.whole:
            return new_whole_run(self.settings, self.counts, family, folder, device)
        return new_student_run(self.settings, self.counts[0], family, folder, device)

    def loss(self, family: Family, device: torch.device, run: Run) -> Loss:
        """Return what its run is fitted to."""
        return distillation(self.settings, self.told, family, device, run)

    def recorded(self, family: Family) -> dict[str, Any]:
        """Return the settings that its run records."""
        return recorded(self.settings, self.told, family)


def trials(arms: Iterable[Arm], baseline: StudentSettings, counts: tuple[int, ...]) -> list[Trial]:
    """Return what to train: by step count each arm that is not trained as the baseline is there, then what is more than that.

    That is the arms whose students teach each other, from many steps to few, and the networks for all counts.
    """
    arms = tuple(arms)
    halving = [arm for arm in arms if arm.settings(baseline).method == "pd" and not arm.whole]
    separate = [
        Trial(arm, (steps,), arm.settings(baseline))
        for steps in counts
        for arm in arms
        if not (arm.whole or arm in halving) and (arm == BASELINE or not arm.is_baseline(baseline, steps))
    ]
    chains = [trial for arm in halving for trial in _chain(arm, baseline, counts)]
    return separate + chains + [Trial(arm, counts, _for_all(arm, baseline, counts)) for arm in arms if arm.whole]


def _chain(arm: Arm, baseline: StudentSettings, counts: tuple[int, ...]) -> list[Trial]:
    """Return the students of an arm from many steps to few, each after the one of twice as many where that is asked for too."""
    made: dict[int, Trial] = {}
    for steps in sorted(counts, reverse=True):
        made[steps] = Trial(arm, (steps,), arm.settings(baseline), made.get(2 * steps))
    return list(made.values())


def _for_all(arm: Arm, baseline: StudentSettings, counts: tuple[int, ...]) -> StudentSettings:
    """Return the settings of one network for all counts: a batch that they share, and the images it may see."""
    images = baseline.iterations * baseline.batch * (len(counts) if arm.whole == "all" else 1)
    parts = sum(map(baseline.weight, counts))
    batch = -(-baseline.batch // parts) * parts
    changed = {"batch": batch, "iterations": max(1, round(images / batch))}
    return StudentSettings.model_validate(arm.settings(baseline).model_dump() | changed)
