"""The tiny family, written once."""

from pathlib import Path

import pytest

from diffusion.family import Family, open_family
from tests.server.tiny import write_tiny_family


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a prompt family of tiny networks with random weights, golden samples and a frontier."""
    return write_tiny_family(tmp_path_factory.mktemp("families") / "tiny")


@pytest.fixture(scope="session")
def family(family_folder: Path) -> Family:
    """The tiny family."""
    return open_family(family_folder)
