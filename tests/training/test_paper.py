"""The paper's tables beside ours: what is set beside what, and what may be said of it."""

import json
import shutil
from pathlib import Path

import pytest

from diffusion.family import Family, open_family
from diffusion.frontier import Measure
from training.ablations import AblationsRecord, read_ablations
from training.paper import PAPER_TABLES, nearest, paper_table

ROOT = Path(__file__).parents[2]


def record(rows: list[tuple[str, int, int, float]]) -> AblationsRecord:
    """A record with rows (arm, steps, training seed, distance), all else taken from the committed ablations of shapes."""
    known = read_ablations(ROOT / "benchmarks/ablations/shapes.json")
    study, studies = known.studies[0], []
    for seed in sorted({seed for _, _, seed, _ in rows}):
        ours = tuple(
            study.rows[0].model_copy(update={"arm": arm, "steps": steps, "frechet": Measure(mean=far, spread=0.5)})
            for arm, steps, at, far in rows
            if at == seed
        )
        baseline = study.baseline.model_copy(update={"seed": seed})
        studies.append(study.model_copy(update={"baseline": baseline, "rows": ours}))
    return known.model_copy(update={"studies": tuple(studies), "family": "digits"})


def table(
    digits_family: Family, folder: Path, monkeypatch: pytest.MonkeyPatch, *rows: tuple[str, int, int, float]
) -> str:
    (folder / "benchmarks/paper").mkdir(parents=True)
    (folder / "benchmarks/paper/digits.json").write_text(record(list(rows)).model_dump_json())
    monkeypatch.chdir(folder)
    return paper_table(open_family(shutil.copytree(digits_family.folder, folder / "digits")))


def test_trainings_of_several_seeds_give_a_mean_and_a_spread(
    digits_family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rows = [("baseline", 1, 1, 4.0), ("baseline", 1, 2, 6.0), ("ct", 1, 1, 12.0), ("ct", 1, 2, 12.0)]
    rows += [("ct", 2, 1, 7.0), ("baseline", 2, 1, 5.0)]
    said = table(digits_family, tmp_path, monkeypatch, *rows)
    assert "| 2 | 7.00 ± 0.50 † | 5.00 ± 0.50 † |" in said
    assert "| 1 | 12.00 ± 0.00 | 5.00 ± 1.41 | 7.2 | 4.3 | CD | CD |" in said
    assert (
        "standard deviation over 2 trainings (seeds 1, 2; † of fewer" in said
        and "Not measured: CT at 4, CD at 4" in said
    )
    assert "constant at 1" in said and "DDIM at 1" in said  # Tables 2 and 4 have no second column
    assert "proxy distance" in said


def test_one_training_has_the_spread_of_drawing_and_the_unguided_arm_goes_before_the_guided_baseline(
    digits_family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rows = [("baseline", 8, 1, 1.0), ("unguided", 8, 1, 3.0), ("ct", 8, 1, 3.2)]
    said = table(digits_family, tmp_path, monkeypatch, *rows)
    assert "| 8 | 3.20 ± 0.50 | 3.00 ± 0.50 | 1.5 | 1.6 | level: CT, CD | CT |" in said
    assert "runs of drawing, of one training" in said


def test_the_nearest_is_named_unless_others_are_within_the_spread():
    near, far, unsure = Measure(mean=1.0, spread=0.1), Measure(mean=2.0, spread=0.1), Measure(mean=1.2, spread=0.3)
    assert nearest({"a": far, "b": near}) == "b"
    assert nearest({"a": far, "b": near, "c": unsure}) == "level: b, c"


def test_without_a_result_the_table_says_what_makes_one_and_a_broken_one_is_refused(
    digits_family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert "`make paper " in paper_table(digits_family)
    (tmp_path / "benchmarks/paper").mkdir(parents=True)
    (tmp_path / "benchmarks/paper/digits.json").write_text(json.dumps({"family": "digits"}))
    with pytest.raises(ValueError, match="is not a result of stepdial ablate"):
        paper_table(digits_family)


def test_every_table_has_as_many_printed_numbers_as_columns():
    assert all(len(printed) == len(table.arms) for table in PAPER_TABLES for printed in table.printed.values())
