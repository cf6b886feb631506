"""Estimates: arithmetic against hand counts and the paper's speeds, memory against what a training really takes."""

import pytest

from diffusion.uvit import PRESETS
from training.estimate import GPUS, Work, estimate

SPEEDS = {  # appendix A.2: images of 2,048 a second on so many TPU v5e, by CT and CD
    "imagenet64-small": (64, 2.7, 2.5),
    "imagenet64-large": (256, 2.9, 2.5),
    "imagenet128-small": (64, 2.2, 1.7),
    "imagenet128-large": (256, 2.2, 1.8),
}
TPU = 197e12
FORWARD = {
    "imagenet64-small": 218.4,
    "imagenet64-large": 838.4,
    "imagenet128-small": 277.0,
    "imagenet128-large": 1072.7,
}


@pytest.mark.parametrize("name", SPEEDS)
def test_the_papers_runs_had_four_tenths_of_their_chips_peak(name: str):
    chips, *speeds = SPEEDS[name]
    for teacher, speed in enumerate(speeds):
        found = estimate(Work(PRESETS[name], 2048, 200_000, targets=1, teacher=teacher))
        assert found.forward / 1e9 == pytest.approx(FORWARD[name], rel=2e-3)
        assert found.total == found.image * 2048 * 200_000 and found.image == (4 + teacher) * found.forward
        assert 0.36 < found.image * 2048 * speed / (chips * TPU) < 0.48


def test_hours_are_arithmetic_over_speed():
    found = estimate(Work(PRESETS["imagenet64-small"], 2048, 200_000, targets=1, teacher=1))
    assert found.hours(GPUS["h200"], 1, 395 / 989) == pytest.approx(315, rel=0.01)
    assert found.hours(GPUS["h200"], 64, 395 / 989) == pytest.approx(315 / 64, rel=0.01)
