"""Comparisons of what happens to a latent: hop, last hop, noise."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.kernels.comparison import OURS, Comparison, shape_name, size_of
from kernels import Column, hop, last_hop, noise
from kernels.gaussian import plain_noise

SHAPES = {
    "cpu": ((1, 3, 32, 32), (16, 3, 32, 32), (16, 3, 64, 64)),
    "cuda": ((1, 3, 32, 32), (64, 3, 64, 64), (64, 3, 128, 128), (64, 3, 512, 512)),
}
NETWORK = {"cpu": torch.float32, "cuda": torch.bfloat16}
"""What a network's prediction is made of."""
HOPS = 8
X_VAR, GUIDANCE = 0.05, 1.5


def eager_ddim(z: Tensor, v: Tensor, alpha_t: Tensor, sigma_t: Tensor, alpha_s: Tensor, sigma_s: Tensor) -> Tensor:
    """Return DDIM's z_s with x_hat clipped, as one would write it; coefficients (B, 1, 1, 1)."""
    x = (alpha_t * z - sigma_t * v.float()).clamp(-1, 1)
    eps = (z - alpha_t * x) / sigma_t
    return alpha_s * x + sigma_s * eps


def eager_bytes(z: Tensor, v: Tensor, *times: Tensor) -> Tensor:
    """Return the images that DDIM's last step ends in, uint8 (B, H, W, C), as one would write it."""
    level = ((eager_ddim(z, v, *times) + 1) * 127.5).clamp(0, 255).round()
    return level.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def eager_addim(z: Tensor, v: Tensor, v_uncond: Tensor, *times: Tensor) -> Tensor:
    """Return aDDIM's z_s of a guided prediction, as one would write it (Algorithm 3)."""
    alpha_t, sigma_t, alpha_s, sigma_s = times
    v, v_uncond = v.float(), v_uncond.float()
    v = v + GUIDANCE * (v - v_uncond)
    x, eps = alpha_t * z - sigma_t * v, sigma_t * z + alpha_t * v
    added = (alpha_s - alpha_t * sigma_s / sigma_t) ** 2 * X_VAR / eps.square().mean((1, 2, 3), keepdim=True)
    return alpha_s * x + torch.sqrt(sigma_s**2 + added) * eps


def hops(device: torch.device) -> Iterator[Comparison]:
    """One hop of a wave by DDIM, x_hat clipped; and one by aDDIM, guided."""
    for shape in SHAPES[device.type]:
        z, v, u = _latents(shape, device)
        ddim, lcm, times = _schedulers(shape[0], device)
        table = _table(times, Column.CLIP)
        guided = _table(times, Column.Z_VAR, Column.GUIDANCE)
        kind = shape_name(shape, v.dtype)
        yield Comparison(
            "hop",
            f"hop, {kind}",
            2 * size_of(z) + size_of(v),
            {
                OURS: partial(hop, z, v, table),
                "PyTorch": partial(eager_ddim, z, v, *times),
                "torch.compile": _compiled(eager_ddim, z, v, *times),
                "diffusers DDIMScheduler.step": partial(ddim, v, z),
                "diffusers LCMScheduler.step": partial(lcm, v, z),
            },
            frozenset({"diffusers DDIMScheduler.step", "diffusers LCMScheduler.step"}),
        )
        yield Comparison(
            "hop",
            f"aDDIM hop, guided, {kind}",
            2 * size_of(z) + size_of(v, u),
            {
                OURS: partial(hop, z, v, guided, v_uncond=u),
                "PyTorch": partial(eager_addim, z, v, u, *times),
                "torch.compile": _compiled(eager_addim, z, v, u, *times),
            },
        )


def last_hops(device: torch.device) -> Iterator[Comparison]:
    """The last hop of a wave, to bytes."""
    for shape in SHAPES[device.type]:
        z, v, _ = _latents(shape, device)
        ddim, _, times = _schedulers(shape[0], device)
        table = _table(times, Column.CLIP)

        def with_diffusers(z: Tensor = z, v: Tensor = v, step: Callable[[Tensor, Tensor], Tensor] = ddim) -> Tensor:
            image = (step(v, z) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)  # VaeImageProcessor.postprocess
            return (image * 255).round().to(torch.uint8).contiguous()

        yield Comparison(
            "last_hop",
            f"last hop to bytes, {shape_name(shape, v.dtype)}",
            size_of(z, v) + z.numel(),
            {
                OURS: partial(last_hop, z, v, table),
                "PyTorch": partial(eager_bytes, z, v, *times),
                "torch.compile": _compiled(eager_bytes, z, v, *times),
                "diffusers DDIMScheduler.step and postprocess": with_diffusers,
            },
            frozenset({"diffusers DDIMScheduler.step and postprocess"}),
        )


