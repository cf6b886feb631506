"""`import kernels` is safe: without Triton, and where other packages probe for one of the same name."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_without_triton_everything_runs_in_plain_pytorch():
    run("""
import sys
sys.modules["triton"] = None  # importing it now raises ImportError
import torch, kernels
z = kernels.noise([1, 2], [0, 0], (3, 4, 4))
table = torch.tensor([[0.6, 0.8, 0.8, 0.6, 0.1, 0.0, 0.0, 1.0]] * 2)
assert kernels.hop(z, z, table).isfinite().all()
assert kernels.last_hop(z, z, table).shape == (2, 4, 4, 3)
from kernels.backend import _TRITON_INSTALLED
assert not _TRITON_INSTALLED
""")


def test_importing_loads_no_triton_kernel_and_defines_no_version():
    run("""
import sys, kernels
assert not hasattr(kernels, "__version__")
assert "kernels.wave_triton" not in sys.modules and "kernels.gaussian_triton" not in sys.modules
""")


@pytest.mark.parametrize("package", ["transformers", "diffusers"])
def test_packages_that_probe_for_another_kernels_still_import_from_the_repository_root(package):
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    run(f"import sys; sys.path.insert(0, ''); import {package}; import kernels; assert kernels.hop")
