"""The sampling loop on data whose exact answer is known: one normal, and a mixture of two."""

import math

import pytest
import torch
from torch import Tensor

from diffusion.plans import Hop, Plan, coefficient_row, plan, student_plan, teacher_plan, uniform_times
from diffusion.sampler import sample
from diffusion.schedule import CosineSchedule
from diffusion.uvit import PRESETS, UViT
from kernels import hop, noise
from tests.kernels.host_sync import NoHostSync

SCHEDULE = CosineSchedule(image_resolution=8, noise_resolution=8)
SHAPE = (1, 8, 8)
SPREAD = 0.3
"""Standard deviation of the normal: small enough that hardly a pixel reaches the ends of the grey scale."""


def coefficients(time: float) -> tuple[float, float]:
    first, last = math.atan(math.exp(-7.5)), math.atan(math.exp(7.5))
    angle = first + time * (last - first)
    return math.cos(angle), math.sin(angle)


def shrinkage(time: float) -> float:
    """E[x | z_t] / z_t for x of N(0, SPREAD^2)."""
    alpha, sigma = coefficients(time)
    return alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2)


class Gaussian:
    """The exact teacher of N(0, SPREAD^2), which keeps the x_hat of its last evaluation in full precision."""

    def __call__(self, z: Tensor, logsnr: Tensor, condition: Tensor) -> Tensor:
        logsnr = logsnr.double().view(-1, 1, 1, 1)
        alpha, sigma = torch.sigmoid(logsnr).sqrt(), torch.sigmoid(-logsnr).sqrt()
        x = alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2) * z
        self.last_x = x
        return ((alpha * z - x) / sigma).float()


