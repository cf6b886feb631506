"""Makes the helpers beside this file and the repository's packages importable, however pytest was started."""

import sys
from pathlib import Path

import pytest

for folder in (Path(__file__).parents[2], Path(__file__).parent):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a CUDA device")
