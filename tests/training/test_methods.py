"""Every method as a setting of the one objective: its target walked literally, its limits, and what it converges to."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from diffusion.plans import student_plan
from tests.kernels import paper_equations as paper
from tests.training.test_objective import EMPTY, SCHEDULE, Recorder, alpha_sigma, coefficients, generator, pictures
from training.distance import distance, mean_square
from training.loss import diffusion_loss, loss_at, mixed_loss, mixed_times
from training.objective import Objective, ect_stage, part_sizes
from training.self_teacher import SelfTeacher
from training.target import consistency_target
from training.times import Times, clean_times, ect_times, halved_times
from training.toy import SCHEDULE as PLAIN
from training.toy import Mixture, distil, endpoint_error, normal_quantiles, trajectory


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# progressive distillation


@pytest.mark.parametrize("rule", ["ddim", "addim"])
@pytest.mark.parametrize("segments", [1, 2, 4, 8])
def test_what_progressive_distillation_learns_is_one_step_to_where_two_of_the_teachers_lead(segments: int, rule: str):
    rng = np.random.default_rng(segments)
    z_t, x_ref, x_teacher = rng.normal(0, 1, (3, segments, 20))
    x_var, x_var_ref = rng.uniform(0, 0.3, (2, segments)) * (rule == "addim")
    times = Times(*(double(*((step + part) / segments for step in range(segments))) for part in (1.0, 0.5, 0.0)))
    walked, middle = [], []
    for row in range(segments):
        at_t, at_s, at_step = (coefficients((row + part) / segments) for part in (1.0, 0.5, 0.0))
        z_s = paper.addim(x_teacher[row], z_t[row], x_var[row], *at_t, *at_s)
        # a step that ends at 0 returns x_hat, as samplers do: nothing is added there
        z_step = paper.addim(x_ref[row], z_s, x_var_ref[row] * (row > 0), *at_s, *at_step)
        middle.append(z_s)
        walked.append(paper.inv_ddim(z_step, z_t[row], *at_t, *at_step))
    found = consistency_target(
        SCHEDULE,
        times,
        z_t=torch.tensor(z_t),
        x_ref=torch.tensor(x_ref),
        x_teacher=torch.tensor(x_teacher),
        x_var=torch.tensor(x_var),
        z_s=torch.tensor(np.stack(middle)),
        x_var_ref=torch.tensor(x_var_ref),
    )
    assert np.allclose(found.numpy(), np.stack(walked), rtol=0, atol=2e-10)


def test_progressive_distillation_asks_the_teacher_at_the_top_and_in_the_middle_of_a_segment_and_the_student_once():
    teacher, student, x = Recorder(lambda z, logsnr, condition: 0.4 * torch.sin(2 * z)), Recorder(), pictures()
    objective = Objective(method="pd", student_steps=4, eta=0.6, distance="v_mean_squared")
    losses = mixed_loss(student, teacher, (objective,), SCHEDULE, x, EMPTY, iteration=0, generator=generator())
    (z_t, logsnr_t, _), (z_s, logsnr_s, _) = teacher.calls
    assert len(student.calls) == 1 and torch.equal(student.calls[0][0], z_t)
    t, s = SCHEDULE.time(logsnr_t.double()), SCHEDULE.time(logsnr_s.double())
    assert torch.allclose((4 * t).round() / 4, t, atol=1e-5) and torch.allclose(
        t - s, torch.full_like(t, 1 / 8), atol=1e-5
    )
    for row in range(8):
        ends = (float(t[row]), float(s[row]), round(4 * float(t[row]) - 1) / 4)
        at_t, at_s, at_step = map(coefficients, ends)
        z, true = z_t[row].double().numpy(), x[row].double().numpy()
        x_teacher = at_t[0] * z - at_t[1] * 0.4 * np.sin(2 * z)
        first = paper.addim(x_teacher, z, 0.6 * np.mean((x_teacher - true) ** 2), *at_t, *at_s)
        assert np.allclose(z_s[row].numpy(), first, atol=1e-4)
        x_ref = at_s[0] * first - at_s[1] * 0.4 * np.sin(2 * first)
        x_var_ref = 0.6 * np.mean((x_ref - true) ** 2) * (ends[2] > 0)
        target = paper.inv_ddim(paper.addim(x_ref, first, x_var_ref, *at_s, *at_step), z, *at_t, *at_step)
        v_diff = 0.3 * z - (at_t[0] * z - target) / at_t[1]
        assert float(losses[row]) == pytest.approx(np.mean(v_diff**2), rel=5e-3)


@given(st.integers(1, 16), st.integers(1, 5), st.integers(0, 99))
def test_halved_times_visit_every_segment_equally_often(segments: int, times: int, seed: int):
    drawn = halved_times(segments * times, student_steps=segments, generator=generator(seed))
    steps = (drawn.t_step * segments).round().long()
    assert torch.equal(torch.bincount(steps, minlength=segments), torch.full((segments,), times))
    assert torch.equal(drawn.t, (steps + 1).double() / segments)
    assert torch.equal(drawn.s, (2 * steps + 1).double() / (2 * segments))


# TRACT


def test_tract_asks_the_students_average_at_s_and_with_no_average_left_it_is_consistency_distillation():
    student, average, teacher = Recorder(), Recorder(lambda z, *_: 0.2 * z), Recorder(lambda z, *_: torch.tanh(z))
    of = {"student_steps": 2, "teacher_steps_start": 16, "teacher_steps_end": 16}

    def loss(method: str, self_teacher: Recorder | None) -> Tensor:
        return mixed_loss(
            student, teacher, (Objective(method=method, **of),), SCHEDULE, pictures(), EMPTY,
            iteration=0, generator=generator(), self_teacher=self_teacher,
        )  # fmt: skip

    averaged = loss("tract", average)
    assert (len(student.calls), len(average.calls), len(teacher.calls)) == (1, 1, 1)
    assert not torch.equal(average.calls[0][1], student.calls[0][1])
    assert torch.equal(loss("tract", Recorder()), loss("cd", None)) and not torch.equal(averaged, loss("cd", None))


def test_the_self_teacher_takes_half_of_the_students_weights_once_an_iteration():
    student = nn.Linear(1, 1, bias=False)
    average = SelfTeacher(nn.Linear(1, 1, bias=False).requires_grad_(False), 0.5)
    for iteration, weight in enumerate((8.0, 4.0, 2.0)):
        for part in (student, average.network) if iteration == 0 else (student,):
            nn.init.constant_(part.weight, weight)
        average.follow(student, iteration)
        average.follow(student, iteration)  # the second part of an accumulated batch
    assert average.network.weight.item() == 0.5 * (0.5 * 8 + 0.5 * 4) + 0.5 * 2


# Easy Consistency Tuning


@given(st.sampled_from([1, 2, 4]), st.sampled_from([1.5, 2.0, 4.0]), st.integers(1, 9), st.integers(0, 99))
def test_easy_consistency_tunings_s_is_its_formula_between_t_and_the_boundary(
    segments: int, q: float, stage: int, seed: int
):
    drawn = ect_times(64, schedule=PLAIN, student_steps=segments, shrink=q, stage=stage, generator=generator(seed))
    for t, s, t_step in zip(drawn.t.tolist(), drawn.s.tolist(), drawn.t_step.tolist(), strict=True):
        assert t_step == pytest.approx((math.ceil(t * segments) - 1) / segments) and t_step <= s < t <= 1
        first, last = math.atan(math.exp(-7.5)), math.atan(math.exp(7.5))  # sigma / alpha of the cosine clipped at 15
        at_t, at_step = (math.tan(first + time * (last - first)) for time in (t, t_step))
        kept = 1 - (1 + 8 / (1 + math.exp(min(at_t, 700)))) / q**stage
        expected = at_step + (at_t - at_step) * max(kept, 0.0)
        assert math.tan(first + s * (last - first)) == pytest.approx(expected, rel=1e-6)
        assert (s == t_step) == (kept <= 0)


def test_easy_consistency_tuning_passes_its_stages_from_data_as_target_to_the_student_next_to_itself():
    objective = Objective(method="ect", anneal_iterations=80, ect_stages=8)
    assert [ect_stage(objective, at) for at in (0, 9, 10, 45, 79, 80, 10**6)] == [1, 1, 2, 5, 8, 8, 8]
    assert ect_stage(objective.model_copy(update={"anneal_iterations": 0}), 0) == 8
    early, late = (
        mixed_times((objective,), 256, schedule=PLAIN, iteration=at, generator=generator()) for at in (0, 80)
    )
    assert (early.s == 0).double().mean() > 0.6 and (late.s == 0).double().mean() == 0
    assert (late.t - late.s).max() < 0.05 < (early.t - early.s).max()


# diffusion, multiscale


def test_the_diffusion_setting_of_the_objective_is_the_diffusion_loss_and_asks_the_network_once():
    network, x = Recorder(lambda z, logsnr, condition: torch.tanh(z)), pictures().double()
    times, eps = clean_times(8, generator()), torch.randn(x.shape, generator=generator(1), dtype=torch.float64)
    objective = Objective(method="diffusion", distance="v_mean_squared")
    losses = loss_at(network, None, (objective,), SCHEDULE, x, EMPTY, times=times, eps=eps)
    ((z_t, logsnr, _),) = network.calls
    alpha, sigma = alpha_sigma(logsnr)
    assert torch.allclose(z_t, alpha * x + sigma * eps)
    expected = (torch.tanh(z_t) - (alpha * eps - sigma * x)).square().mean((1, 2, 3))
    # the target goes through x and back, which costs digits where sigma is small
    assert torch.allclose(losses, expected, rtol=1e-5)


@pytest.mark.parametrize("poolings", [0, 1, 2, 3])
def test_the_multiscale_loss_is_simple_diffusions_sum_over_pooled_differences(poolings: int):
    difference = torch.randn(3, 2, 8, 8, generator=generator(), dtype=torch.float64)
    total, weights = np.zeros(3), 0.0
    for level in range(poolings + 1):
        size = 8 // 2**level
        pooled = difference.numpy().reshape(3, 2, size, 2**level, size, 2**level).mean((3, 5))
        total += (1 / size) * (pooled**2).mean((1, 2, 3))
        weights += 1 / size
    found = mean_square(difference, poolings)
    assert np.allclose(found.numpy(), total / weights)
    objective, sigma = Objective(distance="v_mean_huber", huber_epsilon=0.1, poolings=poolings), torch.ones(3)
    assert torch.allclose(distance(objective, difference, sigma), (found + 0.01).sqrt() - 0.1)


def test_the_multiscale_loss_reaches_diffusion_and_refuses_sizes_that_cannot_be_halved():
    network, x = Recorder(lambda z, *_: torch.tanh(z)), pictures()
    plain, pooled = (diffusion_loss(network, SCHEDULE, x, EMPTY, generator(), poolings=n) for n in (0, 2))
    assert not torch.allclose(plain, pooled) and (pooled > 0).all()
    with pytest.raises(ValueError, match="the 8x8 that the network sees can be halved 3 times"):
        diffusion_loss(network, SCHEDULE, x, EMPTY, generator(), poolings=4)


# sampled guidance


def test_sampled_guidance_is_drawn_for_each_image_told_to_the_student_and_guides_the_teacher_but_not_its_variance():
    condition = torch.arange(8)[:, None] + 1

    def fake(z: Tensor, logsnr: Tensor, wanted: Tensor) -> Tensor:
        return 0.4 * z + 0.1 * wanted.view(-1, 1, 1, 1) * torch.sin(3 * z)

    x, student, teacher = pictures(), Recorder(), Recorder(fake)
    objective = Objective(
        student_steps=2, teacher_steps_start=8, teacher_steps_end=8, guidance_range=(0.5, 2.5), eta=0.6
    )
    mixed_loss(student, teacher, (objective,), SCHEDULE, x, condition, iteration=0, generator=generator())
    (z_s, logsnr_s, told), (z_t, logsnr_t, again) = student.calls
    assert torch.equal(told, again) and torch.equal(told[:, :1], condition) and told.shape == (8, 2)
    drawn = told[:, 1] / 1000
    assert torch.equal(((drawn - 0.5) / 2.0 * 8).floor().sort().values, torch.arange(8.0))  # one of each stratum
    assert [list(call[2].shape) for call in teacher.calls] == [[16, 1]]
    for row in range(8):
        z, true = z_t[row].double().numpy().ravel(), x[row].double().numpy().ravel()
        at_t, at_s = ([float(value[row]) for value in alpha_sigma(level)] for level in (logsnr_t, logsnr_s))
        named = 0.4 * z + 0.1 * (row + 1) * np.sin(3 * z)
        guided = named + float(drawn[row]) * (named - 0.4 * z)
        x_var = 0.6 * np.mean((at_t[0] * z - at_t[1] * named - true) ** 2)
        expected = paper.addim(at_t[0] * z - at_t[1] * guided, z, x_var, *at_t, *at_s)
        assert np.allclose(z_s[row].numpy().ravel(), expected, atol=3e-3, rtol=1e-3)


def test_a_teacher_that_is_told_its_guidance_is_told_the_students_and_asked_once():
    student, teacher = Recorder(), Recorder()
    objective = Objective(method="pd", student_steps=2, guidance_range=(0, 3), teacher_told=True, teacher_rule="ddim")
    condition = torch.ones(8, 1, dtype=torch.int64)
    mixed_loss(student, teacher, (objective,), SCHEDULE, pictures(), condition, iteration=0, generator=generator())
    (_, _, told), _ = teacher.calls
    assert torch.equal(told, student.calls[0][2]) and told.shape == (8, 2)


# shares of a batch


def test_objectives_share_a_batch_by_their_weights():
    objectives = [Objective(student_steps=k, weight=weight) for k, weight in ((1, 2), (2, 1), (4, 1))]
    assert part_sizes(objectives, 12) == [6, 3, 3]
    times = mixed_times(objectives, 12, schedule=SCHEDULE, iteration=0, generator=generator())
    assert (times.t_step[:6] == 0).all() and set((4 * times.t_step[9:]).tolist()) <= {0.0, 1.0, 2.0, 3.0}
    with pytest.raises(ValueError, match="10 cannot be parted in the proportions 2:1:1 among 3"):
        part_sizes(objectives, 10)


# what they converge to


def objective_of(method: str, steps: int, iterations: int, **changes: object) -> Objective:
    settings = {
        "method": method, "student_steps": steps, "teacher_rule": "ddim", "teacher_steps_start": 8,
        "teacher_steps_end": 64, "anneal_iterations": iterations // 2, "distance": "snr1_x_huber", "huber_epsilon": 1e-3,
    }  # fmt: skip
    return Objective.model_validate(settings | changes)


def test_a_tract_student_finds_the_exact_flow():
    student = distil(Mixture(), objective_of("tract", 2, 350), iterations=350, batch=256)
    # the teacher in two steps is 0.44 away
    assert endpoint_error(Mixture(), student, student_plan("s", 2), count=500) < 0.15


def test_progressive_distillation_halves_its_way_to_students_that_end_where_the_teachers_many_steps_do():
    mixture, teacher = Mixture(), None
    z = normal_quantiles(500)
    ends = {}
    for steps in (4, 2, 1):
        objective = objective_of("pd", steps, 300, distance="v_mean_squared")
        teacher = distil(mixture, objective, iterations=300, batch=256, teacher=teacher)
        ends[steps] = trajectory(teacher, student_plan("s", steps), z)[-1]
    eight = trajectory(mixture, student_plan("t", 8), z)[-1]
    for steps, largest in ((4, 0.04), (2, 0.1), (1, 0.15)):
        alone = trajectory(mixture, student_plan("t", steps), z)[-1]  # the teacher in as few steps as the student
        apart, far = (float((ends - eight).abs().median()) for ends in (ends[steps], alone))
        assert apart < largest < far


def test_easy_consistency_tuning_puts_points_on_the_modes_without_a_teacher():
    for steps in (1, 2):
        student = distil(Mixture(), objective_of("ect", steps, 450), iterations=450, batch=256)
        ends = trajectory(student, student_plan("s", steps), normal_quantiles(500))[-1].flatten()
        assert ends.abs().mean() == pytest.approx(1.0, abs=0.2) and (ends.abs() < 0.3).float().mean() < 0.2


def test_one_student_that_is_told_its_guidance_ends_where_each_guided_flow_does():
    mixture = Mixture()
    objective = objective_of("cd", 4, 500, guidance_range=(0.0, 2.0))
    student = distil(mixture, objective, iterations=500, batch=256, classes=True)
    z, errors = normal_quantiles(250), {}
    for w in (0.0, 1.0, 2.0):
        for label in (1, 2):
            condition = torch.tensor([[label]]).expand(250, 1)
            exact = mixture.flow(z, schedule=PLAIN, condition=condition, guidance=w)
            told = torch.cat([condition, torch.full((250, 1), int(1000 * w))], dim=1)
            ends = trajectory(student, student_plan("s", 4), z, condition=told)[-1]
            errors[w, label] = float((ends - exact).abs().median())
            if w == 2.0:  # the guidances are so far apart that the error tells them apart
                unguided = mixture.flow(z, schedule=PLAIN, condition=condition)
                assert float((unguided - exact).abs().median()) > 3 * errors[w, label]
    assert max(errors.values()) < 0.08


def test_the_guided_flow_of_the_mixture_is_the_teachers_own_in_many_steps():
    mixture, z = Mixture(), normal_quantiles(100)
    condition = torch.full((100, 1), 2)
    many = trajectory(mixture.guided(1.5), student_plan("t", 512), z, condition=condition)[-1]
    exact = mixture.flow(z, schedule=PLAIN, condition=condition, guidance=1.5)
    assert float((many - exact).abs().max()) < 0.02
