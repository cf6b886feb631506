"""The world whose answers are known: its teacher, its flow, and students that have to find it."""

import math

import pytest
import torch

from diffusion.plans import student_plan
from training.objective import Objective
from training.toy import SCHEDULE, Mixture, Student, distil, endpoint_error, normal_quantiles, trajectory


def test_the_mixtures_teacher_is_the_posterior_mean_by_numerical_integration():
    mixture = Mixture(mean=0.8, spread=0.3)
    x = torch.linspace(-4, 4, 80_001, dtype=torch.float64)
    prior = sum(torch.exp(-0.5 * ((x - sign * 0.8) / 0.3) ** 2) for sign in (-1, 1))
    for t in (0.05, 0.3, 0.6, 0.95):
        alpha, sigma = (float(value) for value in SCHEDULE.alpha_sigma(t))
        for z in (-1.3, -0.2, 0.0, 0.7):
            posterior = prior * torch.exp(-0.5 * ((z - alpha * x) / sigma) ** 2)
            expected = float((posterior * x).sum() / posterior.sum())
            v = mixture(torch.tensor([[z]], dtype=torch.float64), SCHEDULE.logsnr(t)[None])
            assert alpha * z - sigma * float(v) == pytest.approx(expected, abs=1e-6)


def test_in_many_dimensions_the_other_axes_are_a_single_normal():
    mixture, plain = Mixture(), Mixture(mean=0.0)
    z = torch.randn(3, 2, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logsnr = torch.tensor([-3.0, 0.0, 3.0], dtype=torch.float64)
    v, other = mixture(z, logsnr).flatten(1), plain(z, logsnr).flatten(1)
    assert torch.equal(v[:, 1:], other[:, 1:]) and not torch.allclose(v[:, 0], other[:, 0])


def test_the_flow_of_a_single_normal_only_scales_it():
    alone, z = Mixture(mean=0.0, spread=0.4), torch.linspace(-2, 2, 9, dtype=torch.float64).view(-1, 1)

    def width(t: float) -> float:
        alpha, sigma = (float(value) for value in SCHEDULE.alpha_sigma(t))
        return math.hypot(alpha * 0.4, sigma)

    for t, s in ((1.0, 0.0), (0.8, 0.3)):
        assert torch.allclose(alone.flow(z, t=t, s=s, schedule=SCHEDULE), z * width(s) / width(t), atol=1e-9)


def test_the_flow_takes_noise_to_the_mixture_rank_by_rank():
    mixture, z = Mixture(), normal_quantiles(501)
    x = mixture.flow(z, schedule=SCHEDULE).flatten()
    points = torch.linspace(-2.5, 2.5, 5001, dtype=torch.float64)
    cdf = torch.cumulative_trapezoid(mixture.density(points, 0.0), points)
    ranks = cdf[torch.searchsorted(points, x).clamp(max=len(cdf) - 1)]
    assert torch.allclose(ranks, (torch.arange(501, dtype=torch.float64) + 0.5) / 501, atol=2e-3)


def test_draws_have_the_mixtures_density():
    mixture = Mixture()
    x = mixture.draw((20_000, 2, 1, 1), torch.Generator().manual_seed(0)).flatten(1)
    assert x.mean(0).abs().max() < 0.03 and x[:, 1].std() == pytest.approx(0.25, rel=0.03)
    assert x[:, 0].abs().mean() == pytest.approx(1.0, rel=0.01)


def test_a_students_segment_is_the_one_below_a_boundary():
    student = Student(segments=4)
    seen = []
    student.layers.register_forward_pre_hook(lambda module, given: seen.append(given[0][:, -4:].argmax(1).tolist()))
    times = torch.tensor([1.0, 0.76, 0.75, 0.51, 0.5, 0.26, 0.25, 0.01, 0.0])
    student(torch.zeros(9, 1), SCHEDULE.logsnr(times).float())
    assert seen == [[3, 3, 2, 2, 1, 1, 0, 0, 0]]


@pytest.mark.parametrize(("steps", "iterations", "largest"), [(1, 500, 0.25), (2, 400, 0.15), (4, 300, 0.08)])
def test_distilled_students_find_the_exact_flow(steps: int, iterations: int, largest: float):
    # the teacher itself, taken in as few steps, is 1.0, 0.44 and 0.11 away
    objective = Objective(
        student_steps=steps, teacher_rule="ddim", teacher_steps_start=8, teacher_steps_end=64,
        anneal_iterations=iterations // 2, distance="snr1_x_huber", huber_epsilon=1e-3,
    )  # fmt: skip
    student = distil(Mixture(), objective, iterations=iterations, batch=256)
    assert endpoint_error(Mixture(), student, student_plan("s", steps), count=500) < largest


def test_consistency_training_needs_no_teacher_to_put_points_on_the_modes():
    objective = Objective(
        method="ct", student_steps=4, teacher_steps_start=8, teacher_steps_end=32, anneal_iterations=150,
        distance="snr1_x_huber", huber_epsilon=1e-3,
    )  # fmt: skip
    student = distil(Mixture(), objective, iterations=300, batch=256)
    ends = trajectory(student, student_plan("s", 4), normal_quantiles(500))[-1].flatten()
    assert ends.abs().mean() == pytest.approx(1.0, abs=0.15) and (ends.abs() < 0.3).float().mean() < 0.12
