"""From a pipeline folder of diffusers to one of a student: imported, distilled, exported, and drawn there as here."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import stepdial
from diffusion.family import Family, open_family
from kernels import noise
from tests.checkpoints import write_images, write_pixels
from tests.server.tiny import write_tiny_family


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["stepdial", *map(str, arguments)])
    return stepdial.main()


DISTIL = ["--iterations", 2, "--batch", 6, "--precision", "fp32", "--device", "cpu", "--lr", 1e-2, "--warmup", 1]
"""A high rate, so that two iterations change what is drawn."""


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """An imported family with a 2-step student and one for 1, 2 and 4 steps, made by the commands."""
    folder = tmp_path_factory.mktemp("round-trip")
    data = write_images(folder / "images.npz", labels=3)  # whose labels nobody can ask this network for
    with pytest.MonkeyPatch.context() as patch:
        assert not call(patch, "import", write_pixels(folder / "ddpm"), "--family", folder / "tiny", "--device", "cpu")
        distil = ["distill", "--family", folder / "tiny", "--data", data, "--runs", folder / "runs", *DISTIL]
        assert not call(patch, *distil, "--steps", "2")
        assert not call(patch, *distil, "--steps", "1,2,4", "--whole")
    return open_family(folder / "tiny")


def test_students_of_an_imported_teacher_are_its_network_in_full_precision(family: Family):
    manifest = family.manifest
    assert [member.name for member in manifest.members] == ["teacher", "student-2", "whole"]
    assert manifest.member("student-2").network == manifest.teacher.network
    assert manifest.whole.network.segments == (1, 2, 4)
    teacher, student, whole = (load_file(family.folder / member.weights.file) for member in manifest.members)
    assert teacher.keys() == student.keys() == whole.keys() - {"segments.weight"}
    assert {value.dtype for value in student.values()} == {torch.float32}
    assert any(not torch.equal(value, student[key]) for key, value in teacher.items())
    assert {entry.member for entry, _ in family.golden()} == {"teacher", "student-2", "whole"}


LOADED = """
import sys, torch
from diffusers import {pipeline}
from safetensors.torch import load_file, save_file

assert not any(name in sys.modules for name in ("diffusion", "training", "server"))
folder, file, steps = sys.argv[1:]
pipeline = {pipeline}.from_pretrained(folder, trust_remote_code=True)
pipeline.set_progress_bar_config(disable=True)
try:
    pipeline({arguments}num_inference_steps=int(steps) + 1)
except ValueError as error:
    assert f"draws in {{steps}} steps and no other number, got {{int(steps) + 1}}" in str(error), error
else:
    raise AssertionError("a wrong number of steps was drawn")
assert pipeline({arguments}num_inference_steps=int(steps)).images[0].size == (8, 8)
given = load_file(file)
z = given["z"]
pipeline.scheduler.set_timesteps(int(steps))
with torch.no_grad():
    for t in pipeline.scheduler.timesteps:
        z = pipeline.scheduler.step(pipeline.unet(z, t).sample, t, z).prev_sample
save_file({{"x": z}}, file)
"""
"""What somebody does who has diffusers and nothing of ours."""


@pytest.mark.parametrize(("member", "steps"), [("student-2", 2), ("whole", 4), ("whole", 1)])
def test_an_exported_student_draws_in_diffusers_alone_what_it_draws_here(
    member: str, steps: int, family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from safetensors.torch import save_file

    out, file = tmp_path / "exported", tmp_path / "latents.safetensors"
    chosen = ["--steps", steps] if member == "whole" else []
    assert not call(monkeypatch, "export", "--family", family.folder, "--member", member, *chosen, "--out", out)
    z = noise([5] * 3, [0, 1, 2], (3, 8, 8))
    save_file({"z": z}, file)
    script = LOADED.format(pipeline="DDPMPipeline", arguments="")
    environment = {"HF_HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, out, file, str(steps)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    theirs = load_file(file)["x"]
    ours = drawn_here(family, member, steps, z)
    assert (ours - theirs).abs().max() < 1e-4 * max(1.0, ours.abs().max().item())


def drawn_here(family: Family, member: str, steps: int, z: torch.Tensor) -> torch.Tensor:
    """x_hat of the last hop, as the sampler draws it."""
    from diffusion.sampler import follow

    plan = family.manifest.member(member).plan(steps)
    return follow(
        {member: family.network(member)},
        plan.hops,
        family.manifest.schedule,
        z,
        torch.zeros(3, 0, dtype=torch.int64),
        seeds=[5] * 3,
        indices=[0, 1, 2],
        decode=lambda x_hat: x_hat,
    )


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--member", "student-9"], "there is no member 'student-9'"),
        (["--member", "teacher"], "the teacher is the checkpoint that was imported"),
        (["--member", "whole"], "draws in 1, 2, 4 steps; name one with --steps"),
        (["--member", "whole", "--steps", 3], "does not draw in 3 steps but in 1, 2, 4"),
        (["--member", "student-2", "--steps", 4], "does not draw in 4 steps but in 2"),
    ],
)
def test_what_cannot_be_exported_ends_in_one_sentence(
    flags: list,
    said: str,
    family: Family,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    assert call(monkeypatch, "export", "--family", family.folder, "--out", tmp_path / "out", *flags) == 1
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_networks_of_our_own_are_no_class_of_diffusers_and_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    folder = write_tiny_family(tmp_path / "tiny", steps=(2,))
    assert call(monkeypatch, "export", "--family", folder, "--member", "student-2", "--out", tmp_path / "out") == 1
    assert "is a UViT, which is no class of diffusers" in capsys.readouterr().err


def test_a_folder_that_exists_is_not_written_over(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    command = ["export", "--family", family.folder, "--member", "student-2", "--out", tmp_path]
    assert call(monkeypatch, *command) == 1 and "exists already" in capsys.readouterr().err
