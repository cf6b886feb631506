"""The objective against Algorithm 1 walked literally, and against the limits the paper names."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from diffusion.schedule import CosineSchedule
from tests.kernels import paper_equations as paper
from training.distance import distance
from training.draws import stratified_uniform
from training.loss import diffusion_loss, loss_at, mixed_loss, mixed_times
from training.objective import Objective, teacher_steps
from training.target import consistency_target
from training.times import Times, sample_times

SCHEDULE = CosineSchedule(image_resolution=64, noise_resolution=32, noise_resolution_end=64)
SEGMENTS = [1, 2, 4, 8, 16]
EMPTY = torch.zeros(8, 0, dtype=torch.int64)


def coefficients(t: float) -> tuple[float, float]:
    """alpha and sigma of the schedule interpolated from 32 to 64 at 64 pixels, from its formula."""
    first, last = math.atan(math.exp(-7.5)), math.atan(math.exp(7.5))
    logsnr = -2 * math.log(math.tan(first + t * (last - first))) + t * 2 * math.log(32 / 64)
    return 1 / math.sqrt(1 + math.exp(-logsnr)), 1 / math.sqrt(1 + math.exp(logsnr))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(batch: int = 8, seed: int = 3, size: int = 8) -> Tensor:
    return torch.randn(batch, 1, size, size, generator=generator(seed)).clamp(-1, 1)


class Recorder:
    """A network of one formula that remembers what it was asked."""

    def __init__(self, formula=lambda z, logsnr, condition: 0.3 * z):
        self.formula, self.calls = formula, []

    def __call__(self, z: Tensor, logsnr: Tensor, condition: Tensor) -> Tensor:
        self.calls.append((z, logsnr, condition))
        return self.formula(z, logsnr, condition)


def alpha_sigma(logsnr: Tensor) -> tuple[Tensor, Tensor]:
    logsnr = logsnr.double().view(-1, 1, 1, 1)
    return torch.sigmoid(logsnr).sqrt(), torch.sigmoid(-logsnr).sqrt()


@pytest.mark.parametrize("rule", ["ddim", "addim"])
@pytest.mark.parametrize("segments", SEGMENTS)
def test_the_target_in_closed_form_is_algorithm_1_walked_literally(segments: int, rule: str):
    total, rng = 64, np.random.default_rng(segments)
    per_segment = total // segments
    grid = [(step, n_rel) for step in range(segments) for n_rel in range(1, per_segment + 1)]
    ends = [(step / segments, step / segments + n_rel / total) for step, n_rel in grid]
    z_t, x_ref, x_teacher = rng.normal(0, 1, (3, total, 20))
    x_var = rng.uniform(0, 0.3, total) if rule == "addim" else np.zeros(total)
    walked = []
    for row, (t_step, t) in enumerate(ends):
        at_t, at_step = coefficients(t), coefficients(t_step)
        s = t - 1 / total
        at_s = coefficients(s)
        z_s = paper.addim(x_teacher[row], z_t[row], x_var[row], *at_t, *at_s)
        z_ref = z_s if grid[row][1] == 1 else paper.ddim(x_ref[row], z_s, *at_s, *at_step)
        walked.append(paper.inv_ddim(z_ref, z_t[row], *at_t, *at_step))
    times = Times(
        t=torch.tensor([t for _, t in ends], dtype=torch.float64),
        s=torch.tensor([(t * total - 1) / total for _, t in ends], dtype=torch.float64),
        t_step=torch.tensor([t_step for t_step, _ in ends], dtype=torch.float64),
    )
    found = consistency_target(
        SCHEDULE,
        times,
        z_t=torch.tensor(z_t),
        x_ref=torch.tensor(x_ref),
        x_teacher=torch.tensor(x_teacher),
        x_var=torch.tensor(x_var) if rule == "addim" else 0.0,
    )
    assert np.allclose(found.numpy(), np.stack(walked), rtol=0, atol=2e-10)


@given(st.integers(0, 15), st.integers(1, 80), st.integers(2, 80))
def test_the_weight_of_the_teacher_is_one_beside_the_boundary_and_falls_away_from_it(step: int, n_rel: int, more: int):
    per_segment, segments = 80, 16
    total = per_segment * segments

    def weight(n: int) -> float:
        k = step * per_segment + n
        times = Times(
            *(torch.tensor([value], dtype=torch.float64) for value in (k / total, (k - 1) / total, step / segments))
        )
        zero, one = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
        return float(consistency_target(SCHEDULE, times, z_t=zero, x_ref=zero, x_teacher=one))

    rho = [
        alpha / sigma
        for alpha, sigma in map(coefficients, ((step * 80 + n_rel) / total, (step * 80 + n_rel - 1) / total))
    ]
    alpha, sigma = coefficients(step / segments)
    assert weight(n_rel) == pytest.approx((rho[1] - rho[0]) / (alpha / sigma - rho[0]), rel=1e-6)
    assert weight(1) == 1.0 and 0 < weight(n_rel) <= 1
    assert weight(more) < 1


def test_training_with_as_many_segments_as_teacher_steps_is_the_diffusion_loss():
    objective = Objective(
        method="ct", student_steps=32, teacher_steps_start=32, teacher_steps_end=32, distance="v_mean_squared"
    )
    network, x = Recorder(lambda z, logsnr, condition: torch.tanh(z)), pictures()
    losses = mixed_loss(network, None, (objective,), SCHEDULE, x, EMPTY, iteration=0, generator=generator())
    z, logsnr, _ = network.calls[-1]
    alpha, sigma = alpha_sigma(logsnr)
    eps = (z.double() - alpha * x) / sigma
    expected = (torch.tanh(z) - (alpha * eps - sigma * x)).square().mean((1, 2, 3))
    assert torch.allclose(losses.double(), expected, rtol=1e-3, atol=1e-5)


def test_the_diffusion_loss_is_the_mean_square_of_v_minus_its_definition():
    network, x = Recorder(lambda z, logsnr, condition: torch.tanh(z)), pictures()
    losses = diffusion_loss(network, SCHEDULE, x, EMPTY, generator())
    z, logsnr, _ = network.calls[-1]
    alpha, sigma = alpha_sigma(logsnr)
    eps = (z.double() - alpha * x) / sigma
    expected = (torch.tanh(z) - (alpha * eps - sigma * x)).square().mean((1, 2, 3))
    assert torch.allclose(losses.double(), expected, rtol=1e-3, atol=1e-4)


def test_with_one_segment_the_target_is_the_students_own_x_at_s_as_in_a_consistency_model():
    k = torch.arange(8, 65, dtype=torch.float64)
    times = Times(t=k / 64, s=(k - 1) / 64, t_step=torch.zeros_like(k))
    x_ref, x_teacher = torch.randn(2, 57, 5, generator=generator(), dtype=torch.float64)
    target = consistency_target(SCHEDULE, times, z_t=x_ref, x_ref=x_ref, x_teacher=x_teacher)
    # the clipped end leaves alpha / sigma = 1808 at t = 0 where the paper's would be infinite
    assert ((target - x_ref).abs() <= 0.01 * (x_teacher - x_ref).abs()).all()


def loss_of(objective: Objective, *, teacher: Recorder | None = None, seed: int = 0) -> Tensor:
    teacher = teacher or Recorder(lambda z, logsnr, condition: 0.5 * z)
    return mixed_loss(
        Recorder(), teacher, (objective,), SCHEDULE, pictures(), EMPTY, iteration=0, generator=generator(seed)
    )


def test_addim_with_eta_zero_is_ddim():
    with_zero = loss_of(Objective(student_steps=4, eta=0.0))
    assert torch.allclose(with_zero, loss_of(Objective(student_steps=4, teacher_rule="ddim")), rtol=1e-5, atol=1e-7)
    assert not torch.allclose(with_zero, loss_of(Objective(student_steps=4, eta=0.75)), rtol=1e-3)


def test_the_student_is_asked_at_s_then_at_t_and_the_teacher_once_at_t():
    network, teacher = Recorder(), Recorder()
    objective = Objective(student_steps=4, teacher_steps_start=16, teacher_steps_end=16)
    mixed_loss(network, teacher, (objective,), SCHEDULE, pictures(), EMPTY, iteration=0, generator=generator())
    (_, logsnr_s, _), (z_t, logsnr_t, _) = network.calls
    assert (
        len(teacher.calls) == 1 and torch.equal(teacher.calls[0][0], z_t) and torch.equal(teacher.calls[0][1], logsnr_t)
    )
    t, s = SCHEDULE.time(logsnr_t.double()), SCHEDULE.time(logsnr_s.double())
    assert torch.allclose(t - s, torch.full_like(t, 1 / 16), atol=2e-4)


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.3, 0.7)])
def test_z_s_is_one_addim_step_of_the_guided_teacher_whose_variance_is_the_unguided_ones(interval: tuple[float, float]):
    condition = torch.arange(8)[:, None] + 1

    def fake(z: Tensor, logsnr: Tensor, wanted: Tensor) -> Tensor:
        return 0.4 * z + 0.2 * wanted.view(-1, 1, 1, 1) * torch.sin(3 * z)

    x, student, w = pictures(), Recorder(), 1.5
    steps = {"student_steps": 2, "teacher_steps_start": 8, "teacher_steps_end": 8}
    objective = Objective(**steps, guidance=w, guidance_interval=interval, eta=0.6)
    teacher = Recorder(fake)
    mixed_loss(student, teacher, (objective,), SCHEDULE, x, condition, iteration=0, generator=generator())
    (z_s, logsnr_s, _), (z_t, logsnr_t, _) = student.calls
    assert [list(call[2][:, 0]) for call in teacher.calls] == [[*range(1, 9), *[0] * 8]]
    acts = [interval[0] <= time <= interval[1] for time in SCHEDULE.time(logsnr_t.double()).tolist()]
    assert any(acts) and all(acts) == (interval == (0.0, 1.0))
    for row in range(8):
        z, true = z_t[row].double().numpy().ravel(), x[row].double().numpy().ravel()
        (alpha_t, sigma_t), (alpha_s, sigma_s) = (
            [float(value[row]) for value in alpha_sigma(level)] for level in (logsnr_t, logsnr_s)
        )
        plain = 0.4 * z
        named = 0.4 * z + 0.2 * (row + 1) * np.sin(3 * z)
        unguided, guided = (alpha_t * z - sigma_t * v for v in (named, named + acts[row] * w * (named - plain)))
        x_var = 0.6 * np.mean((unguided - true) ** 2)
        expected = paper.addim(guided, z, x_var, alpha_t, sigma_t, alpha_s, sigma_s)
        assert np.allclose(z_s[row].numpy().ravel(), expected, atol=3e-3, rtol=1e-3)


def test_the_analytic_variance_is_an_option():
    fixed = Objective(student_steps=4, x_var="analytic")
    assert not torch.allclose(loss_of(fixed), loss_of(Objective(student_steps=4)), rtol=1e-3)


def test_consistency_training_asks_no_teacher():
    assert loss_of(Objective(method="ct", student_steps=4), teacher=Recorder(lambda *_: 1 / 0)).isfinite().all()


def test_only_the_prediction_at_t_has_a_gradient():
    scale = torch.tensor(0.3, requires_grad=True)
    x, objective = pictures(), Objective(student_steps=1, teacher_steps_start=16, distance="v_mean_squared")
    calls = []

    def network(z: Tensor, logsnr: Tensor, condition: Tensor) -> Tensor:
        calls.append(torch.is_grad_enabled())
        return scale * z

    mixed_loss(
        network, Recorder(), (objective,), SCHEDULE, x, EMPTY, iteration=0, generator=generator()
    ).mean().backward()
    assert calls == [False, True] and scale.grad.abs() > 0


MIXED = tuple(
    Objective(student_steps=steps, teacher_steps_start=start, teacher_steps_end=64, guidance=0.7, distance=distance)
    for steps, start, distance in ((1, 8, "snr1_x_huber"), (4, 16, "v_mean_huber"), (16, 32, "v_mean_squared"))
)


def test_the_loss_of_a_mixed_batch_is_that_of_its_parts_with_three_evaluations_in_all():
    def formula(z: Tensor, logsnr: Tensor, condition: Tensor) -> Tensor:
        return torch.tanh(z) * (0.3 + 0.1 * condition.view(-1, 1, 1, 1)) + 0.01 * logsnr.view(-1, 1, 1, 1)

    x, condition = pictures(12).double(), torch.arange(12)[:, None] % 4
    student, teacher = Recorder(formula), Recorder(lambda z, logsnr, condition: 0.5 * formula(z, logsnr, condition))
    mixed = mixed_loss(student, teacher, MIXED, SCHEDULE, x, condition, iteration=30_000, generator=generator(5))
    assert [len(call[0]) for call in student.calls + teacher.calls] == [
        12,
        12,
        24,
    ]  # the guided teacher's batch is double
    draws = generator(5)
    times = mixed_times(MIXED, 12, schedule=SCHEDULE, iteration=30_000, generator=draws)
    eps = torch.randn(x.shape, generator=draws)
    for part, objective in enumerate(MIXED):
        rows = slice(4 * part, 4 * part + 4)
        mine = Times(t=times.t[rows], s=times.s[rows], t_step=times.t_step[rows])
        steps = round(teacher_steps(objective, 30_000) / objective.student_steps) * objective.student_steps
        assert torch.allclose(mine.t - mine.s, torch.full((4,), 1 / steps, dtype=torch.float64))
        apart = loss_at(formula, teacher, (objective,), SCHEDULE, x[rows], condition[rows], times=mine, eps=eps[rows])
        assert torch.allclose(mixed[rows], apart, rtol=1e-9, atol=1e-12) and apart.min() > 0


def test_the_times_of_a_mixed_batch_are_each_parts_own():
    times = mixed_times(MIXED, 96, schedule=SCHEDULE, iteration=0, generator=generator())
    for part, (segments, n_teacher) in enumerate(((1, 8), (4, 16), (16, 32))):
        rows = slice(32 * part, 32 * part + 32)
        assert torch.equal(times.t[rows] - times.s[rows], torch.full((32,), 1 / n_teacher, dtype=torch.float64))
        assert set((times.t_step[rows] * segments).tolist()) == {float(k) for k in range(segments)}


def test_a_mixed_batch_that_cannot_be_parted_or_asks_the_teacher_for_two_things_is_refused():
    with pytest.raises(ValueError, match="8 cannot be parted equally among 3"):
        mixed_times(MIXED, 8, schedule=SCHEDULE, iteration=0, generator=generator())
    unlike = (Objective(guidance=0.0), Objective(guidance=1.0))
    with pytest.raises(ValueError, match="must agree"):
        mixed_loss(Recorder(), Recorder(), unlike, SCHEDULE, pictures(), EMPTY, iteration=0, generator=generator())


@given(st.integers(0, 120_000))
def test_teacher_steps_rise_log_linearly_from_64_to_1280(iteration: int):
    expected = 64 * 20 ** min(iteration / 100_000, 1.0)
    assert abs(teacher_steps(Objective(), iteration) - expected) <= 0.5 + 1e-6


def test_teacher_steps_start_and_end_where_they_should():
    objective = Objective()
    assert [teacher_steps(objective, i) for i in (0, 50_000, 100_000, 10**9)] == [64, 286, 1280, 1280]
    assert teacher_steps(Objective(anneal_iterations=0), 0) == 1280


@given(st.sampled_from([1, 2, 3, 4, 8, 16]), st.integers(1, 200), st.integers(1, 4), st.integers(0, 99))
def test_times_are_uniform_over_a_grid_that_holds_every_boundary(segments: int, n_teacher: int, times: int, seed: int):
    per_segment = max(1, round(n_teacher / segments))
    total = per_segment * segments
    batch = total * times
    drawn = sample_times(batch, student_steps=segments, n_teacher=n_teacher, generator=generator(seed))
    grid = torch.round(drawn.t * total).long()
    assert torch.equal(drawn.t, grid.double() / total) and torch.equal(drawn.s, (grid - 1).double() / total)
    # stratified: a batch of a multiple of T visits every grid point equally often
    assert torch.equal(torch.bincount(grid, minlength=total + 1), torch.tensor([0] + [times] * total))
    step = (grid - 1) // per_segment
    assert torch.equal(drawn.t_step, torch.tensor([k / segments for k in step.tolist()], dtype=torch.float64))
    n_rel = grid - step * per_segment
    assert torch.equal(drawn.s == drawn.t_step, n_rel == 1) and (drawn.s >= drawn.t_step).all() and drawn.t.max() == 1


@given(st.integers(1, 300), st.integers(0, 99))
def test_stratified_numbers_are_one_of_each_stratum_in_random_order(batch: int, seed: int):
    numbers = stratified_uniform(batch, generator(seed))
    assert torch.equal((numbers * batch).floor().long().sort().values, torch.arange(batch))
    if batch > 20:
        assert not torch.equal(numbers, numbers.sort().values)


@given(st.sampled_from(["v_mean_huber", "snr1_x_huber", "v_mean_squared"]), st.floats(1e-4, 1.0), st.integers(0, 99))
def test_every_distance_is_its_formula(name: str, epsilon: float, seed: int):
    rng = np.random.default_rng(seed)
    v_diff, sigma = rng.normal(0, 1, (5, 2, 3, 3)), rng.uniform(0.001, 1, 5)
    x_diff = sigma[:, None, None, None] * v_diff
    snr_plus_one = 1 / sigma**2
    expected = {
        "v_mean_squared": (v_diff**2).mean((1, 2, 3)),
        "v_mean_huber": np.sqrt((v_diff**2).mean((1, 2, 3)) + epsilon**2) - epsilon,
        "snr1_x_huber": snr_plus_one * (np.sqrt((x_diff**2).mean((1, 2, 3)) + epsilon**2) - epsilon),
    }[name]
    objective = Objective(distance=name, huber_epsilon=epsilon)
    found = distance(objective, torch.tensor(v_diff), torch.tensor(sigma)).numpy()
    assert np.allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_the_squared_v_loss_is_the_squared_x_loss_times_snr_plus_one():
    network, x = Recorder(), pictures()
    objective = Objective(method="ct", student_steps=4, distance="v_mean_squared")
    loss = mixed_loss(network, None, (objective,), SCHEDULE, x, EMPTY, iteration=0, generator=generator())
    (z_s, logsnr_s, _), (z_t, logsnr_t, _) = network.calls
    (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma(logsnr_t), alpha_sigma(logsnr_s)
    t, s = SCHEDULE.time(logsnr_t.double()), SCHEDULE.time(logsnr_s.double())
    boundary = torch.floor((t - 1e-6) * 4) / 4
    x_ref, x_hat = alpha_s * z_s - 0.3 * sigma_s * z_s, alpha_t * z_t - 0.3 * sigma_t * z_t
    targets = []
    for row in range(8):
        at_t, at_s, at_step = (coefficients(float(time[row])) for time in (t, s, boundary))
        z_ref = paper.ddim(x_ref[row].numpy(), z_s[row].double().numpy(), *at_s, *at_step)
        walked = torch.tensor(paper.inv_ddim(z_ref, z_t[row].double().numpy(), *at_t, *at_step))
        targets.append(walked if s[row] - boundary[row] > 1e-3 else x[row].double())
    target = torch.stack(targets)
    squared = (x_hat - target).square().mean((1, 2, 3)) / sigma_t.flatten() ** 2
    assert torch.allclose(loss.double(), squared, rtol=2e-2, atol=1e-4)


class Probe(nn.Module):
    """A network that is nothing but its dropout mask."""

    def __init__(self):
        super().__init__()
        self.dropout, self.masks = nn.Dropout(0.5), []

    def forward(self, z: Tensor, logsnr: Tensor, condition: Tensor) -> Tensor:
        mask = self.dropout(torch.ones_like(z))
        self.masks.append(mask)
        return 0.1 * mask * z


def test_the_student_drops_the_same_units_at_s_and_at_t_and_others_in_the_next_step():
    probe, draw = Probe().train(), generator()
    torch.manual_seed(0)
    for iteration in range(2):
        mixed_loss(probe, Recorder(), (Objective(),), SCHEDULE, pictures(), EMPTY, iteration=iteration, generator=draw)
    first, second = probe.masks[:2], probe.masks[2:]
    assert torch.equal(*first) and torch.equal(*second) and not torch.equal(first[0], second[0])
    assert 0.4 < (first[0] == 0).float().mean() < 0.6
    assert not torch.equal(first[0][0], first[0][1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_student_drops_the_same_units_at_s_and_at_t_on_a_gpu():
    probe, draw = Probe().train(), torch.Generator("cuda").manual_seed(0)
    for iteration in range(2):
        mixed_loss(
            probe,
            Recorder(),
            (Objective(),),
            SCHEDULE,
            pictures().cuda(),
            EMPTY.cuda(),
            iteration=iteration,
            generator=draw,
        )
    first, second = probe.masks[:2], probe.masks[2:]
    assert torch.equal(*first) and torch.equal(*second) and not torch.equal(first[0], second[0])


def test_a_loss_is_a_function_of_its_generator():
    assert torch.equal(loss_of(Objective(), seed=1), loss_of(Objective(), seed=1))
    assert not torch.equal(loss_of(Objective(), seed=1), loss_of(Objective(), seed=2))


def test_losses_stay_finite_at_1280_teacher_steps_and_with_a_half_precision_network():
    objective = Objective(teacher_steps_start=1280, student_steps=1)

    def network(z: Tensor, logsnr: Tensor, condition: Tensor) -> Tensor:
        return (0.3 * z).bfloat16()

    for seed in range(5):
        losses = mixed_loss(
            network, network, (objective,), SCHEDULE, pictures(64), EMPTY[:1].expand(64, 0), iteration=0, generator=generator(seed)
        )  # fmt: skip
        assert losses.dtype == torch.float32 and losses.isfinite().all()
