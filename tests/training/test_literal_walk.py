"""The loss of every method against Algorithm 1 walked literally, sample by sample, in float64 and from the paper's equations."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from diffusion.schedule import CosineSchedule
from tests.kernels import paper_equations as paper
from training.loss import draw_guidance, loss_at, mixed_times
from training.objective import Objective
from training.times import Times

SCHEDULE = CosineSchedule(image_resolution=64, noise_resolution=32, noise_resolution_end=64)
BATCH = 6
METHODS = ["diffusion", "ct", "ect", "cd", "tract", "pd"]
Formula = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def logsnr(t: float) -> float:
    """Of the cosine schedule clipped at 15 and interpolated from noise resolution 32 to 64 at 64 pixels, from its formula."""
    first, last = math.atan(math.exp(-7.5)), math.atan(math.exp(7.5))
    return -2 * math.log(math.tan(first + t * (last - first))) + t * 2 * math.log(32 / 64)


def at(t: float) -> tuple[float, float]:
    return 1 / math.sqrt(1 + math.exp(-logsnr(t))), 1 / math.sqrt(1 + math.exp(logsnr(t)))


def formula(seed: int) -> Formula:
    """A network of a formula of its own: it minds z, log SNR and the sum of the condition."""
    a, b, c = np.random.default_rng(seed).uniform(0.2, 1.2, 3)

    def said(z: torch.Tensor, level: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        wished = condition.double().sum(1).view(-1, 1, 1, 1)
        return a * torch.tanh(b * z) + 0.02 * c * level.view(-1, 1, 1, 1) * (1 + torch.sin(3 * z)) + 0.1 * c * wished

    return said


class Walk:
    """One sample's way through Algorithm 1, in numpy."""

    def __init__(self, objective: Objective, x: np.ndarray, wish: list[int], w: float, networks: dict[str, Formula]):
        self.objective, self.x, self.wish, self.w, self.networks = objective, x, wish, w, networks

    def v(self, name: str, z: np.ndarray, t: float, wish: list[int]) -> np.ndarray:
        """What a network says, which the objective takes as float32."""
        said = self.networks[name](
            torch.tensor(z)[None], torch.tensor([logsnr(t)], dtype=torch.float64), torch.tensor([wish])
        )
        return said[0].float().numpy()

    def x_hat(self, name: str, z: np.ndarray, t: float) -> np.ndarray:
        return at(t)[0] * z - at(t)[1] * self.v(name, z, t, self.wish)

    def taught(self, z: np.ndarray, t: float) -> tuple[np.ndarray, float]:
        """The guided teacher's x, and the variance of its unguided one."""
        alpha, sigma = at(t)
        named, plain = self.v("teacher", z, t, self.wish[:1]), self.v("teacher", z, t, [0])
        guided = named + np.float32(self.w) * (named - plain)
        x_var = self.objective.eta * np.mean((alpha * z - sigma * named - self.x) ** 2)
        if self.objective.x_var == "analytic":
            x_var = 0.1 / (2 + math.exp(logsnr(t)))
        return alpha * z - sigma * guided, x_var * (self.objective.teacher_rule == "addim")

    def loss(self, eps: np.ndarray, t: float, s: float, t_step: float) -> float:
        method = self.objective.method
        alpha, sigma = at(t)
        z_t = alpha * self.x + sigma * eps
        x_teacher, x_var = self.taught(z_t, t) if method in ("cd", "tract", "pd") else (self.x, 0.0)
        z_s = paper.addim(x_teacher, z_t, x_var, *at(t), *at(s))
        if s == t_step:
            z_step = z_s
        elif method == "pd":
            x_ref, x_var = self.taught(z_s, s)
            z_step = paper.addim(x_ref, z_s, x_var * (t_step > 0), *at(s), *at(t_step))
        else:
            x_ref = self.x_hat("average" if method == "tract" else "student", z_s, s)
            z_step = paper.ddim(x_ref, z_s, *at(s), *at(t_step))
        x_target = paper.inv_ddim(z_step, z_t, *at(t), *at(t_step))
        x_diff = self.x_hat("student", z_t, t) - x_target
        return self.distance(x_diff, sigma)

    def distance(self, x_diff: np.ndarray, sigma: float) -> float:
        """SNR + 1 is 1 / sigma^2: inside of the norm it makes v of x, outside it is the printed factor."""
        epsilon = self.objective.huber_epsilon
        if self.objective.distance == "v_mean_squared":
            return np.mean((x_diff / sigma) ** 2)
        inside = sigma if self.objective.distance == "v_mean_huber" else 1.0
        huber = math.sqrt(np.mean((x_diff / inside) ** 2) + epsilon**2) - epsilon
        return huber if self.objective.distance == "v_mean_huber" else huber / sigma**2


