"""Families that must not be served are refused in one sentence, without a path, before or instead of readiness."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from diffusion.family import FamilyError, open_family
from diffusion.files import file_sha256
from server.commands import serve
from server.engine import Engine, choose_device


def delete_manifest(folder: Path) -> None:
    (folder / "family.json").unlink()


def delete_weights(folder: Path) -> None:
    (folder / "student-2.safetensors").unlink()


def truncate_weights(folder: Path) -> None:
    file = folder / "student-2.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def flip_a_bit(folder: Path) -> None:
    file = folder / "student-2.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def put_a_pickle(folder: Path) -> None:
    (folder / "student-2.safetensors").write_bytes(pickle.dumps({"weights": [1.0]}))


def cut_the_manifest(folder: Path) -> None:
    file = folder / "family.json"
    file.write_bytes(file.read_bytes()[:200])


@pytest.mark.parametrize(
    "damage", [delete_manifest, delete_weights, truncate_weights, flip_a_bit, put_a_pickle, cut_the_manifest]
)
def test_a_damaged_family_is_refused_before_the_server_starts(
    damage: Callable[[Path], None], family_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(family_folder, tmp_path / "damaged")
    damage(folder)
    assert serve(["--family", str(folder), "--port", "0"]) == 1
    sentence = capsys.readouterr().err
    assert sentence.startswith("stepdial serve: ") and sentence.count("\n") == 1
    assert str(tmp_path) not in sentence and "Traceback" not in sentence


def with_right_hash(folder: Path, name: str) -> None:
    """Make the manifest vouch for a file as it is now."""
    file = folder / "family.json"
    manifest = json.loads(file.read_text())
    for record in [member["weights"] for member in manifest["members"]] + [manifest["golden"]]:
        if record["file"] == name:
            record["sha256"] = file_sha256(folder / name)
    file.write_text(json.dumps(manifest))


def swap_students(folder: Path) -> None:
    shutil.copy(folder / "student-4.safetensors", folder / "student-1.safetensors")
    with_right_hash(folder, "student-1.safetensors")


def pickle_with_right_hash(folder: Path) -> None:
    put_a_pickle(folder)
    with_right_hash(folder, "student-2.safetensors")


def no_golden(folder: Path) -> None:
    file = folder / "family.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"golden": None}))


@pytest.mark.parametrize(
    ("damage", "word"),
    [(swap_students, "golden"), (pickle_with_right_hash, "student-2.safetensors"), (no_golden, "golden")],
)
def test_a_family_whose_hashes_are_right_must_still_draw_what_training_drew(
    damage: Callable[[Path], None], word: str, family_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(family_folder, tmp_path / "damaged")
    damage(folder)
    engine = Engine(open_family(folder), device=choose_device("cpu"), max_wave=2)
    with pytest.raises(FamilyError, match=word) as refusal:
        engine.prepare()
    assert str(tmp_path) not in str(refusal.value)
