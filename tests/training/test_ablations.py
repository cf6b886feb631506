"""Ablations on the digits: what an arm changes, what is trained, measured and kept, and what a table says of it."""

import hashlib
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

import stepdial
from diffusion.condition import PromptConditioning
from diffusion.family import Family, open_family
from diffusion.files import write_tensors
from training.ablations import AblationsRecord, read_ablations
from training.arms import ARMS, BASELINE, SETS, Arm, chosen, trials
from training.datasets import DataError
from training.features import JUDGE
from training.frontier_tables import training_table
from training.members import trained_alike
from training.objective import teacher_steps
from training.result_tables import ablations_table
from training.run import Run
from training.student_settings import StudentSettings

BASE = StudentSettings(iterations=600, batch=16, guidance=1.0)


@pytest.fixture(scope="module")
def judged(digits_family: Family, digits_judge, tmp_path_factory: pytest.TempPathFactory) -> Family:
    """The digits family with a judge.  Not to be changed."""
    folder = Path(shutil.copytree(digits_family.folder, tmp_path_factory.mktemp("judged") / "digits"))
    write_tensors(folder, JUDGE, digits_judge)
    return open_family(folder)


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, where results and runs go."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ablate(monkeypatch: pytest.MonkeyPatch, family: Family, *flags: object) -> int:
    settings = ["--iterations", 3, "--batch", 6, "--warmup", 1, "--lr", "2e-3", "--samples", 80, "--seeds", 2]
    command = ["stepdial", "ablate", "--family", family.folder, *settings, "--device", "cpu", *flags]
    monkeypatch.setattr(sys, "argv", list(map(str, command)))
    return stepdial.main()


def kept(room: Path) -> AblationsRecord:
    return read_ablations(room / "benchmarks" / "ablations" / "digits.json")


def numbers(record: AblationsRecord) -> dict:
    (study,) = record.studies
    return {(row.arm, row.steps): (row.frechet, row.agreement) for row in study.rows}


@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm != BASELINE], ids=lambda arm: arm.name)
def test_an_arm_differs_from_the_baseline_in_one_setting_which_some_student_feels(arm: Arm):
    changed, before = arm.settings(BASE).model_dump(), BASE.model_dump()
    differing = {name for name in before if before[name] != changed[name]}
    assert len(differing) == (0 if arm.whole else 1)
    assert not all(arm.is_baseline(BASE, steps) for steps in (1, 4))


def test_constant_keeps_the_teachers_steps_where_annealing_ends_and_epsilon_reaches_the_distance():
    arms = {arm.name: arm for arm in ARMS}
    for steps in (1, 4, 16):
        annealed, constant = (arms[name].settings(BASE).objective(steps) for name in ("baseline", "constant"))
        assert teacher_steps(annealed, 0) < teacher_steps(constant, 0) == teacher_steps(annealed, 600)
        assert {teacher_steps(constant, at) for at in (0, 100, 600)} == {annealed.teacher_steps_end}
        assert annealed.model_dump(exclude={"anneal_iterations"}) == constant.model_dump(exclude={"anneal_iterations"})
        assert arms["huber-1e-2"].settings(BASE).objective(steps).huber_epsilon == 1e-2
        assert annealed.huber_epsilon == 1e-3
    assert BASE.model_copy(update={"recipe": "paper"}).objective(2).huber_epsilon == 1e-4


def test_groups_name_what_the_paper_compares_and_the_baseline_is_always_there():
    assert {"ct", "ddim", "addim-analytic", "constant", "snr1-x-huber", "from-nothing"} < set(SETS["paper"])
    assert [arm.name for arm in chosen(("lr-half",))] == ["baseline", "lr-half"]
    assert [arm.name for arm in chosen(("whole", "ct"))] == ["baseline", "ct", "whole-one", "whole-all"]
    assert len(chosen(("all", "whole"))) == len(ARMS)


