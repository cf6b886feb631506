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
    assert list(family.positions) == [32, 64, 128, 256, 512]
    assert {hop.clip for hop in family.positions[32].hops} == {True}
    network, theirs = family.network("teacher"), DDPMPipeline.from_pretrained(pipeline).unet
    assert network.state_dict().keys() == {f"network.{key}" for key in theirs.state_dict()}
    assert all(torch.equal(value, network.network.state_dict()[key]) for key, value in theirs.state_dict().items())
    assert manifest.teacher.parameters == sum(value.numel() for value in theirs.state_dict().values())
    levels = network.config.timesteps.logsnr
    ends = manifest.schedule.logsnr(torch.tensor([0.0, 1.0]))
    assert ends.tolist() == pytest.approx([levels[0].item(), levels[-1].item()])
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


INDEX, SETTINGS = "model_index.json", "scheduler/scheduler_config.json"
CONFIG, WEIGHTS = "unet/config.json", "unet/diffusion_pytorch_model.safetensors"
Change = Callable[[Path], object]


def edit(name: str, **changes: object) -> Change:
    """Change entries of a JSON file of the pipeline."""
    return lambda folder: (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | changes))


def write(name: str, text: str) -> Change:
    """Write a file of the pipeline anew."""
    return lambda folder: (folder / name).write_text(text)


def remove(name: str) -> Change:
    """Remove a file of the pipeline."""
    return lambda folder: (folder / name).unlink()


def reweigh(change: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    """Change the network's weights."""

    def rewrite(folder: Path) -> None:
        weights = load_file(folder / WEIGHTS)
        change(weights)
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})

    return rewrite


def pickle_weights(folder: Path) -> None:
    torch.save(tiny_unet().state_dict(), folder / "unet" / "diffusion_pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def truncate(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-9])


def flow(folder: Path) -> None:
    FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")
    edit(INDEX, scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"])(folder)


BROKEN: dict[str, tuple[Change, str]] = {
    "no index": (remove(INDEX), "broken is not a diffusers pipeline: model_index.json is missing"),
    "index is no JSON": (write(INDEX, "{"), "model_index.json cannot be read as JSON"),
    "index is a list": (write(INDEX, "[]"), "model_index.json is not a JSON object"),
    "another network": (edit(INDEX, unet=["diffusers", "UNet3DModel"]), "is UNet3DModel; known are UNet2DModel"),
    "no network": (edit(INDEX, unet=None), "the network of broken is none; known are"),
    "no configuration": (remove(CONFIG), "unet/config.json is missing"),
    "pickled weights": (pickle_weights, "only pickled ones, which are not opened"),
    "no weights": (remove(WEIGHTS), "unet has no weights in safetensors files"),
    "truncated weights": (truncate, "do not make a UNet2DModel"),
    "a weight too few": (reweigh(lambda weights: weights.pop("conv_in.weight")), "one is conv_in.weight"),
    "a weight too many": (reweigh(lambda weights: weights.update(surplus=torch.zeros(1))), "one is surplus"),
    "weights of another size": (edit(CONFIG, block_out_channels=[8, 32]), "do not make a UNet2DModel"),
    "weights that are not numbers": (
        reweigh(lambda weights: weights["conv_in.bias"].fill_(float("nan"))),
        "not all numbers; one is conv_in.bias",
    ),
    "not a square": (edit(CONFIG, sample_size=[8, 16]), "squares of a known size"),
    "more than a latent": (edit(CONFIG, out_channels=4), "do not make a UNet2DModel"),
    "another embedding of time": (edit(CONFIG, time_embedding_type="fourier"), "do not make a UNet2DModel"),
    "no scheduler": (remove(SETTINGS), "scheduler/scheduler_config.json is missing"),
    "no class of scheduler": (edit(INDEX, scheduler=["diffusers", "UNet2DModel"]), "which is none of diffusers"),
    "another prediction": (edit(SETTINGS, prediction_type="flow"), "the network predicts flow"),
    "flow matching": (flow, "FlowMatchEulerDiscreteScheduler is not one of discrete betas"),
    "betas that are none": (edit(SETTINGS, beta_end=2.0), "scheduler/scheduler_config.json: "),
}


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
    assert lowest == pytest.approx(-10.2 if prediction == "epsilon" else -15.0)
    assert not family.positions[32].hops[0].clip
