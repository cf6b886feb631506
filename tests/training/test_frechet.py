"""The Frechet distance, and the statistics of real images that it is taken to."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from diffusion.family import Family
from training.datasets import DataError, FiniteSet
from training.frechet import (
    Origin,
    Statistics,
    data_sha256,
    frechet_distance,
    read_statistics,
    statistics_of,
    write_statistics,
)
from training.yardstick import Yardstick

ORIGIN = Origin(data="digits", data_sha256="1" * 64, count=400, network="judge", network_sha256="2" * 64)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return frechet_distance(a, statistics_of(b))


def sample_of(mean: np.ndarray, cov: np.ndarray, count: int = 400) -> np.ndarray:
    """Points whose mean and covariance are exactly these."""
    points = np.random.default_rng(0).normal(size=(count, len(mean)))
    points -= points.mean(0)
    whitened = points @ np.linalg.inv(np.linalg.cholesky(np.cov(points, rowvar=False))).T
    return mean + whitened @ np.linalg.cholesky(cov).T


def through_eigenvalues(a: np.ndarray, b: np.ndarray) -> float:
    """The distance another way: |m_a - m_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2), both roots of symmetric matrices."""
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


@given(st.integers(0, 10**6))
def test_the_distance_of_gaussians_with_a_common_basis_is_its_closed_form(seed: int):
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    means, variances = rng.normal(size=(2, 5)), rng.uniform(0.1, 3, (2, 5))
    a, b = (sample_of(mean, basis * variance @ basis.T) for mean, variance in zip(means, variances, strict=True))
    expected = np.sum((means[0] - means[1]) ** 2) + np.sum((np.sqrt(variances[0]) - np.sqrt(variances[1])) ** 2)
    assert distance(a, b) == pytest.approx(expected, rel=1e-8)


def test_the_distance_of_two_general_gaussians_in_the_plane():
    # tr (A B)^1/2 in two dimensions is sqrt(tr AB + 2 sqrt(det A det B))
    a_cov, b_cov = np.array([[2.0, 0.7], [0.7, 1.0]]), np.array([[0.5, -0.2], [-0.2, 1.5]])
    root = np.sqrt(np.trace(a_cov @ b_cov) + 2 * np.sqrt(np.linalg.det(a_cov) * np.linalg.det(b_cov)))
    expected = 5.0 + np.trace(a_cov) + np.trace(b_cov) - 2 * root
    a, b = sample_of(np.array([1.0, 0.0]), a_cov), sample_of(np.array([0.0, 2.0]), b_cov)
    assert distance(a, b) == pytest.approx(expected, rel=1e-9)


@given(st.integers(0, 10**6), st.integers(2, 60))
def test_a_set_is_at_no_distance_from_itself_and_distance_is_symmetric(seed: int, count: int):
    a, b = np.random.default_rng(seed).normal(size=(2, count, 8)).astype(np.float32)
    assert distance(a, a) == pytest.approx(0, abs=1e-5)
    assert distance(a, b) == pytest.approx(distance(b, a), rel=1e-5, abs=1e-5)
    assert distance(a, b) > -1e-5


@pytest.mark.parametrize("far", [0.0, 30.0])
def test_the_librarys_distance_is_that_through_symmetric_roots_in_float64(far: float):
    """Features as a network has them: 64, correlated, of very different scales, a mean far from the origin."""
    rng = np.random.default_rng(3)
    mixing = rng.normal(size=(64, 64)) * np.logspace(-2, 1, 64)
    a, b = (rng.normal(size=(600, 64)) @ mixing + far for _ in range(2))
    b = 1.1 * b + 0.3
    assert distance(a, b) == pytest.approx(through_eigenvalues(a, b), rel=1e-6)


def test_features_of_another_width_or_too_few_are_refused():
    with pytest.raises(DataError, match="3 dimensions, those of the reference 2"):
        frechet_distance(np.zeros((5, 3)), statistics_of(np.eye(2)))
    with pytest.raises(DataError, match="at least 2 images, got 1"):
        statistics_of(np.zeros((1, 4)))


def test_a_library_that_is_missing_is_told_before_a_judge_is_trained(
    digits_family: Family, digit_set: FiniteSet, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    monkeypatch.setattr("training.yardstick.family_judge", lambda *_: pytest.fail("a judge was trained"))
    with pytest.raises(DataError, match="torchmetrics is not installed"):
        Yardstick(digits_family, digit_set)


def test_statistics_are_read_as_they_were_written_and_their_file_is_always_the_same(tmp_path: Path):
    statistics = statistics_of(np.random.default_rng(0).normal(size=(400, 6)))
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for file in files:
        write_statistics(file, statistics, ORIGIN)
        read = read_statistics(file, ORIGIN)
        assert np.array_equal(read.mean, statistics.mean) and np.array_equal(read.covariance, statistics.covariance)
        assert read.count == 400
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("field", "value"), [("data_sha256", "3" * 64), ("network_sha256", "3" * 64), ("network", "dinov2"), ("count", 300)]
)
def test_statistics_of_other_images_or_another_network_are_an_error(tmp_path: Path, field: str, value: object):
    file = tmp_path / "a.safetensors"
    write_statistics(file, Statistics(np.zeros(2), np.eye(2), 400), ORIGIN)
    with pytest.raises(DataError, match=f"are of other images or features: {field} is"):
        read_statistics(file, ORIGIN.model_copy(update={field: value}))


def test_a_file_that_holds_no_statistics_is_refused_with_a_sentence(tmp_path: Path):
    file = tmp_path / "a.safetensors"
    file.write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match="a.safetensors does not hold statistics"):
        read_statistics(file, ORIGIN)
    save_file({"mean": np.zeros(2)}, file, metadata={"origin": ORIGIN.model_dump_json()})
    with pytest.raises(DataError, match="does not hold statistics"):
        read_statistics(file, ORIGIN)
    save_file(
        {"mean": np.zeros(2), "covariance": np.zeros((3, 3))}, file, metadata={"origin": ORIGIN.model_dump_json()}
    )
    with pytest.raises(DataError, match="mean and its covariance"):
        read_statistics(file, ORIGIN)
    with safe_open(file, framework="np") as opened:
        assert json.loads(opened.metadata()["origin"])["data"] == "digits"


def test_the_hash_of_data_changes_with_the_images_that_are_taken(digit_set: FiniteSet):
    hashes = {data_sha256(digit_set, count=count, seed=seed) for count in (10, 20) for seed in (0, 1)}
    assert len(hashes) == 4 and data_sha256(digit_set, count=10, seed=0) in hashes
