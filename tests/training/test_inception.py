"""FID's Inception network, where torch-fidelity is installed with a torchvision that fits torch.  Run with -m slow."""

from pathlib import Path

import numpy as np
import pytest
import torch

from training.datasets import DataError
from training.extractors import inception

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of random weights in the layout of torch-fidelity's."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Inception
    except (ImportError, RuntimeError) as error:  # torchvision raises RuntimeError beside a torch it was not built for
        pytest.skip(f"torch-fidelity cannot be used here: {error}")
    file = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save({}, file)
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:  # its constructor insists on weights
        patch.setattr(Inception, "load_state_dict", lambda *arguments, **named: None)
        network = Inception("inception", ["2048"], feature_extractor_weights_path=str(file))
    torch.save(network.state_dict(), file)
    return file


def test_inception_sees_2048_features_in_uint8_images_of_any_size_and_in_grey_ones(weights: Path):
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    network = inception(weights, CPU)
    features = network.features(images)
    assert features.shape == (3, 2048) and np.isfinite(features).all() and not network.is_fid
    np.testing.assert_allclose(network.features(images[:1]), features[:1], rtol=1e-3, atol=1e-5)
    grey = images[..., :1]
    assert np.array_equal(network.features(grey), network.features(np.repeat(grey, 3, axis=-1)))


def test_a_file_that_does_not_hold_inceptions_weights_is_refused_with_a_sentence(weights: Path, tmp_path: Path):
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("no weights")
    for name in ("other.pth", "text.pth", "missing.pth"):
        with pytest.raises(DataError, match="does not hold Inception's weights"):
            inception(tmp_path / name, CPU)
