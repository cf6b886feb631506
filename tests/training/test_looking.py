"""`stepdial look` and `train` on files, as a newcomer calls them."""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

import stepdial
from diffusion.family import open_family
from diffusion.uvit import PRESETS
from tests.training.photographs import BROKEN, album, photograph


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["stepdial", *map(str, arguments)])
    return stepdial.main()


def test_look_says_what_data_is_and_names_what_is_broken(tmp_path: Path, monkeypatch, capsys):
    folder = album(tmp_path / "album")
    files = {
        name: tmp_path / f"{name}.{kind}" for name, kind in (("out", "png"), ("result", "json"), ("skipped", "jsonl"))
    }
    flags = [part for name, file in files.items() for part in (f"--{name}", file)]
    assert not call(monkeypatch, "look", "--data", folder, "--resolution", 16, "--images", 160, *flags)
    said = capsys.readouterr()
    assert "album: 23 images, no labels (folder of images)" in said.out and "images/s" in said.out
    assert f"{len(BROKEN)} skipped as unusable; skipped.jsonl names them" in said.out and "skipped cut" in said.err
    assert {json.loads(line)["name"] for line in files["skipped"].read_text().splitlines()} == set(BROKEN)
    result = json.loads(files["result"].read_text())
    assert result["images_read"] == 160 and result["skipped"] == len(BROKEN) and result["workers"] >= 1
    assert result["images_per_second"]["mean"] > 0 and result["cpu_ms_per_image"]["mean"] > 0
    assert Image.open(files["out"]).width > 8 * 128


def test_look_at_what_is_not_there_is_one_sentence(monkeypatch, capsys):
    assert call(monkeypatch, "look", "--data", "nowhere") == 1
    assert "data 'nowhere' is not there; what can be named" in capsys.readouterr().err


def test_a_family_is_trained_and_distilled_on_a_folder_of_photographs(tmp_path: Path, monkeypatch, capsys):
    colours = PRESETS["tiny8"].model_copy(update={"channels": 3})  # the smallest network, for photographs
    monkeypatch.setitem(PRESETS, "tiny8", colours)
    for seed in range(6):
        (tmp_path / "set" / "ab"[seed % 2]).mkdir(parents=True, exist_ok=True)
        photograph(seed).save(tmp_path / "set" / "ab"[seed % 2] / f"{seed}.jpg")
    (tmp_path / "set" / "a" / "broken.jpg").write_bytes(b"")
    data = ["--data", tmp_path / "set", "--flip", "--runs", tmp_path / "runs", "--batch", 2, "--device", "cpu"]
    family = ["--family", tmp_path / "set-family"]
    short = ["--iterations", 1, "--precision", "fp32"]
    assert not call(monkeypatch, "train", "--preset", "tiny8", *family, *data, *short, "--workers", 1)
    manifest = open_family(tmp_path / "set-family").manifest
    assert manifest.conditioning.labels == ("a", "b") and manifest.teacher.training.data == "set"
    record = manifest.teacher.training.settings
    assert record["flip"] is True and record["crop"] == "centre" and len(record["fingerprint"]) == 64
    assert not call(monkeypatch, "distill", *family, *data, *short, "--steps", 1)
    (student,) = open_family(tmp_path / "set-family").manifest.students
    assert student.training.settings["fingerprint"] == record["fingerprint"]
    capsys.readouterr()
    assert not call(monkeypatch, "distill", *family, *data, *short, "--steps", 1)
    assert "has this 1-step student already" in capsys.readouterr().out
