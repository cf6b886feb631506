"""`stepdial import`, `distill`, `export` of a diffusers pipeline: what goes in comes out, and what is broken is named."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file, save_file

import stepdial
from kernels import noise
from tests.checkpoints import tiny_unet, write_pixels
from training.checkpoint import Checkpoint, CheckpointError
from training.importing import import_family


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["stepdial", *map(str, arguments)])
    return stepdial.main()


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder, not to be changed."""
    return write_pixels(tmp_path_factory.mktemp("pipelines") / "tiny-ddpm")


def test_what_is_imported_is_a_family_with_the_checkpoints_own_network(pipeline: Path, tmp_path: Path):
    family = import_family(Checkpoint(pipeline), tmp_path / "ddpm", licence="mine")
    manifest = family.manifest
    assert manifest.shape == (3, 8, 8) and manifest.conditioning.kind == "none" and manifest.licence == "mine"
    assert list(family.positions) == [32, 64, 128, 256, 512] and {hop.clip for hop in family.positions[32].hops} == {
        True
    }
    network, theirs = family.network("teacher"), DDPMPipeline.from_pretrained(pipeline).unet
    assert network.state_dict().keys() == {f"network.{key}" for key in theirs.state_dict()}
    assert all(torch.equal(value, network.network.state_dict()[key]) for key, value in theirs.state_dict().items())
    assert manifest.teacher.parameters == sum(value.numel() for value in theirs.state_dict().values())
    levels = network.config.timesteps.logsnr
    ends = manifest.schedule.logsnr(torch.tensor([0.0, 1.0]))
    assert ends.tolist() == pytest.approx(
        [levels[0].item(), -10.0]
    )  # noise is predicted, and the checkpoint ends at -10.1
    assert {entry.steps for entry, _ in family.golden()} == {32}


def test_labels_are_asked_for_by_number_and_none_adds_nothing(tmp_path: Path):
    folder = write_pixels(tmp_path / "labelled", num_class_embeds=3)
    family = import_family(Checkpoint(folder), tmp_path / "family")
    assert family.manifest.conditioning.encode(label=2) == (3,) and family.manifest.guidance == 0.0
    network, theirs = family.network("teacher"), DDPMPipeline.from_pretrained(folder).unet
    z, level = noise([1, 1], [0, 1], (3, 8, 8)), network.config.timesteps.logsnr[500].float().expand(2)
    v = network(z, level, torch.tensor([[3], [1]]))
    alpha, sigma = torch.sigmoid(level[0]).sqrt(), torch.sigmoid(-level[0]).sqrt()
    expected = theirs(z, 500, torch.tensor([2, 0])).sample
    assert torch.allclose(sigma * z + alpha * v, expected, atol=1e-4)
    with torch.no_grad():
        theirs.class_embedding.weight[0] = 0
    nothing = network(z, level, torch.tensor([[0], [0]]))
    assert torch.allclose(sigma * z + alpha * nothing, theirs(z, 500, torch.tensor([0, 0])).sample, atol=1e-4)


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def pickle_weights(folder: Path) -> None:
    torch.save(tiny_unet().state_dict(), folder / "unet" / "diffusion_pytorch_model.bin")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()


def change_weights(folder: Path, change: Callable[[dict], object]) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


def truncate(folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])


def flow(folder: Path) -> None:
    FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")
    index = {"scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}
    edit(folder / "model_index.json", **index)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no index": (lambda folder: (folder / "model_index.json").unlink(), "is not a diffusers pipeline: model_index.json is missing"),
    "index is no JSON": (lambda folder: (folder / "model_index.json").write_text("{"), "model_index.json cannot be read as JSON"),
    "index is a list": (lambda folder: (folder / "model_index.json").write_text("[]"), "model_index.json is not a JSON object"),
    "another network": (lambda folder: edit(folder / "model_index.json", unet=["diffusers", "UNet3DModel"]), "is UNet3DModel; known are UNet2DModel"),
    "no network": (lambda folder: edit(folder / "model_index.json", unet=None), "the network of broken is none; known are"),
    "no configuration": (lambda folder: (folder / "unet" / "config.json").unlink(), "unet/config.json is missing"),
    "pickled weights": (pickle_weights, "only pickled ones, which are not opened"),
    "no weights": (lambda folder: (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink(), "unet has no weights in safetensors files"),
    "truncated weights": (truncate, "do not make a UNet2DModel"),
    "a weight too few": (lambda folder: change_weights(folder, lambda weights: weights.pop("conv_in.weight")), "not those of its configuration; one is conv_in.weight"),
    "a weight too many": (lambda folder: change_weights(folder, lambda weights: weights.update(surplus=torch.zeros(1))), "one is surplus"),
    "weights of another size": (lambda folder: edit(folder / "unet" / "config.json", block_out_channels=[8, 32]), "do not make a UNet2DModel"),
    "weights that are not numbers": (lambda folder: change_weights(folder, lambda weights: weights["conv_in.bias"].fill_(float("nan"))), "not all numbers; one is conv_in.bias"),
    "no size": (lambda folder: edit(folder / "unet" / "config.json", sample_size=[8, 16]), "squares of a known size"),
    "no scheduler": (lambda folder: (folder / "scheduler" / "scheduler_config.json").unlink(), "scheduler/scheduler_config.json is missing"),
    "another prediction": (lambda folder: edit(folder / "scheduler" / "scheduler_config.json", prediction_type="flow"), "the network predicts flow"),
    "flow matching": (flow, "FlowMatchEulerDiscreteScheduler is not one of discrete betas"),
    "betas that are none": (lambda folder: edit(folder / "scheduler" / "scheduler_config.json", beta_end=2.0), "scheduler/scheduler_config.json: "),
}  # fmt: skip


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_folder_ends_in_one_sentence_and_leaves_the_family_that_was(how: str, pipeline: Path, tmp_path: Path):
    folder = Path(shutil.copytree(pipeline, tmp_path / "secret-place" / "broken"))
    change, said = BROKEN[how]
    change(folder)
    (tmp_path / "family").mkdir()
    (tmp_path / "family" / "family.json").write_text("{}")
    with pytest.raises(CheckpointError) as refused:
        import_family(Checkpoint(folder), tmp_path / "family")
    sentence = str(refused.value)
    assert said in sentence and "\n" not in sentence and "secret-place" not in sentence and len(sentence) < 300
    assert (tmp_path / "family" / "family.json").read_text() == "{}"


def test_the_layout_of_older_pipelines_with_everything_in_one_folder_is_read(pipeline: Path, tmp_path: Path):
    old = tmp_path / "old"
    old.mkdir()
    for file in [*pipeline.glob("unet/*"), *pipeline.glob("scheduler/*"), pipeline / "model_index.json"]:
        shutil.copy(file, old)
    family = import_family(Checkpoint(old), tmp_path / "family")
    assert (
        family.manifest.teacher.weights.sha256
        == import_family(Checkpoint(pipeline), tmp_path / "other").manifest.teacher.weights.sha256
    )


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_zero_terminal_schedule_is_clipped_before_its_signal_is_gone(prediction: str, tmp_path: Path):
    scheduler = DDIMScheduler(rescale_betas_zero_snr=True, prediction_type=prediction, clip_sample=False)
    folder = tmp_path / "zero"
    DDPMPipeline(tiny_unet(), scheduler).save_pretrained(folder)
    family = import_family(Checkpoint(folder), tmp_path / "family")
    lowest = family.manifest.schedule.logsnr(1.0).item()
    assert lowest == pytest.approx(-10.0 if prediction == "epsilon" else -15.0)
    assert not family.positions[32].hops[0].clip
