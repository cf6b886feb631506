"""Plans and the rows of numbers they become, against the paper's equations in NumPy float64."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from diffusion.plans import Hop, Plan, coefficient_row, plan, student_plan, teacher_plan, uniform_times
from diffusion.schedule import CosineSchedule
from diffusion.variance import MeasuredVariance, analytic_variance
from kernels import Column, hop
from tests.kernels import paper_equations as paper

SCHEDULE = CosineSchedule(image_resolution=32, noise_resolution=32)
TIMES = st.tuples(st.integers(1, 999), st.integers(1, 1000)).filter(lambda pair: pair[0] < pair[1])


def coefficients(time: float) -> tuple[float, float]:
    """alpha and sigma from the schedule's formula, not from the schedule."""
    first, last = math.atan(math.exp(-7.5)), math.atan(math.exp(7.5))
    angle = first + time * (last - first)
    return math.cos(angle), math.sin(angle)


def take(rule: str, t: float, s: float, z: np.ndarray, x: np.ndarray, noise: np.ndarray | None = None) -> np.ndarray:
    """Take one hop with the code under test, from the x_hat of the caller's choice."""
    alpha_t, sigma_t = coefficients(t)
    v = (alpha_t * z - x) / sigma_t
    row = coefficient_row(Hop(member="m", t=t, s=s, rule=rule), SCHEDULE, variance=analytic_variance)
    z_s = hop(
        torch.tensor(z[None], dtype=torch.float32),
        torch.tensor(v[None], dtype=torch.float32),
        row.float()[None],
        noise=None if noise is None else torch.tensor(noise[None], dtype=torch.float32),
    )
    return z_s[0].double().numpy()


@given(TIMES, st.integers(0, 2**31))
def test_every_rule_is_its_equation(pair: tuple[int, int], seed: int):
    s, t = pair[0] / 1000, pair[1] / 1000
    rng = np.random.default_rng(seed)
    x, z, noise = rng.normal(0, 0.5, 48), rng.normal(0, 1, 48), rng.normal(0, 1, 48)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = coefficients(t), coefficients(s)
    around = (alpha_t, sigma_t, alpha_s, sigma_s)
    x_var = 0.1 / (2 + (alpha_t / sigma_t) ** 2)
    added = abs(alpha_s - alpha_t * sigma_s / sigma_t) * math.sqrt(x_var)
    expected = {
        "ddim": paper.ddim(x, z, *around),
        "heun": paper.ddim(x, z, *around),  # its Euler half
        "addim": paper.addim(x, z, x_var, *around),
        "ancestral": paper.ancestral(x, z, noise, *around),
        "noise_ddim": paper.ddim(x, z, *around) + added * noise,
    }
    for rule, value in expected.items():
        # float32 forms x_hat and eps_hat from z_t and v, whose size grows as x_hat's error over sigma_t
        tolerance = 3e-6 * (1 + np.abs((alpha_t * z - x) / sigma_t).max())
        assert np.allclose(take(rule, t, s, z, x, noise), value, rtol=0, atol=tolerance), rule


@given(TIMES)
def test_ancestral_rows_have_the_mean_and_variance_of_equation_1(pair: tuple[int, int]):
    s, t = pair[0] / 1000, pair[1] / 1000
    (alpha_t, sigma_t), (alpha_s, sigma_s) = coefficients(t), coefficients(s)
    between = alpha_t / alpha_s
    between_variance = sigma_t**2 - between**2 * sigma_s**2
    variance = 1 / (1 / sigma_s**2 + between**2 / between_variance)
    from_z, from_x = variance * between / between_variance, variance * alpha_s / sigma_s**2
    row = coefficient_row(Hop(member="m", t=t, s=s, rule="ancestral"), SCHEDULE)
    # z_t = alpha_t x_hat + sigma_t eps_hat turns (from_z, from_x) into weights of x_hat and eps_hat
    assert row[Column.OUT_X].item() == pytest.approx(from_z * alpha_t + from_x, rel=1e-9)
    assert row[Column.OUT_EPS].item() == pytest.approx(from_z * sigma_t, rel=1e-9)
    assert row[Column.OUT_NOISE].item() ** 2 == pytest.approx(variance, rel=1e-6)


def test_noise_ddim_has_the_moments_of_a_hop_from_a_random_x():
    # equation 10: with x drawn from N(x_hat, x_var), DDIM's z_s has DDIM's mean and variance (..)^2 x_var
    t, s = 0.7, 0.4
    (alpha_t, sigma_t), (alpha_s, sigma_s) = coefficients(t), coefficients(s)
    rng = np.random.default_rng(5)
    x_hat, z = rng.normal(0, 0.5, 4), rng.normal(0, 1, 4)
    x_var = 0.1 / (2 + (alpha_t / sigma_t) ** 2)
    draws = x_hat + math.sqrt(x_var) * rng.normal(0, 1, (40_000, 4))
    simulated = paper.ddim(draws, z, alpha_t, sigma_t, alpha_s, sigma_s)
    repeated = np.tile(z, 10_000), np.tile(x_hat, 10_000)
    taken = take("noise_ddim", t, s, *repeated, rng.normal(0, 1, 40_000)).reshape(-1, 4)
    assert np.allclose(taken.mean(0), simulated.mean(0), atol=5 * simulated.std(0).max() / 100)
    assert np.allclose(taken.std(0), simulated.std(0), rtol=0.05)


