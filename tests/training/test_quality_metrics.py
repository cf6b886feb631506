"""`stepdial evaluate --metrics`, on a tiny family with tiny networks."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import stepdial
from diffusion.family import Family, open_family
from diffusion.files import write_tensors
from training.features import JUDGE
from training.frechet import read_statistics, write_statistics
from training.metrics import read_metrics
from training.result_tables import metrics_table

EVALUATE = ["--samples", 90, "--seeds", 2, "--device", "cpu"]


@pytest.fixture(scope="session")
def judged(digits_family: Family, digits_judge, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the digits family with students of 1 and 2 steps and a judge.  Not to be changed."""
    folder = tmp_path_factory.mktemp("judged")
    shutil.copytree(digits_family.folder, folder / "digits")
    short = [
        "--iterations",
        1,
        "--batch",
        2,
        "--precision",
        "fp32",
        "--device",
        "cpu",
        "--probes",
        0,
        "--tracker",
        "none",
    ]
    with pytest.MonkeyPatch.context() as patch:
        command = [
            "stepdial",
            "distill",
            "--family",
            folder / "digits",
            "--steps",
            "1,2",
            "--runs",
            folder / "runs",
            *short,
        ]
        patch.setattr(sys, "argv", list(map(str, command)))
        assert stepdial.main() == 0
    write_tensors(folder / "digits", JUDGE, digits_judge)
    return folder / "digits"


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """A DINOv2 of random weights."""
    from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=14, patch_size=14)
    Dinov2Model(config).save_pretrained(tmp_path / "dinov2")
    sizes = {"size": {"shortest_edge": 14}, "crop_size": {"height": 14, "width": 14}}
    BitImageProcessorPil(**sizes).save_pretrained(tmp_path / "dinov2")
    return tmp_path / "dinov2"


def evaluate(monkeypatch: pytest.MonkeyPatch, family: Path, folder: Path, *flags: object) -> int:
    places = ["--results", folder / "results", "--runs", folder / "runs", "--statistics", folder / "statistics"]
    command = ["stepdial", "evaluate", "--family", family, *EVALUATE, *places, *flags]
    monkeypatch.setattr(sys, "argv", list(map(str, command)))
    return stepdial.main()


