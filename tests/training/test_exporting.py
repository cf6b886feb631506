"""From a pipeline folder of diffusers to one of a student: imported, distilled, exported, and drawn there as here."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

import stepdial
from diffusion.family import Family, open_family
from diffusion.manifest import GoldenSample
from diffusion.sampler import follow
from kernels import noise
from server.engine import Engine, choose_device
from tests.checkpoints import write_captioned, write_dit, write_images, write_pixels, write_stable, write_xl
from tests.server.desk import client_of, pixels
from tests.server.tiny import draw_alone, write_tiny_family

DISTIL = ["--iterations", 2, "--batch", 6, "--precision", "fp32", "--device", "cpu", "--lr", 1e-2, "--warmup", 1]
"""A high rate, so that two iterations change what is drawn."""


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["stepdial", *map(str, arguments)])
    return stepdial.main()


def round_trip(folder: Path, write: Callable[[Path], Path], data: Path, *distillations: list[object]) -> Family:
    """Import a pipeline and distil it, by the commands."""
    with pytest.MonkeyPatch.context() as patch:
        assert not call(patch, "import", write(folder / "pipeline"), "--family", folder / "tiny", "--device", "cpu")
        for steps in distillations:
            distil = ["distill", "--family", folder / "tiny", "--data", data, "--runs", folder / "runs", *DISTIL]
            assert not call(patch, *distil, "--steps", *steps)
    return open_family(folder / "tiny")


def drawn_here(family: Family, member: str, steps: int, z: Tensor, wish: dict[str, Any]) -> Tensor:
    """What the last hop gives: images, or without an autoencoder x_hat."""
    asked = family.manifest.conditioning.encode(**wish)
    return follow(
        {member: family.network(member)},
        family.manifest.member(member).plan(steps).hops,
        family.manifest.schedule,
        z,
        torch.tensor([asked] * len(z), dtype=torch.int64),
        seeds=[5] * len(z),
        indices=range(len(z)),
        variance=family.variance,
        decode=family.decoder() or (lambda x_hat: x_hat),
    )


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """An imported family of pixels with a 2-step student and one for 1, 2 and 4 steps."""
    folder = tmp_path_factory.mktemp("round-trip")
    data = write_images(folder / "images.npz", labels=3)  # whose labels nobody can ask this network for
    return round_trip(folder, write_pixels, data, ["2"], ["1,2,4", "--whole"])


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


def test_students_of_an_imported_teacher_are_served_over_http(family: Family):
    engine = Engine(family, device=choose_device("cpu"), max_wave=2)
    with client_of(family, engine) as client:
        for steps, member in ((1, "whole"), (2, "student-2"), (4, "whole")):
            answer = client.post("/generate", json={"steps": steps, "seed": 5}, headers={"Accept": "image/png"})
            assert answer.status_code == 200 and answer.headers["X-Student"] == member
            alone = draw_alone(family, GoldenSample(steps=steps, condition=(), seed=5, member=member)).numpy()
            assert np.abs(pixels(answer.content).astype(int) - alone).max() <= 1


LOADED = """
import sys, torch
from diffusers import DDPMPipeline
from safetensors.torch import load_file, save_file

