"""A family trained in seconds, and Hypothesis without a deadline and with the same examples every time."""

import pytest
import torch
from hypothesis import settings
from torch import Tensor

from diffusion.family import Family
from training.datasets import FiniteSet, digits
from training.features import train_judge
from training.members import add_member, new_manifest, training_record
from training.teacher import TeacherSettings, new_teacher_run, teacher_loss
from training.trainer import fit

settings.register_profile("steady", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("steady")

TEACHER = TeacherSettings(preset="debug", iterations=12, batch=16, precision="fp32", warmup=2)


@pytest.fixture(scope="session")
def digit_set() -> FiniteSet:
    """The digits."""
    return digits()


@pytest.fixture(scope="session")
def digits_judge(digit_set: FiniteSet) -> dict[str, Tensor]:
    """The weights of a judge of the digits after sixty iterations."""
    return dict(train_judge(digit_set, iterations=60).state_dict())


@pytest.fixture(scope="session")
def digits_family(tmp_path_factory: pytest.TempPathFactory, digit_set: FiniteSet) -> Family:
    """A family of a digits teacher of twelve iterations.  Not to be changed: copy its folder."""
    folder = tmp_path_factory.mktemp("trained")
    run = new_teacher_run(TEACHER, digit_set, folder / "run", torch.device("cpu"))
    fit(
        run,
        digit_set,
        lambda network, x, condition, _, generator: teacher_loss(TEACHER, network, x, condition, generator),
    )
    empty = new_manifest("digits", digit_set, TEACHER.noise_schedule(), guidance=1.0)
    record = training_record(run, digit_set, "stepdial train")
    return add_member(
        folder / "digits", empty, run, name="teacher", steps=None, guidance=0.0, record=record, data=digit_set
    )