def noises(device: torch.device) -> Iterator[Comparison]:
    """A wave's initial noise."""
    for shape in SHAPES[device.type]:
        seeds = torch.arange(shape[0], device=device)

        def one_by_one(shape: tuple[int, ...] = shape) -> Tensor:  # diffusers' randn_tensor, given a list of generators
            drawn = [torch.randn(shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in range(shape[0])]
            return torch.stack(drawn).to(device)

        yield Comparison(
            "noise",
            f"noise, {shape_name(shape, torch.float32)}",
            4 * torch.Size(shape).numel(),
            {
                OURS: partial(noise, seeds, seeds, shape[1:]),
                "stepdial's plain version": partial(plain_noise, seeds, seeds, seeds, shape[1:]),
                "torch.randn, a generator a sample": one_by_one,
                "torch.randn, one generator": partial(torch.randn, shape, device=device),
            },
            frozenset({"torch.randn, a generator a sample"}),
        )


def _latents(shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return z_t and two predictions."""
    rng = torch.Generator().manual_seed(0)
    z, v, u = (torch.randn(shape, generator=rng).to(device) for _ in range(3))
    return z, v.to(NETWORK[device.type]), u.to(NETWORK[device.type])


def _schedulers(
    batch: int, device: torch.device
) -> tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor], tuple[Tensor, ...]]:
    """Return the step functions of diffusers' schedulers, (v, z) -> z_s, and the coefficients of DDIM's, (B, 1, 1, 1)."""
    from diffusers import DDIMScheduler, LCMScheduler

    options = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}
    ddim, lcm = DDIMScheduler(clip_sample=True, **options), LCMScheduler(**options)
    ddim.set_timesteps(HOPS, device=device)
    lcm.set_timesteps(HOPS, device=device)
    t, s = (int(step) for step in ddim.timesteps[2:4])
    signal = ddim.alphas_cumprod[[t, s]].double()
    each = [
        torch.full((batch, 1, 1, 1), float(value), device=device) for value in (*signal.sqrt(), *(1 - signal).sqrt())
    ]
    at_t, lcm_at_t = ddim.timesteps[2], lcm.timesteps[2]

    def lcm_step(v: Tensor, z: Tensor) -> Tensor:
        lcm._step_index = None  # else it thinks a picture further with every call
        return lcm.step(v, lcm_at_t, z, return_dict=False)[0]

    return (
        lambda v, z: ddim.step(v, at_t, z, use_clipped_model_output=True, return_dict=False)[0],
        lcm_step,
        (each[0], each[2], each[1], each[3]),
    )


def _table(times: tuple[Tensor, ...], *marked: Column) -> Tensor:
    """Return the coefficient table of a wave at these alpha_t, sigma_t, alpha_s, sigma_s, with further columns set."""
    alpha_t, sigma_t, alpha_s, sigma_s = (value.flatten() for value in times)
    table = torch.zeros(len(alpha_t), len(Column), device=alpha_t.device)
    for column, value in zip(
        (Column.ALPHA_T, Column.SIGMA_T, Column.OUT_X, Column.OUT_EPS),
        (alpha_t, sigma_t, alpha_s, sigma_s),
        strict=True,
    ):
        table[:, column] = value
    z_var = (alpha_s - alpha_t * sigma_s / sigma_t) ** 2 * X_VAR
    values: dict[Column, Tensor | float] = {Column.CLIP: 1.0, Column.GUIDANCE: GUIDANCE, Column.Z_VAR: z_var}
    for column in marked:
        table[:, column] = values[column]
    return table


def _compiled(function: Callable[..., Tensor], *arguments: Tensor) -> Callable[[], Tensor]:
    torch.compiler.reset()  # every shape has a kernel of its own
    compiled = torch.compile(function, fullgraph=True, dynamic=False)
    return partial(compiled, *arguments)
