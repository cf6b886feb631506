"""target_distance's Triton kernels against training's own objective; run by test_triton_lanes.py, one lane a process."""

import os

import pytest
import torch
from stretches import relative_error, tolerance
from targets import EPSILON, make_target

from kernels import target_triton

DEVICE = {"interpret": "cpu", "cuda": "cuda"}[os.environ["STEPDIAL_LANE"]]

if DEVICE == "cpu":
    import interpreter_rounding

    interpreter_rounding.apply()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 17, 19)])
def test_distance_and_gradient_are_those_of_trainings_objective(shape, dtype, monkeypatch):
    monkeypatch.setattr(target_triton, "BLOCK", 128)  # several blocks in a sample
    target = make_target(shape, dtype)
    given = [part.to(DEVICE) for part in target.given]
    distance, facts = target_triton.target_distance(*given, EPSILON)
    torch.testing.assert_close(distance.cpu().double(), target.distance, rtol=1e-6, atol=0)
    d_v = target_triton.target_gradient(target.gradient.to(DEVICE), *given, facts)
    assert d_v.dtype == dtype and relative_error(d_v, target.d_v) < tolerance(dtype)
    alone, _ = target_triton.target_distance(*(part[3:4] for part in given), EPSILON)
    assert torch.equal(alone, distance[3:4])
