"""The dial searched, on a tiny family: which plans there are, what they draw, what is found, and what a rescue is worth."""

import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

import stepdial
from diffusion.family import Family, open_family, write_tensors
from diffusion.plans import Plan, student_plan
from diffusion.sampler import sample
from training.composition import Student, compose, composition_of, compositions, students_of, words
from training.evaluate import Evaluation
from training.features import JUDGE, train_judge
from training.scores import Scorer, evaluations
from training.search import SEED, Breadth, Search, breadth
from training.yardstick import Yardstick

FIVE = tuple(Student(count, False, f"student-{count}") for count in (1, 2, 4, 8, 16))


@pytest.fixture(scope="session")
def trained(digits_family: Family, digit_set, tmp_path_factory: pytest.TempPathFactory) -> Family:
    """The digits family with students of 1, 2 and 4 steps, one network for 1 and 2, and a judge.  Not to be changed."""
    folder = tmp_path_factory.mktemp("searched")
    shutil.copytree(digits_family.folder, folder / "digits")
    settings = ["--family", folder / "digits", "--runs", folder / "runs", "--batch", 8, "--precision", "fp32"]
    with pytest.MonkeyPatch.context() as patch:
        for asked in (["--steps", "1,2,4", "--lr", "2e-3"], ["--steps", "1,2", "--whole", "--lr", "1e-3"]):
            command = ["stepdial", "distill", *settings, "--iterations", 3, "--device", "cpu", *asked]
            patch.setattr(sys, "argv", list(map(str, command)))
            assert stepdial.main() == 0
    write_tensors(folder / "digits", JUDGE, dict(train_judge(digit_set, iterations=40).state_dict()))
    return open_family(folder / "digits")


def how(folder: Path, samples: int = 80, seeds: tuple[int, ...] = (1, 2)) -> Evaluation:
    return Evaluation(samples, seeds, "fp32", torch.device("cpu"), "stepdial evaluate", "a", folder)


@pytest.fixture
def scorer(trained: Family, digit_set, tmp_path: Path) -> Scorer:
    return Scorer(trained, Yardstick(trained, digit_set), how(tmp_path))


def ends(counts: tuple[int, ...], t: Fraction = Fraction(1)) -> Iterator[tuple[int, ...]]:
    """Every composed plan, by walking down sixteenths: an independent reference."""
    for count in counts:
        s = max(Fraction(i, 16) for i in range(16) if Fraction(i, 16) < t and (Fraction(i, 16) * count).denominator == 1)
        yield from [(count,)] if s == 0 else ((count, *rest) for rest in ends(counts, s))


def test_there_are_five_plans_of_two_evaluations_and_twenty_three_of_three():
    known = {n: {tuple(s.segments for s in c) for c in compositions(FIVE, n)} for n in (1, 2, 3, 4, 5)}
    assert [len(known[n]) for n in (1, 2, 3)] == [1, 5, 23]
    walked = Counter(len(plan) for plan in product_of_walks())
    assert all(len(known[n]) == walked[n] for n in known)


def product_of_walks() -> list[tuple[int, ...]]:
    """Plans of up to five evaluations, found by trying every sequence of students."""
    found = []
    for n in range(1, 6):
        for counts in product((1, 2, 4, 8, 16), repeat=n):
            t = 16
            for place, count in enumerate(counts):
                cell = 16 // count
                t = (t - 1) // cell * cell
                if t == 0:
                    if place == n - 1:
                        found.append(counts)
                    break
    return found
