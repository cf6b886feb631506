"""The dial searched, on a tiny family: which plans there are, what they draw, what is found, what ending early gives."""

import json
import math
import shutil
import sys
from collections import defaultdict
from dataclasses import replace
from fractions import Fraction
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import stepdial
from diffusion.family import Family, FamilyError, open_family
from diffusion.files import write_json, write_tensors
from diffusion.plans import Plan, student_plan, teacher_plan
from diffusion.sampler import sample
from training import scores as scores_file
from training.composition import (
    Composition,
    Landing,
    Student,
    combinable,
    compose,
    composition_of,
    compositions,
    shortest,
    students_of,
    words,
)
from training.confirmation import SearchRecord
from training.curve import frontier_curves, sampler_curves
from training.datasets import DataError, FiniteSet
from training.features import JUDGE
from training.frontier_tables import rescues_table, searched_table
from training.rescues import endings, useful
from training.result_tables import samplers_table
from training.samplers import measure_samplers, read_samplers
from training.scores import Quality, Scorer, evaluations
from training.search import SEED, Breadth, Search, breadth, label
from training.yardstick import Evaluation, Yardstick, measure

FIVE = tuple(Student(count, False, f"student-{count}") for count in (1, 2, 4, 8, 16))


@pytest.fixture(scope="session")
def searchable(
    digits_family: Family, digits_judge: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory
) -> Family:
    """The digits family with students of 1, 2 and 4 steps, one network for 1 and 2, and a judge.  Not to be changed."""
    folder = tmp_path_factory.mktemp("searchable")
    shutil.copytree(digits_family.folder, folder / "digits")
    settings = ["--family", folder / "digits", "--runs", folder / "runs", "--batch", 8, "--precision", "fp32"]
    with pytest.MonkeyPatch.context() as patch:
        for asked in (["--steps", "1,2,4", "--lr", "2e-3"], ["--steps", "1,2", "--whole", "--lr", "1e-3"]):
            command = ["stepdial", "distill", *settings, "--iterations", 3, "--warmup", 1, "--device", "cpu", *asked]
            patch.setattr(sys, "argv", list(map(str, command)))
            assert stepdial.main() == 0
    write_tensors(folder / "digits", JUDGE, digits_judge)
    return open_family(folder / "digits")


@pytest.fixture(scope="session")
def yardstick(searchable: Family, digit_set: FiniteSet) -> Yardstick:
    return Yardstick(searchable, digit_set)


@pytest.fixture
def scorer(searchable: Family, yardstick: Yardstick, tmp_path: Path) -> Scorer:
    evaluation = Evaluation(80, (1, 2), "fp32", torch.device("cpu"), "stepdial evaluate", "a", tmp_path)
    return Scorer(searchable, yardstick, evaluation)


def drawn(family: Family, plan: Plan, condition: torch.Tensor, seed: int, start: int = 0) -> torch.Tensor:
    """Images of a plan by the sampler that everything else is drawn by."""
    return sample(
        {name: family.network(name) for name in plan.members},
        plan,
        family.manifest.schedule,
        condition,
        seeds=[seed] * len(condition),
        indices=range(start, start + len(condition)),
        shape=family.manifest.shape,
    )


def walks(length: int) -> set[tuple[tuple[int, int], ...]]:
    """Segment counts and sixteenths landed at of every plan of so many hops, found by trying all sequences of both."""
    found = set()
    for counts in product((1, 2, 4, 8, 16), repeat=length):
        for inner in combinations(range(15, 0, -1), length - 1):
            times = (16, *inner, 0)
            # in units of the student's segments a hop begins on a boundary and ends at most one below
            hops = [(t * count / 16, s * count / 16) for count, t, s in zip(counts, times, times[1:], strict=False)]
            if all(t == round(t) and t - s <= 1 for t, s in hops):
                found.add(tuple(zip(counts, times[1:], strict=True)))
    return found


def test_there_are_five_plans_of_two_evaluations_and_twenty_three_of_three():
    assert [len(walks(length)) for length in (1, 2, 3)] == [1, 5, 23]
    for length in (1, 2, 3, 4):
        found = list(compositions(FIVE, length))
        told = {tuple((landing.student.segments, 16 * landing.s) for landing in one) for one in found}
        assert len(found) == len(set(found)) and told == walks(length)


