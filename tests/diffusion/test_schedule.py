"""The noise schedule against its formulas, written down again with Python's own floats."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion.schedule import CosineSchedule, alpha_sigma_from_logsnr, karras_times

GRID = torch.linspace(0, 1, 1001, dtype=torch.float64)
RESOLUTIONS = st.sampled_from([8, 16, 32, 64, 128, 256, 512])

BOUNDARIES = {  # logsnr at t = 1, 7/8, ..., 1/8, interpolated from noise resolution 32 to the image's
    (64, "A"): [-15.0, -3.4, -2.1, -1.3, -0.7, -0.1, 0.7, 2.0],
    (64, "B"): [-16.4, -4.4, -2.8, -1.7, -0.7, 0.3, 1.4, 3.1],
    (128, "A"): [-15.0, -3.6, -2.5, -1.9, -1.4, -0.9, -0.3, 0.8],
    (128, "B"): [-17.8, -5.7, -3.8, -2.5, -1.4, -0.2, 1.1, 2.9],
    (512, "A"): [-15.0, -3.9, -3.2, -2.9, -2.8, -2.7, -2.4, -1.6],
    (512, "B"): [-20.5, -8.1, -5.9, -4.3, -2.8, -1.3, 0.4, 2.5],
}


def interpolated(resolution: int, end: int, direction: str = "B", start: int = 32) -> CosineSchedule:
    return CosineSchedule(
        image_resolution=resolution, noise_resolution=start, noise_resolution_end=end, interpolation=direction
    )


def cosine(t: float) -> float:
    """logsnr of the plain cosine schedule, clipped to +-15 by moving the ends of the angle."""
    first, last = math.atan(math.exp(-7.5)), math.atan(math.exp(7.5))
    return -2 * math.log(math.tan(first + t * (last - first)))


@given(st.floats(0, 1))
def test_the_plain_schedule_is_minus_two_log_tan(t: float):
    assert CosineSchedule().logsnr(t).item() == pytest.approx(cosine(t), rel=1e-12, abs=1e-12)


def test_away_from_the_ends_the_plain_schedule_is_cos_and_sin_of_a_quarter_turn():
    alpha, sigma = CosineSchedule().alpha_sigma(GRID)
    assert torch.allclose(alpha, torch.cos(math.pi / 2 * GRID), atol=6e-4)
    assert torch.allclose(sigma, torch.sin(math.pi / 2 * GRID), atol=6e-4)


def test_the_plain_schedule_ends_at_plus_and_minus_15():
    schedule = CosineSchedule()
    assert schedule.logsnr(0.0).item() == pytest.approx(15, abs=1e-9)
    assert schedule.logsnr(1.0).item() == pytest.approx(-15, abs=1e-9)


@given(RESOLUTIONS, RESOLUTIONS, st.floats(0, 1))
def test_a_shifted_schedule_is_moved_by_twice_the_log_of_the_resolutions_ratio_ends_included(
    image: int, noise: int, t: float
):
    shifted = CosineSchedule(image_resolution=image, noise_resolution=noise).logsnr(t).item()
    assert shifted == pytest.approx(cosine(t) + 2 * math.log(noise / image), abs=1e-9)


def test_the_shift_keeps_the_noise_of_the_average_pooled_image():
    # averaging 2x2 pixels divides the noise's variance by four and leaves a flat image: SNR(64 at 32) = SNR / 4
    wide = CosineSchedule(image_resolution=64, noise_resolution=32).logsnr(GRID)
    pooled = CosineSchedule(image_resolution=32, noise_resolution=32).logsnr(GRID)
    assert torch.allclose((wide - pooled).exp(), torch.full_like(GRID, 0.25))


@given(st.floats(0, 1), st.sampled_from(["A", "B"]), st.sampled_from([64, 128, 512]))
def test_interpolation_weighs_the_two_shifted_schedules_by_time(t: float, direction: str, resolution: int):
    low, high = cosine(t) + 2 * math.log(32 / resolution), cosine(t)
    expected = t * low + (1 - t) * high if direction == "B" else t * high + (1 - t) * low
    found = interpolated(resolution, resolution, direction).logsnr(t).item()
    assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("resolution", [64, 128, 512])
def test_interpolations_A_and_B_swap_ends_and_meet_in_the_middle(resolution: int):
    a, b = interpolated(resolution, resolution, "A"), interpolated(resolution, resolution, "B")
    low = CosineSchedule(image_resolution=resolution, noise_resolution=32)
    high = CosineSchedule(image_resolution=resolution, noise_resolution=resolution)
    assert torch.equal(b.logsnr(1.0), low.logsnr(1.0)) and torch.allclose(b.logsnr(0.0), high.logsnr(0.0))
    assert torch.allclose(a.logsnr(1.0), high.logsnr(1.0)) and torch.allclose(a.logsnr(0.0), low.logsnr(0.0))
    assert torch.allclose(a.logsnr(0.5), b.logsnr(0.5))


@pytest.mark.parametrize(("resolution", "direction"), BOUNDARIES)
def test_the_boundaries_of_eight_segments_are_those_of_the_reference_table(resolution: int, direction: str):
    times = torch.tensor([step / 8 for step in range(8, 0, -1)], dtype=torch.float64)
    found = interpolated(resolution, resolution, direction).logsnr(times)
    assert torch.allclose(found, torch.tensor(BOUNDARIES[resolution, direction], dtype=torch.float64), atol=0.06)


def test_interpolation_B_always_falls_and_A_does_not_from_32_to_1024():
    falls = {d: bool((interpolated(1024, 1024, d).logsnr(GRID).diff() < 0).all()) for d in "AB"}
    assert falls == {"A": False, "B": True}


@given(RESOLUTIONS, RESOLUTIONS, RESOLUTIONS)
def test_interpolation_B_falls_whenever_noise_grows_towards_the_noisy_end(image: int, one: int, other: int):
    start, end = sorted((one, other))
    schedule = interpolated(image, end, start=start)
    assert (schedule.logsnr(GRID).diff() < 0).all()


@given(st.floats(0, 1), RESOLUTIONS, RESOLUTIONS)
def test_time_inverts_logsnr(t: float, start: int, end: int):
    schedule = interpolated(512, max(start, end), start=min(start, end))
    assert schedule.time(schedule.logsnr(t)).item() == pytest.approx(t, abs=1e-9)


def test_times_beyond_the_ends_are_the_ends():
    assert CosineSchedule().time(torch.tensor([99.0, -99.0])).tolist() == pytest.approx([0.0, 1.0], abs=1e-12)


@given(st.floats(-30, 30))
def test_the_process_is_variance_preserving_and_alpha_over_sigma_is_half_the_logsnr(logsnr: float):
    alpha, sigma = alpha_sigma_from_logsnr(torch.tensor(logsnr, dtype=torch.float64))
    assert (alpha**2 + sigma**2).item() == pytest.approx(1, abs=1e-14)
    assert 2 * (alpha / sigma).log().item() == pytest.approx(logsnr, abs=1e-9)


def test_alpha_at_pure_noise_is_small_but_not_zero():
    alpha, sigma = CosineSchedule().alpha_sigma(1.0)
    assert alpha.item() == pytest.approx(math.exp(-7.5), rel=1e-6) and sigma < 1


def test_values_are_float64_whatever_comes_in():
    assert CosineSchedule().logsnr(torch.tensor([0.5], dtype=torch.float16)).dtype == torch.float64


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"image_resolution": 0}, "image_resolution"),
        ({"noise_resolution": -1}, "noise_resolution"),
        ({"noise_resolution_end": 0}, "noise_resolution_end"),
        ({"logsnr_min": 1.0, "logsnr_max": 1.0}, "logsnr_min"),
        ({"interpolation": "C"}, "interpolation"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused_by_name(settings: dict, named: str):
    with pytest.raises(ValueError, match=named):
        CosineSchedule(**settings)


@pytest.mark.parametrize("steps", [2, 3, 8, 32, 256])
def test_karras_times_reproduce_the_sigmas_of_equation_5(steps: int):
    schedule = CosineSchedule()
    times = karras_times(schedule, steps)
    expected = [(80 ** (1 / 7) + i / (steps - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(steps)]
    alpha, sigma = schedule.alpha_sigma(times[1:-1])
    assert torch.allclose(sigma / alpha, torch.tensor(expected[1:], dtype=torch.float64), rtol=1e-6)
    assert times[0] == 1 and times[-1] == 0 and len(times) == steps + 1
    assert (times.diff() < 0).all()


def test_one_karras_step_goes_from_noise_to_data():
    assert karras_times(CosineSchedule(), 1).tolist() == [1.0, 0.0]
    with pytest.raises(ValueError, match="steps"):
        karras_times(CosineSchedule(), 0)
