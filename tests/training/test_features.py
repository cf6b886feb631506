"""The judge and its distance."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.datasets import FiniteSet
from training.features import Judge, frechet_distance, train_judge


def sample_of(mean: np.ndarray, cov: np.ndarray, count: int = 400) -> np.ndarray:
    """Points whose mean and covariance are exactly these."""
    points = np.random.default_rng(0).normal(size=(count, len(mean)))
    points -= points.mean(0)
    whitened = points @ np.linalg.inv(np.linalg.cholesky(np.cov(points, rowvar=False))).T
    return mean + whitened @ np.linalg.cholesky(cov).T


@given(st.integers(0, 10**6))
def test_the_distance_of_gaussians_with_a_common_basis_is_its_closed_form(seed: int):
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    means, variances = rng.normal(size=(2, 5)), rng.uniform(0.1, 3, (2, 5))
    a, b = (sample_of(mean, basis * variance @ basis.T) for mean, variance in zip(means, variances, strict=True))
    expected = np.sum((means[0] - means[1]) ** 2) + np.sum((np.sqrt(variances[0]) - np.sqrt(variances[1])) ** 2)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)


def test_the_distance_of_two_general_gaussians_in_the_plane():
    # tr (A B)^1/2 in two dimensions is sqrt(tr AB + 2 sqrt(det A det B))
    a_cov, b_cov = np.array([[2.0, 0.7], [0.7, 1.0]]), np.array([[0.5, -0.2], [-0.2, 1.5]])
    root = np.sqrt(np.trace(a_cov @ b_cov) + 2 * np.sqrt(np.linalg.det(a_cov) * np.linalg.det(b_cov)))
    expected = 5.0 + np.trace(a_cov) + np.trace(b_cov) - 2 * root
    a, b = sample_of(np.array([1.0, 0.0]), a_cov), sample_of(np.array([0.0, 2.0]), b_cov)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


@given(st.integers(0, 10**6), st.integers(2, 60))
def test_a_set_is_at_no_distance_from_itself_and_distance_is_symmetric(seed: int, count: int):
    a, b = np.random.default_rng(seed).normal(size=(2, count, 8)).astype(np.float32)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-5)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-5, abs=1e-5)
    assert frechet_distance(a, b) > -1e-6


def test_a_judge_learns_the_digits_and_training_it_is_deterministic(digit_set: FiniteSet):
    judge, again = (train_judge(digit_set, iterations=120) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(judge.state_dict().values(), again.state_dict().values(), strict=True))
    x, condition = digit_set.batch(0, 500, seed=1)
    assert judge.agrees(x, condition).float().mean() > 0.85
    assert judge.agrees(x, condition % 10 + 1).float().mean() < 0.1
    assert judge.agrees(x, torch.zeros_like(condition)).all()  # nothing asked for is always there
    assert judge.features(x).shape == (500, 64)


def test_every_slot_has_to_agree():
    torch.manual_seed(0)
    judge, x = Judge(3, (4, 5)).eval(), torch.randn(30, 3, 16, 16)
    with torch.no_grad():
        right = torch.stack([logits.argmax(1) + 1 for logits in judge(x)], dim=1)
        wrong = right.clone()
        wrong[:, 1] = wrong[:, 1] % 5 + 1
        assert judge.agrees(x, right).all() and not judge.agrees(x, wrong).any()
