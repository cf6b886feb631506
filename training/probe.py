"""The probe: what a network in training gives at the same images, times and noise every so often, so that curves are not noisy.

It looks at the averaged weights, which are what is shipped, and changes nothing in the training.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kernels import noise
from training.datasets import DataSet
from training.loss import noised
from training.teacher import TeacherSettings, in_precision

PLACES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Where in a segment losses are taken: n_rel over N_per_segment, the first being n_rel = 1, next to the boundary."""
TEACHER_TIMES = 8
"""Times at which a teacher's loss is taken, in the middles of as many equal parts of [0, 1]."""
ROWS = 128
"""About how many (image, time) pairs losses are taken at, for each step count."""
SEED = 77
"""Of the probe's images, noise and starting points."""

Probe = Callable[[nn.Module, int], dict[str, Any]]
"""(network, iteration) -> what is found, fit for JSON."""


def teacher_probe(settings: TeacherSettings, data: DataSet, device: torch.device) -> Probe:
    """Return a probe of a teacher's v-loss over t."""
    schedule = settings.noise_schedule()
    times = (torch.arange(TEACHER_TIMES, dtype=torch.float64) + 0.5) / TEACHER_TIMES
    x, condition, eps = repeated(data, TEACHER_TIMES, device)
    z_t, logsnr, alpha, sigma = noised(schedule, times.repeat_interleave(len(x) // TEACHER_TIMES), x, eps)

    @torch.no_grad()
    def look(network: nn.Module, iteration: int) -> dict[str, Any]:
        v = in_precision(network, settings.precision)(z_t, logsnr, condition).float()
        loss = (v - (alpha * eps - sigma * x)).square().flatten(1).mean(1).view(TEACHER_TIMES, -1).mean(1)
        return {"teacher": {"t": times.tolist(), "loss": loss.tolist()}}

    return look


def repeated(
    data: DataSet, times: int, device: torch.device, *, encode: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return images, conditions and noise for so many times, the same few at each, one time after another.

    encode: what makes latents of images, where the networks see latents.
    """
    each = max(1, ROWS // times)
    x, condition = (value.to(device) for value in data.batch(0, each, seed=SEED))
    x = encode(x) if encode else x
    eps = noise([SEED] * each, range(each), tuple(x.shape[1:]), device=device)
    return tuple(value.repeat(times, *[1] * (value.dim() - 1)) for value in (x, condition, eps))  # type: ignore[return-value]


def flat(found: dict[str, Any]) -> dict[str, float]:
    """Return what a probe found as named numbers for a tracker: means by segment and by place, and the trajectory's distances."""
    numbers: dict[str, float] = {}
    for part, values in found.items():
        if part == "teacher":
            numbers |= {f"{part}/loss at t {t:.2f}": loss for t, loss in zip(values["t"], values["loss"], strict=True)}
            continue
        for name in ("loss", "x_var"):
            rows = values[name]
            numbers |= {f"{part}/{name} in segment {at}": _mean(row) for at, row in enumerate(rows)}
            numbers |= {
                f"{part}/{name} at n_rel {place:.0%}": _mean([row[at] for row in rows])
                for at, place in enumerate(values.get("places", PLACES))
            }
        steps = len(values["trajectory"])
        numbers |= {
            f"{part}/trajectory at t {(steps - 1 - at) / steps:.2f}": far for at, far in enumerate(values["trajectory"])
        }
    return numbers


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
