"""Starts the lanes that check the Triton kernels, each in a process of its own.

A process either interprets Triton or compiles it: the choice is made when a kernel is decorated.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
with_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")


def run_lane(*files: str, **environment: str) -> None:
    """Run files of tests in one process with these variables set; fail with its output."""
    inherited = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-o",
        "addopts=",
        *(str(HERE / file) for file in files),
    ]
    done = subprocess.run(
        command, cwd=HERE.parents[1], env=inherited | environment, capture_output=True, text=True, timeout=900
    )
    print(done.stdout)
    assert done.returncode == 0, f"{files} failed with {environment}:\n{done.stdout}\n{done.stderr}"


@with_triton
def test_the_kernels_are_right_in_tritons_interpreter():
    run_lane("lane_triton.py", "lane_norms.py", "lane_target.py", STEPDIAL_LANE="interpret", TRITON_INTERPRET="1")


@with_triton
def test_the_kernels_compile_for_gpus_without_spills(tmp_path):
    run_lane("lane_aot.py", TRITON_CACHE_DIR=str(tmp_path))


@with_triton
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_kernels_are_right_on_the_gpu():
    run_lane("lane_triton.py", "lane_norms.py", "lane_target.py", STEPDIAL_LANE="cuda")
