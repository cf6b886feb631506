"""Precision, recall, density and coverage against scikit-learn's neighbours, and in cases where they are known."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from training.neighbours import NEAREST, overlap


def radii(points: np.ndarray, k: int) -> np.ndarray:
    """Distance to the k-th other point."""
    return NearestNeighbors(n_neighbors=k + 1).fit(points).kneighbors(points)[0][:, -1]


@pytest.mark.parametrize("seed", range(3))
def test_overlap_is_what_the_definitions_say_of_scikit_learns_neighbours(seed: int):
    rng = np.random.default_rng(seed)
    real, drawn = rng.normal(size=(300, 6)), 0.8 * rng.normal(size=(251, 6)) + 0.4
    far = np.linalg.norm(drawn[:, None] - real[None], axis=-1)
    small, large = (radii(real, k) for k in NEAREST)
    found = overlap(real.astype(np.float32), drawn.astype(np.float32))
    assert found.precision == pytest.approx((far <= small).any(1).mean(), abs=1e-9)
    assert found.recall == pytest.approx((far <= radii(drawn, NEAREST[0])[:, None]).any(0).mean(), abs=1e-9)
    assert found.density == pytest.approx((far <= large).sum(1).mean() / NEAREST[1], abs=1e-9)
    assert found.coverage == pytest.approx((far <= large).any(0).mean(), abs=1e-9)


def test_sets_that_do_not_meet_have_nothing_in_common_and_a_set_meets_itself_everywhere():
    points = np.random.default_rng(0).normal(size=(100, 4))
    assert overlap(points, points + 1000) == (0, 0, 0, 0)
    same = overlap(points, points)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1) and same.density > 1


def test_one_good_image_drawn_again_and_again_is_precise_but_recalls_and_covers_nothing():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(400, 4))
    found = overlap(real, real[:1] + 1e-6 * rng.normal(size=(400, 4)))
    assert found.precision == 1 and found.recall < 0.02 and found.coverage < 0.1


def test_more_rows_than_are_taken_at_a_time_change_nothing(monkeypatch: pytest.MonkeyPatch):
    real, drawn = np.random.default_rng(1).normal(size=(2, 150, 5))
    whole = overlap(real, drawn)
    monkeypatch.setattr("training.neighbours._ROWS", 40)
    assert overlap(real, drawn) == whole


def test_too_few_images_are_refused():
    with pytest.raises(ValueError, match="more than 5 images are needed, got 5 real and 9 drawn"):
        overlap(np.zeros((5, 2)), np.zeros((9, 2)))