def test_the_shortest_way_ends_on_the_finest_student_and_each_hop_is_of_who_knows_its_time():
    one, two, four, eight, sixteen = FIVE
    assert shortest(FIVE, Fraction(1)) == hops((one, 1), (sixteen, 0))
    assert shortest(FIVE, Fraction(1, 2)) == hops((two, 1), (sixteen, 0))
    assert shortest(FIVE, Fraction(7, 16)) == hops((sixteen, 6), (eight, 4), (four, 1), (sixteen, 0))
    assert shortest((one,), Fraction(1)) == hops((one, 0))


def hops(*told: tuple[Student, int]) -> Composition:
    """A composition by its students and the sixteenths where they land."""
    return tuple(Landing(student, Fraction(sixteenths, 16)) for student, sixteenths in told)


def test_a_composed_plan_of_one_student_is_that_students_own(searchable: Family):
    students = students_of(searchable.manifest)
    assert [student.label for student in students] == ["student-1", "whole:1", "student-2", "whole:2", "student-4"]
    for student in students:
        plan = compose(student.finish(Fraction(1)))
        assert plan == searchable.manifest.member(student.member).plan(student.segments)
        assert searchable.source(plan) == ("whole" if student.whole else "student")
    assert compose(Student(3, False, "three").finish(Fraction(1))) == student_plan("three", 3)


def test_a_boundary_belongs_to_the_segment_below_it_and_times_are_exact_quotients():
    one, three, four = (Student(count, False, f"student-{count}") for count in (1, 3, 4))
    thirds = Landing(three, Fraction(2, 3)), Landing(four, Fraction(1, 2)), *three.finish(Fraction(1, 2))
    assert [hop.s for hop in compose(thirds).hops] == [2 / 3, 1 / 2, 1 / 3, 0]
    assert four.knows(Fraction(1, 2)) and not four.knows(Fraction(1, 3)) and one.knows(Fraction(1))
    assert four.start(Fraction(1, 2)) == Fraction(1, 4) and four.start(Fraction(51, 100)) == Fraction(1, 2)


def test_a_plan_is_told_in_words_and_known_by_its_students():
    one, two, four, eight, sixteen = FIVE
    whole = Student(2, True, "whole")
    found = hops((four, 12), (four, 8), (whole, 0))
    assert words(compose(found), (*FIVE, whole)) == "4: 1→¾→½, then whole 2: ½→0"
    assert composition_of(compose(found), (*FIVE, whole)) == found and composition_of(compose(found), FIVE) is None
    assert (
        words(compose(hops(*((sixteen, n) for n in range(15, 7, -1)), (two, 0))), FIVE)
        == "16: 1→…→½ (8 hops), then 2: ½→0"
    )
    assert (
        words(compose(hops((sixteen, 15), (four, 12), (one, 0))), FIVE) == "16: 1→15/16, then 4: 15/16→¾, then 1: ¾→0"
    )
    early = hops((one, 8), (two, 2), (eight, 0))
    assert (
        words(compose(early), FIVE) == "1: 1→½, then 2: ½→⅛, then 8: ⅛→0"
        and composition_of(compose(early), FIVE) == early
    )
    assert label(early) == "student-1>1/2 student-2>1/8 student-8" and label(found) == "student-4 student-4 whole:2"
    beyond = compose(
        hops((four, 8), (two, 0))
    )  # a hop past the start of its segment is nothing a student was trained for
    assert composition_of(beyond, FIVE) is None
    assert composition_of(teacher_plan("student-4", 4, rule="ddim"), FIVE) is None  # clipped, so another plan
    assert words(teacher_plan("teacher", 32), FIVE) == "teacher, 32 hops"


def test_plans_that_share_hops_draw_the_same_images_as_each_alone(scorer: Scorer, digit_set: FiniteSet):
    students = students_of(scorer.family.manifest)
    found = [list(compositions(students, n)) for n in (1, 2, 3)]
    plans = [compose(composition) for composition in (*found[0], *found[1], *found[2][::6])]
    together = scorer.score(plans, digit_set, 80, 5, guidance=None, label="together")
    _, condition = digit_set.batch(0, 80, seed=5)
    for plan, scores in zip(plans, together, strict=True):
        batches = [drawn(scorer.family, plan, part, 5, 64 * at) for at, part in enumerate(condition.split(64))]
        images = torch.cat(batches)
        assert np.array_equal(scores.features, scorer.yardstick.features(images))
        assert np.array_equal(scores.right, scorer.yardstick.right(images, condition))
    assert evaluations(plans) < sum(plan.steps for plan in plans)