@pytest.mark.parametrize("rule", ["ddim", "addim", "ancestral", "noise_ddim", "heun"])
def test_the_last_hop_returns_x_hat_whatever_the_rule(rule: str):
    rng = np.random.default_rng(1)
    x, z = rng.normal(0, 0.5, 12), rng.normal(0, 1, 12)
    assert np.allclose(take(rule, 0.25, 0.0, z, x, rng.normal(0, 9, 12)), x, atol=1e-5)
    assert not Hop(member="m", t=0.25, s=0.0, rule=rule).random


@given(st.integers(1, 600), st.sampled_from(["ddim", "addim", "ancestral", "noise_ddim", "heun"]))
def test_plans_fall_from_1_to_0_without_a_gap(steps: int, rule: str):
    for made in (student_plan("student", steps), teacher_plan("teacher", steps, rule=rule)):
        times = [made.hops[0].t, *(each.s for each in made.hops)]
        assert times[0] == 1 and times[-1] == 0 and all(a > b for a, b in zip(times, times[1:], strict=False))
        assert all(before.s == after.t for before, after in zip(made.hops, made.hops[1:], strict=False))


@given(st.integers(1, 600))
def test_steps_count_network_evaluations(steps: int):
    assert student_plan("s", steps).steps == teacher_plan("t", steps).steps == steps
    heun = teacher_plan("t", steps, rule="heun").steps
    assert heun == (steps if steps % 2 else steps - 1)


@given(st.integers(1, 64), st.integers(1, 64))
def test_boundaries_that_are_equal_fractions_are_equal_floats(coarse: int, multiple: int):
    fine = uniform_times(coarse * multiple)
    assert uniform_times(coarse) == fine[::multiple]
    assert fine == [float(Fraction(index, coarse * multiple)) for index in range(coarse * multiple, -1, -1)]


def test_a_plan_may_change_members_at_a_shared_boundary():
    hops = student_plan("student-4", 4).hops[:2] + student_plan("student-2", 2).hops[1:]
    mixed = Plan(hops=hops)
    assert mixed.steps == 3 and mixed.members == ("student-4", "student-2")


@pytest.mark.parametrize(
    "pairs", [[(0.5, 0.0)], [(1.0, 0.5)], [(1.0, 0.5), (0.4, 0.0)], [(1.0, 0.5), (0.5, 0.5), (0.5, 0.0)], []]
)
def test_hops_that_do_not_connect_are_no_plan(pairs: list[tuple[float, float]]):
    with pytest.raises(ValidationError):
        Plan(hops=tuple(Hop(member="m", t=t, s=s) for t, s in pairs))


def test_students_do_not_clip_and_teachers_do():
    assert not any(each.clip for each in student_plan("s", 4).hops)
    assert all(each.clip for each in teacher_plan("t", 4).hops)
    assert {each.rule for each in teacher_plan("t", 4).hops} == {"addim"}


def test_rules_that_put_variance_back_cannot_do_without_it():
    for rule in ("addim", "noise_ddim"):
        with pytest.raises(ValueError, match=rule):
            coefficient_row(Hop(member="m", t=0.5, s=0.25, rule=rule), SCHEDULE)


def test_guidance_and_clipping_are_columns_of_the_row():
    row = coefficient_row(Hop(member="m", t=0.5, s=0.25, clip=True), SCHEDULE, guidance=1.5)
    assert row[Column.GUIDANCE] == 1.5 and row[Column.CLIP] == 1 and row[Column.Z_VAR] == 0


def test_a_plan_of_no_steps_is_refused():
    with pytest.raises(ValueError, match="steps"):
        uniform_times(0)


def test_plans_survive_json():
    made = plan("m", [1.0, 0.7, 0.1, 0.0], rule="heun", clip=True)
    assert Plan.model_validate_json(made.model_dump_json()) == made


@given(st.floats(-40, 40))
def test_the_analytic_variance_is_a_tenth_of_a_gaussian_posteriors(logsnr: float):
    # prior N(0, 1/2), z = alpha x + sigma eps: the posterior's precision is 2 + SNR
    assert analytic_variance(torch.tensor(logsnr, dtype=torch.float64)).item() == pytest.approx(
        0.1 / (2 + math.exp(logsnr)), rel=1e-12
    )


def test_the_measured_variance_is_linear_between_its_levels_and_flat_beyond_them():
    table = MeasuredVariance(eta=0.5, logsnr=(-4.0, 0.0, 2.0), error=(0.8, 0.4, 0.1))
    asked = torch.tensor([-9.0, -4.0, -1.0, 0.0, 1.5, 2.0, 9.0], dtype=torch.float64)
    expected = 0.5 * np.interp(asked.numpy(), [-4, 0, 2], [0.8, 0.4, 0.1])
    assert np.allclose(table(asked).numpy(), expected)


@pytest.mark.parametrize("levels", [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0, 2.0)])
def test_a_variance_table_that_does_not_rise_or_fit_is_refused(levels: tuple[float, ...]):
    with pytest.raises(ValidationError):
        MeasuredVariance(logsnr=levels, error=(0.5, 0.4))