def test_what_the_recipe_says_already_is_not_trained_twice():
    arms = chosen(("v-mean-huber", "snr1-x-huber", "from-nothing"))
    names = [trial.name for trial in trials(arms, BASE, (1, 2))]
    assert names[:3] == ["baseline-1", "v-mean-huber-1", "from-nothing-1"]
    assert names[3:] == ["baseline-2", "snr1-x-huber-2", "from-nothing-2"]
    unguided = BASE.model_copy(update={"guidance": 0.0})
    assert [trial.name for trial in trials(chosen(("unguided",)), unguided, (4,))] == ["baseline-4"]


def test_one_network_for_all_sees_the_images_of_one_student_or_of_all_in_batches_that_part_equally():
    counts = (1, 2, 4, 8, 16)
    separate, one, every = (
        [trial for trial in trials(chosen(("whole",)), BASE, counts) if trial.arm.whole == whole]
        for whole in (None, "one", "all")
    )
    assert [trial.counts for trial in (*one, *every)] == [counts, counts]
    assert one[0].settings.batch == every[0].settings.batch == 20
    assert one[0].images == separate[0].images == 9600
    assert every[0].images == sum(trial.images for trial in separate) == 48_000
    assert one[0].name == "whole-one-1-2-4-8-16"


def test_arms_are_trained_measured_kept_told_and_not_repeated_and_the_family_is_left_alone(
    judged: Family, room: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    before = {file.name: hashlib.sha256(file.read_bytes()).digest() for file in judged.folder.iterdir()}
    assert "Not measured yet" in ablations_table(judged)
    asked = ["--arms", "ct,snr1-x-huber,from-nothing,whole", "--steps", "1,2"]
    assert not ablate(monkeypatch, judged, *asked)
    said = capsys.readouterr().out
    assert "9 runs, 0 of them measured already: 180 images" in said and "2,720 network evaluations" in said
    record = kept(room)
    assert record.teacher == judged.manifest.teacher.weights.sha256
    found = numbers(record)
    arms = ("baseline", "ct", "from-nothing", "whole-one", "whole-all")
    assert found.keys() == {(arm, steps) for arm in arms for steps in (1, 2)} | {("snr1-x-huber", 2)}
    distances = [frechet.mean for frechet, _ in found.values()]
    assert len(set(distances)) == len(distances) and all(distance > 0 for distance in distances)
    assert all(0 <= agreement.mean <= 1 for _, agreement in found.values())
    trained = {row.arm: row.training for row in record.studies[0].rows}
    assert trained["ct"].settings["objective"]["method"] == "ct"
    assert trained["whole-all"].images == 36 and trained["whole-one"].images == 18
    assert {file.name: hashlib.sha256(file.read_bytes()).digest() for file in judged.folder.iterdir()} == before
    # an arm is a family that can be drawn from
    (folder,) = (room / "runs" / "digits" / "ablate").glob("*/from-nothing-2")
    assert open_family(folder).manifest.member("student-2").guidance == 1.0
    table = ablations_table(judged)
    assert "| snr1-x-huber | (SNR + 1) times the pseudo-Huber of x, as printed | as baseline |" in table
    assert "Not measured" not in table and table.count("Made by") == 1 and "2 run(s) of drawing 80 images" in table
    # a network for other step counts takes the place of its arm's, so that a row of the table is one network
    assert not ablate(monkeypatch, judged, "--arms", "whole", "--steps", "2")
    renewed = numbers(kept(room))
    assert found.keys() - renewed.keys() == {("whole-one", 1), ("whole-all", 1)} and found.keys() > renewed.keys()
    record = kept(room)
    # nothing is left to do, and nothing is done
    monkeypatch.setattr(Run, "step", lambda *_: pytest.fail("trained again"))
    capsys.readouterr()
    assert not ablate(monkeypatch, judged, "--arms", "ct,snr1-x-huber,from-nothing", "--steps", "1,2")
    assert "7 runs, all measured already" in capsys.readouterr().out
    assert kept(room) == record


def test_progressive_distillation_is_an_arm_whose_students_teach_each_other(
    judged: Family, room: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    chain = [trial for trial in trials(chosen(("pd",)), BASE, (1, 2, 8)) if trial.arm.name == "pd"]
    assert [trial.name for trial in chain] == ["pd-8", "pd-2", "pd-1-of-2"]
    assert not ablate(monkeypatch, judged, "--arms", "pd,told", "--steps", "1,2")
    (study,) = kept(room).studies
    arms = {(row.arm, row.steps): row.training.settings for row in study.rows}
    assert arms.keys() == {(arm, steps) for arm in ("baseline", "pd", "told") for steps in (1, 2)}
    (home,) = (room / "runs" / "digits" / "ablate").glob("*/pd")
    hashes = {member.name: member.weights.sha256 for member in open_family(home).manifest.members}
    assert hashes["teacher"] == judged.manifest.teacher.weights.sha256 == arms["pd", 2]["teacher_sha256"]
    assert arms["pd", 1]["teacher_sha256"] == hashes["student-2"]
    assert arms["told", 2]["objective"]["guidance_range"] == [0.0, 2.0]
    monkeypatch.setattr(Run, "step", lambda *_: pytest.fail("trained again"))
    capsys.readouterr()
    assert not ablate(monkeypatch, judged, "--arms", "pd,told", "--steps", "1,2")
    assert "6 runs, all measured already" in capsys.readouterr().out


def test_an_interrupted_ablation_keeps_what_was_measured_and_ends_where_an_uninterrupted_one_does(
    judged: Family, room: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    asked = ["--arms", "ct", "--steps", "2"]
    assert not ablate(monkeypatch, judged, *asked)
    expected = numbers(kept(room))
    shutil.rmtree(room / "runs")
    (room / "benchmarks" / "ablations" / "digits.json").unlink()
    step = Run.step

    def killed(run: Run, *arguments: object) -> float:
        if run.folder.name == "ct-2" and run.iteration == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(run, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "step", killed)
        assert ablate(patch, judged, *asked) == 130
    assert "the same command goes on from here" in capsys.readouterr().err
    assert numbers(kept(room)) == {("baseline", 2): expected["baseline", 2]}
    steps = []
    monkeypatch.setattr(Run, "step", lambda run, *arguments: (steps.append(run.iteration), step(run, *arguments))[1])
    assert not ablate(monkeypatch, judged, *asked)
    assert numbers(kept(room)) == expected
    assert steps[-1] == 2 and steps.count(2) == 1  # of the probe and the one iteration that was missing


def test_other_baselines_stand_beside_each_other_and_another_teacher_starts_anew(
    judged: Family, room: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    assert not ablate(monkeypatch, judged, "--arms", "baseline", "--steps", "2")
    assert not ablate(monkeypatch, judged, "--arms", "baseline", "--steps", "2", "--seed", "5")
    first = kept(room)
    assert [study.baseline.seed for study in first.studies] == [0, 5]
    assert first.studies[0].rows[0].frechet != first.studies[1].rows[0].frechet
    assert ablations_table(judged).count("| baseline |") == 2
    # more images of the same network are measured without training it again
    with monkeypatch.context() as patch:
        patch.setattr("training.ablations.fit", lambda *_: pytest.fail("trained again"))
        assert not ablate(patch, judged, "--arms", "baseline", "--steps", "2", "--samples", "90")
    assert [study.samples for study in kept(room).studies] == [80, 80, 90]
    file = room / "benchmarks" / "ablations" / "digits.json"
    file.write_text(file.read_text().replace(first.teacher, "0" * 64))
    told = ablations_table(judged)
    assert (
        told.startswith("Distilled from an earlier teacher of the family, of weights sha256 000000000000.")
        and "| baseline |" in told
    )
    capsys.readouterr()
    assert ablate(monkeypatch, judged, "--arms", "baseline", "--steps", "2") == 1
    assert "digits.json is of other networks or real images" in capsys.readouterr().err
    (file.parent / "earlier").mkdir()
    file.rename(file.parent / "earlier" / file.name)
    assert ablations_table(judged) == told
    assert not ablate(monkeypatch, judged, "--arms", "baseline", "--steps", "2")
    assert ablations_table(judged).endswith(told) and ablations_table(judged).index(told) > 0
    assert numbers(kept(room)) == {
        ("baseline", 2): (first.studies[0].rows[0].frechet, first.studies[0].rows[0].agreement)
    }


def test_a_table_with_holes_names_them_and_a_file_that_is_no_result_is_refused(
    judged: Family, room: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    assert not ablate(monkeypatch, judged, "--arms", "ct", "--steps", "2")
    assert not ablate(monkeypatch, judged, "--arms", "baseline", "--steps", "4")
    assert "Not measured yet: ct at 4." in ablations_table(judged)
    (room / "benchmarks" / "ablations" / "digits.json").write_text('{"family": "digits"}')
    with pytest.raises(DataError, match="digits.json is not a result of stepdial ablate: teacher"):
        ablations_table(judged)
    assert ablate(monkeypatch, judged, "--arms", "ct", "--steps", "2") == 1
    capsys.readouterr()
    assert ablate(monkeypatch, judged, "--arms", "magic") == 1
    assert "stepdial ablate: --arms must be of paper, all, whole, baseline" in capsys.readouterr().err


def test_a_setting_that_came_later_does_not_make_a_member_untrained(judged: Family):
    now = BASE.model_dump(mode="json")
    older = {name: value for name, value in now.items() if name not in ("anneal", "huber_epsilon", "guidance_interval")}

    def alike(settings: dict, schedule: StudentSettings = BASE, iterations: int = 600) -> bool:
        update = {"settings": settings, "iterations": iterations}
        record = judged.manifest.teacher.training.model_copy(update=update)
        return trained_alike(record, schedule.model_dump(mode="json"), schedule)

    assert alike(now) and alike(older)
    assert not alike(older | {"lr": 1.0}) and not alike(older | {"more": 1}) and not alike(now, iterations=599)
    assert not alike(older, BASE.model_copy(update={"anneal": False}))
    learnt = BASE.objective(2).model_dump(mode="json")
    before = {name: value for name, value in learnt.items() if name not in ("poolings", "weight", "guidance_interval")}
    record = judged.manifest.teacher.training.model_copy(
        update={"settings": now | {"objective": before}, "iterations": 600}
    )
    assert trained_alike(record, now | {"objective": learnt}, BASE)
    assert not trained_alike(record, now | {"objective": learnt | {"poolings": 1}}, BASE)
    elsewhere = record.model_copy(update={"settings": now | {"precision": "bf16"}})
    assert trained_alike(elsewhere, now | {"precision": "auto"}, BASE)
    assert not trained_alike(elsewhere, now | {"precision": "fp32"}, BASE)
    asked = PromptConditioning(template="a {colour} dot", slots={"colour": ("red", "blue")}).model_dump(mode="json")
    without = {name: value for name, value in asked.items() if name != "relation"}
    record = record.model_copy(update={"settings": now | {"conditioning": without}})
    assert trained_alike(record, now | {"conditioning": asked}, BASE)
    assert not trained_alike(record, now | {"conditioning": asked | {"template": "{colour} dots"}}, BASE)


def test_the_time_of_training_is_told_as_it_was_recorded(judged: Family):
    member = judged.manifest.teacher
    slow = member.training.model_copy(update={"iterations": 13_000, "images": 208_000, "seconds": 5400.0})
    manifest = judged.manifest.model_copy(update={"members": (member.model_copy(update={"training": slow}),)})
    table = training_table(Family(judged.folder, manifest, None))
    assert "| teacher | 13,000 | 208,000 | 1 h 30 min |" in table and "Together 1 h 30 min" in table
