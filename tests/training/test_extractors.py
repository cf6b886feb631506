"""Feature networks from local files: tiny ones, written here as transformers writes them."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from diffusion.family import open_family
from training.datasets import DataError
from training.extractors import BATCH, Extractor, clip, dinov2, folder_sha256, inception
from training.metrics import views
from training.rulers import label

CPU, ROOT = torch.device("cpu"), Path(__file__).parents[2]
PROMPTS = ["a red star", "a blue ring on mint", "a red star"]


@pytest.fixture(scope="session")
def dino_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DINOv2 of random weights, 24 features of 28x28 images, as transformers saves it."""
    from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("dinov2")
    config = Dinov2Config(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(folder)
    BitImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of random weights whose tokenizer spells words out, as transformers saves it."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("clip")
    letters = [letter + end for letter in "abcdefghijklmnopqrstuvwxyz" for end in ("", "</w>")]
    vocabulary = {word: at for at, word in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": len(letters), "eos_token_id": len(letters) + 1, "pad_token_id": len(letters) + 1}
    text = small | ends | {"vocab_size": len(vocabulary), "max_position_embeddings": 16}
    config = CLIPConfig(text_config=text, vision_config=small | {"image_size": 16, "patch_size": 8}, projection_dim=12)
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder)
    return folder


def pictures(count: int, size: int = 28, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


def normalised(images: np.ndarray) -> Tensor:
    """What the image processors do to images that have their size already."""
    mean, std = (torch.tensor(v) for v in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)))
    return ((torch.from_numpy(images).float() / 255 - mean) / std).permute(0, 3, 1, 2)


def test_dinov2s_features_are_its_class_token_after_the_last_norm(dino_folder: Path):
    from transformers import Dinov2Model

    images = pictures(BATCH + 3, size=32)
    network = dinov2(dino_folder, CPU)
    features = network.features(images)
    cropped = normalised(images[:, 2:30, 2:30])
    with torch.no_grad():
        expected = Dinov2Model.from_pretrained(dino_folder).eval()(cropped).last_hidden_state[:, 0]
    assert network.name == "dinov2" and features.shape == (BATCH + 3, 24) and features.dtype == np.float32
    np.testing.assert_allclose(features, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_grey_images_are_seen_as_the_same_in_colour_and_small_ones_are_enlarged(dino_folder: Path):
    network, grey = dinov2(dino_folder, CPU), pictures(4, size=8, channels=1)
    assert np.array_equal(network.features(grey), network.features(np.repeat(grey, 3, axis=-1)))


def test_clip_scores_are_a_hundred_times_the_cosine_and_at_least_0(clip_folder: Path):
    from transformers import AutoTokenizer, CLIPModel

    images = pictures(3, size=16)
    scores = clip(clip_folder, CPU).scores(images, PROMPTS)
    model, tokenizer = CLIPModel.from_pretrained(clip_folder).eval(), AutoTokenizer.from_pretrained(clip_folder)
    for image, prompt, score in zip(images, PROMPTS, scores, strict=True):
        tokens = tokenizer(prompt, truncation=True, max_length=16, return_tensors="pt")
        with torch.no_grad():
            seen = model(pixel_values=normalised(image[None]), **tokens)
        cosine = torch.nn.functional.cosine_similarity(seen.image_embeds, seen.text_embeds)
        assert score == pytest.approx(max(0.0, 100 * float(cosine)), abs=1e-3)


def test_clip_scores_tell_prompts_apart_and_do_not_depend_on_company(clip_folder: Path):
    judge, images = clip(clip_folder, CPU), np.repeat(pictures(1, size=16), 3, axis=0)
    together = judge.scores(images, PROMPTS)
    assert together[0] == together[2] != together[1]
    np.testing.assert_allclose(judge.scores(images[:1], PROMPTS[:1]), together[:1], atol=1e-4)


def test_networks_of_another_kind_or_with_missing_parts_are_refused_with_a_sentence(
    dino_folder: Path, clip_folder: Path, tmp_path: Path
):
    with pytest.raises(DataError, match="--clip .* holds a dinov2 network"):
        clip(dino_folder, CPU)
    with pytest.raises(DataError, match="--dinov2 .* does not hold a network as transformers saves it"):
        dinov2(tmp_path, CPU)
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((clip_folder / name).read_bytes())
    with pytest.raises(DataError, match="--clip .* tokenizer"):
        clip(tmp_path, CPU)


def test_a_dinov2_that_lacks_weights_is_refused(dino_folder: Path, tmp_path: Path):
    for file in dino_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(DataError, match="lacks weights"):
        dinov2(tmp_path, CPU)


def test_inception_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(DataError, match=r"torch-fidelity is not installed; pip install -e '.\[evaluation\]'"):
        inception(tmp_path / "weights.pth", CPU)


def test_a_folders_hash_is_that_of_its_weights(dino_folder: Path, clip_folder: Path, tmp_path: Path):
    assert folder_sha256(dino_folder) != folder_sha256(clip_folder)
    for number in (1, 2):
        (tmp_path / f"model-{number}.safetensors").write_bytes(b"part %d" % number)
    before = folder_sha256(tmp_path)
    (tmp_path / "model-2.safetensors").write_bytes(b"other")
    assert folder_sha256(tmp_path) != before


def test_only_the_published_inception_at_fifty_thousand_images_is_called_fid():
    published = Extractor("inception", "6726825d" + "0" * 56, lambda images: images)
    others = [
        Extractor("inception", "1" * 64, lambda images: images),
        Extractor("dinov2", "6726825d", lambda images: images),
    ]
    fifty, ten = 50_000, 10_000
    assert (
        label(published, samples=fifty, references=fifty, whole=False) == "FID, 50,000 images against 50,000 real ones"
    )
    assert label(published, samples=fifty, references=1797, whole=True).startswith("FID")
    for samples, references in ((ten, fifty), (fifty, ten)):
        assert label(published, samples=samples, references=references, whole=False).startswith("proxy")
    assert all(label(other, samples=fifty, references=fifty, whole=True).startswith("proxy") for other in others)


def test_clip_is_asked_for_the_prompt_of_each_image(clip_folder: Path):
    family = open_family(ROOT / "families" / "shapes")
    judge, images = clip(clip_folder, CPU), torch.from_numpy(pictures(2, size=16))
    conditions = torch.tensor([[1, 4, 1], [6, 6, 2]])
    seen = views(family, [], judge)["clip"].look(images, conditions)
    prompts = ["a red star on mint", "a blue ring on cream"]
    np.testing.assert_allclose(seen, judge.scores(images.numpy(), prompts), atol=1e-5)
    with pytest.raises(DataError, match="--clip needs prompts, and family 'digits' takes none"):
        views(open_family(ROOT / "families" / "digits"), [], judge)