def drawn(steps: Plan, count: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Return the initial noise, the last x_hat in full precision, and the pictures."""
    teacher, seeds, indices = Gaussian(), [3] * count, list(range(count))
    condition = torch.zeros(count, 0, dtype=torch.int64)
    pictures = sample({"m": teacher}, steps, SCHEDULE, condition, seeds=seeds, indices=indices, shape=SHAPE)
    return noise(seeds, indices, SHAPE).double(), teacher.last_x, pictures


def flow_error(rule: str, hops: int) -> float:
    """Largest distance from the exact flow's end point, which only scales a normal, per unit of initial noise."""
    z, x, _ = drawn(plan("m", uniform_times(hops), rule=rule))
    (alpha_0, sigma_0), (alpha_1, sigma_1) = coefficients(0.0), coefficients(1.0)
    exact = math.sqrt((alpha_0**2 * SPREAD**2 + sigma_0**2) / (alpha_1**2 * SPREAD**2 + sigma_1**2))
    return float((x / z - exact).abs().median())


def test_ddim_converges_to_the_exact_flow_at_first_order():
    errors = [flow_error("ddim", hops) for hops in (16, 32, 64, 256)]
    assert errors[-1] < 0.004
    assert 1.7 < errors[0] / errors[1] < 2.3 and 1.7 < errors[1] / errors[2] < 2.3


def test_heun_approaches_second_order_and_beats_ddim_at_equal_evaluations():
    errors = [flow_error("heun", hops) for hops in (32, 64, 128)]
    assert errors[1] / errors[2] > errors[0] / errors[1] > 2.7
    assert errors[1] < 0.6 * flow_error("ddim", 127)


@pytest.mark.parametrize("hops", [8, 64])
def test_ancestral_sampling_has_the_variance_of_its_equations(hops: int):
    variance, times = 1.0, [1 - k / hops for k in range(hops)]
    for t, s in zip(times, times[1:], strict=False):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = coefficients(t), coefficients(s)
        between = alpha_t / alpha_s
        posterior = 1 / (1 / sigma_s**2 + between**2 / (sigma_t**2 - between**2 * sigma_s**2))
        from_z = posterior * between / (sigma_t**2 - between**2 * sigma_s**2)
        variance = (from_z + posterior * alpha_s / sigma_s**2 * shrinkage(t)) ** 2 * variance + posterior
    expected = shrinkage(times[-1]) ** 2 * variance
    _, x, _ = drawn(plan("m", uniform_times(hops), rule="ancestral"), count=256)
    assert float(x.var()) == pytest.approx(expected, rel=0.05)  # 16,384 numbers: one standard error is 1.1 %
    if hops == 64:
        assert math.sqrt(expected) == pytest.approx(SPREAD, rel=0.1)


def test_pictures_are_the_last_x_hat_in_levels_of_grey():
    _, x, pictures = drawn(student_plan("m", 4))
    levels = ((x + 1) * 127.5).clamp(0, 255).round().permute(0, 2, 3, 1)
    assert pictures.dtype == torch.uint8 and pictures.shape == (4, 8, 8, 1)
    assert (pictures.double() - levels).abs().max() <= 1 and (pictures == levels).double().mean() > 0.99


@pytest.mark.parametrize(("t", "s"), [(0.75, 0.5), (0.5, 0.25), (0.6, 0.55)])
def test_one_addim_hop_has_the_norm_that_ddims_lacks(t: float, s: float):
    # x is one of two modes 8 apart in 64 dimensions, spread 1/4; the teacher is exact, and so is the variance of x
    d, spread, count = 64, 0.25, 20_000
    mean = 0.5 * math.sqrt(d)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = coefficients(t), coefficients(s)
    generator = torch.Generator().manual_seed(0)
    x = spread * torch.randn(count, d, generator=generator, dtype=torch.float64)
    x[:, 0] += mean * (2.0 * torch.randint(0, 2, (count,), generator=generator) - 1)
    z = alpha_t * x + sigma_t * torch.randn(count, d, generator=generator, dtype=torch.float64)
    share = alpha_t**2 * spread**2 + sigma_t**2
    towards = torch.tanh(alpha_t * mean * z[:, 0] / share)
    x_hat = alpha_t * spread**2 / share * z
    x_hat[:, 0] += sigma_t**2 / share * mean * towards
    between_modes = (sigma_t**2 / share * mean) ** 2 * (1 - towards**2).mean() / d
    x_var = float(spread**2 * sigma_t**2 / share + between_modes)
    perfect = alpha_s * x + sigma_s * (z - alpha_t * x) / sigma_t  # equation 10, from the true x
    expected, found = float(perfect.square().mean()), {}
    for rule in ("ddim", "addim"):
        row = coefficient_row(
            Hop(member="m", t=t, s=s, rule=rule), SCHEDULE, variance=lambda logsnr: torch.full_like(logsnr, x_var)
        )
        v = (alpha_t * z - x_hat) / sigma_t
        z_s = hop(z.float(), v.float(), row.float().expand(count, -1).contiguous()).double()
        found[rule] = float(z_s.square().mean())
    assert found["addim"] == pytest.approx(expected, rel=0.01)
    lacking = (alpha_s - alpha_t * sigma_s / sigma_t) ** 2 * x_var  # equation 13
    assert found["ddim"] + lacking == pytest.approx(expected, rel=0.002)


RULES = ["ddim", "addim", "ancestral", "noise_ddim", "heun"]


def conditional(z: Tensor, logsnr: Tensor, condition: Tensor) -> Tensor:
    """A network of elementwise operations: no rounding of its own depends on the batch."""
    return 0.3 * z + 0.05 * logsnr.view(-1, 1, 1, 1) * torch.tanh(z) - 0.1 * condition.view(-1, 1, 1, 1).float()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_a_picture_depends_on_seed_index_and_condition_and_not_on_the_batch(rule: str, guidance: float):
    from diffusion.variance import analytic_variance

    wishes = [(5, 0, 1), (5, 1, 1), (6, 0, 1), (5, 0, 2), (2**62, 9, 0)]

    def draw(which: list[int]) -> Tensor:
        seeds, indices, values = zip(*(wishes[number] for number in which), strict=True)
        return sample(
            {"m": conditional},
            teacher_plan("m", 5, rule=rule),
            SCHEDULE,
            torch.tensor(values)[:, None],
            seeds=seeds,
            indices=indices,
            shape=SHAPE,
            guidance=guidance,
            variance=analytic_variance,
        )

    together = draw([0, 1, 2, 3, 4])
    assert torch.equal(torch.cat([draw([number]) for number in range(5)]), together)
    assert torch.equal(draw([4, 2, 0, 2]), together[[4, 2, 0, 2]])
    assert all(not torch.equal(together[0], together[other]) for other in (1, 2, 3, 4))


def test_with_a_real_network_the_batch_moves_a_picture_by_rounding_only():
    torch.manual_seed(0)
    network = UViT(PRESETS["tiny8"].model_copy(update={"slots": (3,)})).eval()
    torch.nn.init.normal_(network.conv_out.weight, std=0.1)
    condition = torch.tensor([[1], [2], [3], [0]])

    def draw(rows: list[int]) -> Tensor:
        return sample(
            {"s": network},
            student_plan("s", 4),
            SCHEDULE,
            condition[rows],
            seeds=[1] * len(rows),
            indices=rows,
            shape=SHAPE,
        ).int()

    alone = torch.cat([draw([row]) for row in range(4)])
    assert (draw([0, 1, 2, 3]) - alone).abs().max() <= 1


def test_guidance_is_the_conditional_prediction_moved_away_from_the_unconditional_one():
    seen = []

    def network(z: Tensor, logsnr: Tensor, condition: Tensor) -> Tensor:
        seen.append(condition[:, 0].tolist())
        return z * 0 + condition.view(-1, 1, 1, 1).float() / 10  # v = 0.1 with the condition, 0 without

    def draw(w: float) -> int:
        condition = torch.tensor([[1]])
        return int(
            sample({"m": network}, student_plan("m", 1), SCHEDULE, condition, seeds=[0], indices=[0], shape=SHAPE, guidance=w)
            .double().mean().round()
        )  # fmt: skip

    # at t = 1 x_hat is -v up to alpha_1 = 0.0006: the guided v is 0.1 + w (0.1 - 0)
    assert draw(0.0) == pytest.approx(127.5 * 0.9, abs=1) and draw(3.0) == pytest.approx(127.5 * 0.6, abs=1)
    assert seen == [[1], [1, 0]]


def test_guidance_acts_within_its_interval_alone_and_costs_nothing_elsewhere():
    rows = []

    def network(z: Tensor, logsnr: Tensor, condition: Tensor) -> Tensor:
        rows.append(len(z))
        return z * condition.view(-1, 1, 1, 1).float() / 10

    def draw(plan: Plan, w: float) -> Tensor:
        told = {"seeds": [0], "indices": [0], "shape": SHAPE, "guidance": w}
        return sample({"m": network}, plan, SCHEDULE, torch.tensor([[1]]), **told)

    between = teacher_plan("m", 4, rule="ddim", guided=(0.25, 0.75))
    assert [hop.guided for hop in between.hops] == [False, True, True, True]  # both ends are within
    guided = draw(between, 2.0)
    assert rows == [1, 2, 2, 2] and between.runs(2.0) == 7 and between.runs(0.0) == between.steps == 4
    always, never = (draw(teacher_plan("m", 4, rule="ddim"), w) for w in (2.0, 0.0))
    assert torch.equal(draw(between, 0.0), never)
    assert not torch.equal(guided, always) and not torch.equal(guided, never)


def test_students_are_visited_in_the_plans_order_at_the_plans_times():
    visited = []

    def named(name: str):
        def network(z: Tensor, logsnr: Tensor, condition: Tensor) -> Tensor:
            visited.append((name, round(float(SCHEDULE.time(logsnr[0].double())), 6)))
            return torch.zeros_like(z)

        return network

    mixed = Plan(hops=student_plan("four", 4).hops[:2] + student_plan("two", 2).hops[1:])
    sample(
        {"four": named("four"), "two": named("two")},
        mixed,
        SCHEDULE,
        torch.zeros(1, 0, dtype=torch.int64),
        seeds=[0],
        indices=[0],
        shape=SHAPE,
    )
    assert visited == [("four", 1.0), ("four", 0.75), ("two", 0.5)]


def draw_on(device: str, rule: str, network: object) -> Tensor:
    from diffusion.variance import analytic_variance

    condition = torch.zeros(2, 1, dtype=torch.int64, device=device)
    return sample(
        {"m": network},
        teacher_plan("m", 3, rule=rule),
        SCHEDULE,
        condition,
        seeds=[1, 2],
        indices=[0, 0],
        shape=SHAPE,
        guidance=1.0,
        variance=analytic_variance,
        device=device,
    )


@pytest.mark.parametrize("rule", RULES)
def test_sampling_never_reads_what_is_on_the_device(rule: str):
    # on the meta device there is nothing to read: whatever asked for a value would raise
    pictures = draw_on("meta", rule, lambda z, logsnr, condition: torch.zeros_like(z))
    assert pictures.shape == (2, 8, 8, 1) and pictures.dtype == torch.uint8


@pytest.mark.parametrize("rule", ["ddim", "addim", "ancestral", "noise_ddim"])
def test_no_operation_of_the_loop_waits_for_the_host(rule: str):
    class Watched:
        """Starts watching at the first evaluation: what comes before is preparation on the host."""

        watch: NoHostSync | None = None

        def __call__(self, z: Tensor, logsnr: Tensor, condition: Tensor) -> Tensor:
            if self.watch is None:
                self.watch = NoHostSync()
                self.watch.__enter__()
            return torch.zeros_like(z)

    network = Watched()
    try:
        assert draw_on("cpu", rule, network).shape == (2, 8, 8, 1)
    finally:
        network.watch.__exit__(None, None, None)