def test_an_interrupted_evaluation_draws_only_what_is_missing_and_says_the_same(
    scorer: Scorer, digit_set: FiniteSet, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(scores_file, "CHUNK", 30)
    plans, folder = [student_plan("student-2", 2)], scorer.evaluation.folder
    first = scorer.score(plans, digit_set, 80, 5, guidance=None, label="first")[0]
    files = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert len(files) == 3
    lost = next(iter(files))
    lost.unlink()
    again = Scorer(scorer.family, scorer.yardstick, scorer.evaluation)
    second = again.score(plans, digit_set, 80, 5, guidance=None, label="second")[0]
    assert np.array_equal(first.features, second.features) and np.array_equal(first.right, second.right)
    now = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert {file for file in files if files[file] == now[file]} == set(files) - {lost}
    other = scorer.score(plans, digit_set, 80, 6, guidance=None, label="other")[0]
    assert not np.array_equal(first.features, other.features)
    again.forget()
    assert not lost.exists() and len(list(folder.iterdir())) == 3  # those of the other seed


def test_a_search_of_few_evaluations_scores_every_plan_as_an_evaluation_does(scorer: Scorer, digit_set: FiniteSet):
    students = combinable(scorer.family.manifest)
    search = Search(scorer, Breadth(students, 2, 1), 80)
    followed = Counted(scorer)
    found = search.run()
    assert followed.evaluations == 80 * search.breadth.cost().evaluations
    every = [composition for n in (1, 2) for composition in compositions(students, n)]
    assert set(found) == set(every)
    alone = scorer.score([compose(composition) for composition in every], digit_set, 80, SEED, guidance=None, label="")
    for composition, scores in zip(every, alone, strict=True):
        assert found[composition] == scorer.yardstick.distance(scores.features)


class Counted:
    """Counts the network evaluations of a scorer."""

    def __init__(self, scorer: Scorer):
        self.evaluations, inner = 0, scorer.follow

        def follow(hops, z, *rest, **options):
            self.evaluations += len(hops) * len(z)
            return inner(hops, z, *rest, **options)

        scorer.follow = follow  # type: ignore[method-assign]


def test_a_search_that_was_killed_goes_on_and_finds_the_same(scorer: Scorer):
    students = combinable(scorer.family.manifest)[:4]
    whole = Search(scorer, Breadth(students, 5, 1), 80)
    expected = dict(whole.run())
    log = next(scorer.evaluation.folder.glob("search-*.jsonl"))
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[: len(lines) // 2]) + lines[-1][: len(lines[-1]) // 2])  # killed while writing a line
    followed = Counted(scorer)
    resumed = Search(scorer, Breadth(students, 5, 1), 80)
    assert resumed.run() == expected
    assert 0 < followed.evaluations < 0.75 * 80 * whole.breadth.cost().evaluations
    resumed.forget()
    assert not log.exists()


def test_a_beam_keeps_the_best_prefixes_of_equal_time_and_evaluations(scorer: Scorer):
    students = combinable(scorer.family.manifest)
    breadth = Breadth(students, 4, 1)
    found = Search(scorer, breadth, 80).run()
    assert 0 < sum(len(composition) == 4 for composition in found) < len(list(compositions(students, 4)))
    for taken in (2, 3):
        worth = defaultdict(list)  # of each time, what prefixes are worth, and whether they were gone on with
        for prefix in {composition[:taken] for composition in found if len(composition) > taken}:
            finish = breadth.finish(taken, prefix[-1].s)
            others = [c for c in found if c[:taken] == prefix and len(c) > taken and c[taken:] != finish]
            worth[prefix[-1].s].append((found.get((*prefix, *finish), math.inf), bool(others)))
        for rivals in worth.values():
            assert min(rivals)[1] or not any(on for _, on in rivals)
            assert sum(on for _, on in rivals) <= 1


def test_the_beam_is_as_wide_as_the_cost_allows():
    narrow, unbounded = Breadth(FIVE, 8, 1), Breadth(FIVE, 8, 10**6)
    assert breadth(FIVE, 8, evaluations=1, held=10**9) == narrow
    assert breadth(FIVE, 8, evaluations=10**6, held=10**9).cost().evaluations == unbounded.cost().evaluations
    bound = 2 * narrow.cost().evaluations
    found = breadth(FIVE, 8, evaluations=bound, held=10**9)
    assert found.width > 1 and found.cost().evaluations <= bound
    assert Breadth(FIVE, 8, found.width + 1).cost().evaluations > bound
    assert breadth(FIVE, 8, evaluations=10**9, held=narrow.cost().held).width == 1


def test_students_of_different_guidance_are_not_combined(searchable: Family):
    members = [
        member.model_copy(update={"guidance": 3.0}) if member.name == "student-4" else member
        for member in searchable.manifest.members
    ]
    with pytest.raises(FamilyError, match="students of guidance 1, 3"):
        combinable(searchable.manifest.model_copy(update={"members": tuple(members)}))


def test_a_plan_may_be_left_at_each_boundary_for_every_student_that_ends_sooner():
    one, two, four, eight, _ = FIVE
    own = eight.finish(Fraction(1))
    found = {composition_of(plan, FIVE): taken for plan, taken in endings(student_plan("student-8", 8), FIVE).items()}
    assert found[(*own[:4], *hops((two, 0)))] == 4 and found[(*own[:4], *hops((four, 4), (four, 0)))] == 4
    assert found[(*own[:3], *hops((two, 8), (two, 0)))] == 3  # from 5/8 to the start of its segment, then on
    assert found[(*own[:6], *hops((one, 0)))] == 6 and (*own[:7], *hops((one, 0))) not in found
    assert all(composition[:taken] == own[:taken] for composition, taken in found.items())
    quality = {plan: Quality(measure([10.0 - plan.steps % 4]), None, None) for plan in map(compose, found)}
    taken = {compose(composition): at for composition, at in found.items()}
    kept = useful(quality, taken)
    for at in set(taken.values()):
        rows = [(plan.steps, quality[plan].frechet.mean) for plan in kept if taken[plan] == at]
        assert rows and rows == sorted(rows) and [d for _, d in rows] == sorted({d for _, d in rows}, reverse=True)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["stepdial", *map(str, arguments)])
    return stepdial.main()


def test_the_dial_is_searched_confirmed_left_early_reported_and_drawn(
    searchable: Family, scorer: Scorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    folder = Path(shutil.copytree(searchable.folder, tmp_path / "digits"))
    asked = ["--family", folder, "--samples", 80, "--seeds", 2, "--device", "cpu", "--runs", tmp_path / "runs"]
    search = ["--search-samples", 80, "--search-limit", 3, "--search-finalists", 1, "--results", tmp_path]
    assert not call(monkeypatch, "evaluate", *asked, "--search", *search)
    said = capsys.readouterr().out
    assert "search of width" in said and "network evaluations, about" in said
    record = SearchRecord.model_validate_json((tmp_path / "search-digits.json").read_bytes())
    family = open_family(folder)
    assert {position.steps for position in family.frontier.positions} == {1, 2, 3}
    for steps in (1, 2, 3):
        finalists = [finalist for finalist in record.finalists if finalist.evaluations == steps]
        best = family.choices(steps)[0]
        assert finalists[0].chosen and not any(finalist.chosen for finalist in finalists[1:])
        assert finalists[0].confirmed == best.frechet
        assert best.frechet.mean == min(finalist.confirmed.mean for finalist in finalists)
        own = {choice.source for choice in family.choices(steps)} - {"searched"}
        assert own == ({"student", "whole"} if steps < 3 else set())
    assert family.choices(3)[0].source == "searched" and 3 in family.positions
    looked_at = [len([one for one in record.scores if one.evaluations == n]) for n in (1, 2, 3)]
    every = [len(list(compositions(students_of(family.manifest), n))) for n in (1, 2, 3)]
    assert looked_at[:2] == every[:2] and 0 < looked_at[2] <= every[2]
    assert not list((tmp_path / "runs").rglob("*.npz")) and not list((tmp_path / "runs").rglob("*.jsonl"))

    found = family.choices(3)[0]
    assert not call(monkeypatch, "evaluate", *asked, "--search", *search, "--search-members", "student-1,student-2")
    kept = open_family(folder).choices(3)[0]  # a search over fewer does not lose what was nearer
    assert kept.frechet.mean <= found.frechet.mean and (kept == found or kept.frechet.mean < found.frechet.mean)

    assert not call(monkeypatch, "evaluate", *asked, "--positions", 4)
    assert not call(monkeypatch, "evaluate", *asked, "--rescues", "--search-limit", 4)
    family = open_family(folder)
    assert {rescue.steps for rescue in family.frontier.rescues} >= {4}
    for rescue in family.frontier.rescues:
        left = [choice.plan.hops[0] for choice in family.choices(rescue.steps)]
        assert rescue.plan.hops[0] in left and rescue.plan.steps < rescue.steps and rescue.seeds == (2001, 2002)

    page = tmp_path / "page.md"
    page.write_text("".join(f"<!-- {kind} digits -->\n<!-- end -->\n" for kind in ("dial", "searched", "rescues")))
    assert not call(monkeypatch, "report", "--family", family.folder, "--file", page)
    assert searched_table(family) in page.read_text() and rescues_table(family) in page.read_text()
    assert f"| 3 | {next(f.in_words for f in record.finalists if f.evaluations == 3)} |" in page.read_text()

    few = Evaluation(80, (1,), "fp32", torch.device("cpu"), "stepdial evaluate --samplers", "a", tmp_path)
    teacher = Scorer(family, scorer.yardstick, few)
    samplers = measure_samplers(teacher, measure([1.0]), tmp_path / "samplers-digits.json", evaluations=(3,))
    assert read_samplers(tmp_path / "samplers-digits.json") == samplers
    fewer = samplers.model_copy(update={"rows": samplers.rows[3:]})
    write_json(tmp_path, "samplers-digits.json", fewer)
    again = measure_samplers(
        teacher, measure([1.0]), tmp_path / "samplers-digits.json", evaluations=(3,), grids=("cosine",), guided=False
    )
    first, second = ([row.model_dump(exclude={"measured"}) for row in rows] for rows in (samplers.rows, again.rows))
    assert first == second  # what is measured again stands in the place of the same, beside what was known
    with pytest.raises(DataError, match=r"samplers-digits.json is of 80 images in 1 run\(s\), more than the 40 in 1"):
        few = Scorer(family, scorer.yardstick, replace(few, samples=40))
        measure_samplers(few, measure([1.0]), tmp_path / "samplers-digits.json", evaluations=(3,))
    curves = sampler_curves(samplers)
    assert {rule for _, rule, _ in curves} == {"ddim", "addim", "ancestral", "noise_ddim", "heun"}
    assert {(grid, guidance) for grid, _, guidance in curves} == set(product(("cosine", "karras"), (0.0, 1.0)))
    assert [point.evaluations for point in curves["cosine", "heun", 1.0]] == [6]
    assert curves["karras", "ddim", 0.0][0].evaluations == 3
    # other times, other images
    assert curves["cosine", "ddim", 0.0][0].frechet != curves["karras", "ddim", 0.0][0].frechet
    assert [point.evaluations for point in frontier_curves(family.frontier)["student"]] == [1, 2, 4]
    picture = tmp_path / "curve.png"
    asked = ["--family", folder, "--samplers", tmp_path / "samplers-digits.json", "--out", picture]
    assert not call(monkeypatch, "curve", *asked)
    assert Image.open(picture).size[0] > 1000
    assert not call(monkeypatch, "curve", *asked, "--figure", "samplers")
    assert Image.open(picture).size[0] > 1000
    kept = tmp_path / "benchmarks" / "dial" / "samplers-digits.json"
    kept.parent.mkdir(parents=True)
    kept.write_bytes((tmp_path / "samplers-digits.json").read_bytes())
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        assert "| karras | heun |" in samplers_table(family)
    broken = tmp_path / "samplers-digits.json"
    broken.write_text(json.dumps({"family": "digits"}))
    assert call(monkeypatch, "curve", *asked) == 1
    assert "is not a result of stepdial evaluate --samplers" in capsys.readouterr().err