def test_positions_are_measured_by_every_network_and_what_was_measured_before_is_kept(
    judged: Path, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file, before = tmp_path / "results" / "metrics-digits.json", (judged / "family.json").read_bytes()
    assert not evaluate(monkeypatch, judged, tmp_path, "--dinov2", network, "--positions", 1)
    record = read_metrics(file)
    real, drawn = record.rows
    assert (real.source, real.plan, drawn.source, drawn.steps) == ("real", None, "student", 1)
    assert [metric.network for metric in drawn.metrics] == ["judge", "dinov2"] and record.seeds == (2001, 2002)
    assert drawn.agreement and 0 <= drawn.agreement.mean <= 1
    assert drawn.agreement_held_out is None and real.agreement is None
    for row in record.rows:
        for metric in row.metrics:
            assert all(0 <= getattr(metric, name).mean <= 1 for name in ("precision", "recall", "coverage"))
    # so short a training draws nothing like digits: real images are nearer to real ones, by both networks
    for near, far in zip(real.metrics, drawn.metrics, strict=True):
        assert near.frechet.mean < far.frechet.mean and near.coverage.mean > far.coverage.mean
        assert far.label.startswith(f"proxy: Fréchet distance of {far.network} features, 90 images against 1,797 real")
    assert [reference.count for reference in record.references] == [1797, 1797]
    statistics = tmp_path / "statistics" / "digits-1797-judge.safetensors"
    ours = read_statistics(statistics, record.references[0])
    write_statistics(
        statistics, replace(ours, mean=ours.mean * (1 + 1e-9)), record.references[0]
    )  # another processor's
    assert not evaluate(monkeypatch, judged, tmp_path, "--dinov2", network, "--positions", 2)
    assert [row.steps for row in read_metrics(file).rows] == [0, 1, 2]
    assert read_metrics(file).rows[1] == drawn
    assert (judged / "family.json").read_bytes() == before and not (judged / "frontier.json").exists()
    monkeypatch.chdir(tmp_path)
    assert "does." in metrics_table(open_family(judged))
    shutil.copytree(tmp_path / "results", tmp_path / "benchmarks" / "dial")
    table = metrics_table(open_family(judged))
    assert "| 1 | student | judge |" in table and "| real | judge |" in table
    assert record.references[1].network_sha256[:12] in table and "obeyed" in table
    assert "held-out" not in table and "CLIP" not in table  # columns without a cell


def test_what_was_measured_of_weights_that_the_family_no_longer_has_is_neither_told_nor_kept(
    judged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "benchmarks" / "dial" / "metrics-digits.json"
    flags = ["--metrics", "--results", file.parent]
    assert not evaluate(monkeypatch, judged, tmp_path, *flags, "--positions", 1)
    record = read_metrics(file)
    family, drawn = open_family(judged), record.rows[1]
    assert drawn.is_of(family) and not drawn.model_copy(update={"guidance": 2.0}).is_of(family)
    older = record.rows[1].model_copy(update={"weights": {"student-1": "0" * 64}})
    file.write_text(record.model_copy(update={"rows": (record.rows[0], older)}).model_dump_json())
    monkeypatch.chdir(tmp_path)
    table = metrics_table(open_family(judged))
    assert "| real | judge |" in table and "| 1 | student |" not in table
    assert not evaluate(monkeypatch, judged, tmp_path, *flags, "--positions", 2)
    assert [row.steps for row in read_metrics(file).rows] == [0, 2]


def test_a_result_of_more_images_or_of_another_family_of_the_name_is_not_written_over(
    judged: Path, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    asked, file = ["--positions", 1, "--metrics"], tmp_path / "results" / "metrics-digits.json"
    assert not evaluate(monkeypatch, judged, tmp_path, *asked)
    before = file.read_bytes()
    other = shutil.copytree(judged, tmp_path / "other" / "digits")
    judge = load_file(other / JUDGE)
    write_tensors(other, JUDGE, {name: value * 1.01 for name, value in judge.items()})
    for family, flags, said in (
        (judged, ["--seeds", 1], "is of 90 images in 2 run(s), more than the 90 in 1 asked for"),
        (judged, ["--samples", 80], "is of 90 images in 2 run(s), more than the 80 in 2 asked for"),
        (
            other,
            ["--statistics", tmp_path / "others"],
            "is of other networks or real images: another family of this name",
        ),
    ):
        capsys.readouterr()
        assert evaluate(monkeypatch, family, tmp_path, *asked, *flags) == 1
        told = capsys.readouterr().err
        assert f"{file} {said}" in told and "name another folder with --results, or remove the file" in told
        assert file.read_bytes() == before
    assert not evaluate(
        monkeypatch, judged, tmp_path, *asked, "--samples", 100
    )  # more images take its place, and say so
    assert read_metrics(file).samples == 100 and "will be replaced" in capsys.readouterr().out


def test_statistics_of_another_network_in_the_same_place_stop_the_command(
    judged: Path, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    assert not evaluate(monkeypatch, judged, tmp_path, "--dinov2", network, "--positions", 1)
    weights = load_file(network / "model.safetensors")
    weights["layernorm.bias"] += 1
    save_file(weights, network / "model.safetensors", metadata={"format": "pt"})
    capsys.readouterr()
    assert evaluate(monkeypatch, judged, tmp_path, "--dinov2", network, "--positions", 1) == 1
    said = capsys.readouterr().err
    assert "digits-1797-dinov2.safetensors are of other images or features: network_sha256 is" in said


def test_clip_is_refused_where_there_are_no_prompts_and_a_wrong_folder_where_there_is_no_network(
    judged: Path, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    assert evaluate(monkeypatch, judged, tmp_path, "--clip", network, "--positions", 1) == 1
    assert "holds a dinov2 network" in capsys.readouterr().err
    assert evaluate(monkeypatch, judged, tmp_path, "--dinov2", tmp_path / "nowhere", "--positions", 1) == 1
    assert "does not hold a network as transformers saves it" in capsys.readouterr().err