assert not any(name in sys.modules for name in ("diffusion", "training", "server"))
file, *exported = sys.argv[1:]
drawn, given = {}, load_file(file)["z"]
for folder, steps in zip(exported[::2], map(int, exported[1::2])):
    pipeline = DDPMPipeline.from_pretrained(folder, trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    try:
        pipeline(num_inference_steps=steps + 1)
    except ValueError as error:
        assert f"draws in {steps} steps and no other number, got {steps + 1}" in str(error), error
    else:
        raise AssertionError("a wrong number of steps was drawn")
    assert pipeline(num_inference_steps=steps).images[0].size == (8, 8)
    pipeline.scheduler.set_timesteps(steps)
    z = given
    with torch.no_grad():
        for t in pipeline.scheduler.timesteps:
            z = pipeline.scheduler.step(pipeline.unet(z, t).sample, t, z).prev_sample
    drawn[folder] = z
save_file(drawn, file)
"""
"""What somebody does who has diffusers and nothing of ours."""


def test_exported_students_draw_in_diffusers_alone_what_they_draw_here(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    exported = {("student-2", 2): tmp_path / "two", ("whole", 4): tmp_path / "four", ("whole", 1): tmp_path / "one"}
    for (member, steps), out in exported.items():
        chosen = ["--steps", steps] if member == "whole" else []
        assert not call(monkeypatch, "export", "--family", family.folder, "--member", member, *chosen, "--out", out)
    z, file = noise([5] * 3, [0, 1, 2], (3, 8, 8)), tmp_path / "latents.safetensors"
    save_file({"z": z}, file)
    told = [str(part) for (_, steps), out in exported.items() for part in (out, steps)]
    environment = {"HF_HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", LOADED, str(file), *told]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    theirs = load_file(file)
    for (member, steps), out in exported.items():
        ours = drawn_here(family, member, steps, z, {})
        assert (ours - theirs[str(out)]).abs().max() < 2e-5 * max(1.0, ours.abs().max().item())


LATENT: dict[str, tuple[Callable[[Path], Path], dict[str, Any], dict[str, Any]]] = {
    "dit": (write_dit, {"class_labels": [1, 1]}, {"label": "goldfish"}),
    "stable": (write_stable, {"prompt": "a dog", "num_images_per_prompt": 2}, {"prompt": "a dog"}),
    "xl": (write_xl, {"prompt": "a dog", "num_images_per_prompt": 2}, {"prompt": "a dog"}),
}


@pytest.mark.parametrize("kind", LATENT)
def test_students_in_latents_come_back_as_whole_pipelines(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write, asked, wish = LATENT[kind]
    data = write_images(tmp_path / "a.npz", labels=3) if kind == "dit" else write_captioned(tmp_path / "a.tar")
    family = round_trip(tmp_path, write, data, ["1,2", "--whole"])
    assert family.manifest.whole.guidance == {"dit": 3.0}.get(kind, 6.5)
    out = tmp_path / "exported"
    assert not call(monkeypatch, "export", "--family", family.folder, "--member", "whole", "--steps", 2, "--out", out)
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    pipeline = DiffusionPipeline.from_pretrained(out, trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    z = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(3))
    begun = {"generator": torch.Generator().manual_seed(3)} if kind == "dit" else {"latents": z}
    with pytest.raises(ValueError, match="draws in 2 steps and no other number, got 50"):
        pipeline(**asked, **begun, guidance_scale=1, num_inference_steps=50)
    begun = {"generator": torch.Generator().manual_seed(3)} if kind == "dit" else {"latents": z}
    theirs = pipeline(**asked, **begun, guidance_scale=1, num_inference_steps=2, output_type="np").images
    ours = drawn_here(family, "whole", 2, z, wish).numpy()
    assert ours.std() > 5 and np.abs(theirs * 255 - ours).max() <= 0.6  # one of the two is rounded
    teacher = drawn_here(family, "teacher", 32, z, wish).numpy()
    assert np.abs(ours.astype(int) - teacher).max() > 1


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


def test_data_that_does_not_fit_an_imported_family_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    folder = write_pixels(tmp_path / "pipeline", num_class_embeds=3)
    assert not call(monkeypatch, "import", folder, "--family", tmp_path / "tiny", "--device", "cpu")
    file = write_images(tmp_path / "a.npz", labels=0)
    capsys.readouterr()
    assert call(monkeypatch, "distill", "--family", tmp_path / "tiny", "--data", file, "--runs", tmp_path, *DISTIL) == 1
    assert "no labels (npz array), and the family takes a label; family 'tiny' cannot be" in capsys.readouterr().err