CASES = [
    {"distance": "v_mean_squared", "teacher_rule": "ddim"},
    {"distance": "v_mean_huber", "guidance": 1.3, "eta": 0.6},
    {"distance": "snr1_x_huber", "guidance": 0.4, "x_var": "analytic"},
    {"distance": "v_mean_squared", "guidance_range": (0.0, 3.0)},
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(map(str, case.values())))
@pytest.mark.parametrize("segments", [1, 4])
@pytest.mark.parametrize("method", METHODS)
def test_every_methods_loss_is_algorithm_1_walked_literally(method: str, segments: int, case: dict[str, object]):
    distils = method in ("cd", "tract", "pd")
    left_out = () if distils else ("guidance", "guidance_range")
    settings = {name: value for name, value in case.items() if name not in left_out}
    settings |= {"method": method, "student_steps": segments, "anneal_iterations": 0, "huber_epsilon": 1e-3}
    settings |= {"teacher_steps_end": 12, "ect_stages": 4}
    objective = Objective.model_validate(settings)
    draws = torch.Generator().manual_seed(segments)
    x, eps = torch.randn(2, BATCH, 1, 4, 4, generator=draws, dtype=torch.float64)
    condition = torch.randint(1, 5, (BATCH, 1), generator=draws)
    times: Times = mixed_times((objective,), BATCH, schedule=SCHEDULE, iteration=0, generator=draws)
    told = draw_guidance(objective, BATCH, draws)
    networks = {name: formula(seed) for seed, name in enumerate(("student", "teacher", "average"))}
    if told is not None:  # told to the student alone: thousandths, which its formula would drown in
        plain = networks["student"]
        networks["student"] = lambda z, level, wish: plain(z, level, wish.double() * torch.tensor([1.0, 1e-3]))
        networks["average"] = networks["student"]
    losses = loss_at(
        networks["student"], networks["teacher"], (objective,), SCHEDULE, x, condition,
        times=times, eps=eps, told=told, self_teacher=networks["average"],
    )  # fmt: skip
    for row in range(BATCH):
        w = objective.guidance if told is None else told[row].item() / 1000
        wish = condition[row].tolist() + ([] if told is None else [told[row].item()])
        walk = Walk(objective, x[row].numpy(), wish, w, networks)
        expected = walk.loss(eps[row].numpy(), *(value[row].item() for value in (times.t, times.s, times.t_step)))
        assert losses[row].item() == pytest.approx(expected, rel=2e-5, abs=1e-9), (method, row)


@pytest.mark.parametrize("method", ["ct", "cd", "tract"])
def test_with_as_many_segments_as_teacher_steps_every_method_is_diffusion_towards_its_teacher(method: str):
    objective = Objective.model_validate(
        {"method": method, "student_steps": 16, "teacher_steps_end": 16, "anneal_iterations": 0}
        | {"teacher_rule": "ddim", "distance": "v_mean_squared", "guidance": 0.7 * (method != "ct")}
    )
    draws = torch.Generator().manual_seed(3)
    x, eps = torch.randn(2, BATCH, 1, 4, 4, generator=draws, dtype=torch.float64)
    condition, student, teacher = torch.ones(BATCH, 1, dtype=torch.int64), formula(0), formula(1)
    times = mixed_times((objective,), BATCH, schedule=SCHEDULE, iteration=0, generator=draws)
    losses = loss_at(
        student, teacher, (objective,), SCHEDULE, x, condition, times=times, eps=eps, self_teacher=formula(2)
    )
    for row, t in enumerate(times.t.tolist()):
        alpha, sigma = at(t)
        walk = Walk(objective, x[row].numpy(), [1], objective.guidance, {"student": student, "teacher": teacher})
        z = alpha * walk.x + sigma * eps[row].numpy()
        v = alpha * eps[row].numpy() - sigma * walk.x  # of the data; else what the guided teacher says
        if method != "ct":
            v = (alpha * z - walk.taught(z, t)[0]) / sigma
        assert losses[row].item() == pytest.approx(np.mean((walk.v("student", z, t, [1]) - v) ** 2), rel=2e-5)
