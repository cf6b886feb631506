"""Sampling by a plan: the loop that training, evaluation, the golden check and `stepdial sample` share.

The server draws the same hops in waves of its own (server/engine.py); both go through `coefficient_row`, `correction_row`,
`kernels.hop` and `kernels.noise`, so equal samples give equal images up to the network's rounding.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion.plans import Hop, Plan, Variance, coefficient_row, correction_row, halfway
from diffusion.schedule import CosineSchedule
from kernels import hop as take_hop
from kernels import last_hop, noise

Network = Callable[[Tensor, Tensor, Tensor], Tensor]
"""f(z_t, logsnr_t, condition) -> v; of a network for the whole dial, the condition's last column is the segment count, and
of one that is told its guidance, the column after the slots is w in thousandths."""
Decode = Callable[[Tensor], Tensor]
"""Latents (B, C, H, W) -> images uint8 (B, H, W, C)."""


@torch.no_grad()
def sample(
    networks: dict[str, Network],
    plan: Plan,
    schedule: CosineSchedule,
    condition: Tensor,
    *,
    seeds: Sequence[int],
    indices: Sequence[int],
    shape: tuple[int, int, int],
    guidance: float = 0.0,
    told: Sequence[int] = (),
    variance: Variance | None = None,
    decode: Decode | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw one image per row of `condition` (B, slots) and return them as uint8 (B, H, W, C) on `device`.

    networks: member name -> network, for the plan's members.  (seed, index) of each image fixes all its noise; shape is
    (C, H, W); guidance w != 0 evaluates with and without the condition; told: what the networks find in the condition after
    the slots (`Family.told`); decode: of a family that diffuses in latents.  The loop never waits for the device.
    """
    device = torch.device(device)
    condition, z = condition.to(device), noise(seeds, indices, shape, device=device)
    return follow(
        networks,
        plan.hops,
        schedule,
        z,
        condition,
        seeds=seeds,
        indices=indices,
        guidance=guidance,
        told=told,
        variance=variance,
        decode=decode,
    )


@torch.no_grad()
def follow(
    networks: dict[str, Network],
    hops: Sequence[Hop],
    schedule: CosineSchedule,
    z: Tensor,
    condition: Tensor,
    *,
    seeds: Sequence[int],
    indices: Sequence[int],
    taken: int = 0,
    guidance: float = 0.0,
    told: Sequence[int] = (),
    variance: Variance | None = None,
    decode: Decode | None = None,
) -> Tensor:
    """Take latents z (B, C, H, W) along some of a plan's hops, `taken` of which lie behind them, on z's device.

    Returns the latents where the hops end, or, if they end at 0, the images, uint8 (B, H, W, C).
    """
    course = Course(
        hops,
        schedule,
        batch=len(z),
        device=z.device,
        taken=taken,
        guidance=guidance,
        told=told,
        variance=variance,
        decode=decode,
    )
    return course.follow(networks, z, condition, seeds=seeds, indices=indices)


class Course:
    """Hops with all that the host computes for them, on the device: following them copies nothing there and waits for nothing."""

    def __init__(
        self,
        hops: Sequence[Hop],
        schedule: CosineSchedule,
        *,
        batch: int,
        device: torch.device | str,
        taken: int = 0,
        guidance: float = 0.0,
        told: Sequence[int] = (),
        variance: Variance | None = None,
        decode: Decode | None = None,
    ):
        """Arguments as `follow` has them, and the batch size."""
        self.hops, self.schedule, self.taken = tuple(hops), schedule, taken
        self.told, self.decode = told, decode
        self.guidance = [guidance if hop.guided else 0.0 for hop in hops]
        """w of each hop."""
        weighted = list(zip(hops, self.guidance, strict=True))
        rows = [coefficient_row(hop, schedule, guidance=w, variance=variance) for hop, w in weighted]
        seconds = [correction_row(hop, schedule, guidance=w) for hop, w in weighted if hop.rule == "heun"]
        tables = torch.stack(rows + seconds).float().to(device)[:, None].expand(-1, batch, -1).contiguous()
        self.tables = tables[: len(rows)]
        """Coefficients of each hop, float32 (hops, B, 8)."""
        self.corrections = tables[len(rows) :]
        """Those of the second halves of heun hops."""
        ends = torch.tensor([(hop.t, hop.s) for hop in hops], dtype=torch.float64)
        self.logsnr = schedule.logsnr(ends).float().to(device)
        """At the beginning and at the end of each hop, float32 (hops, 2)."""

    @torch.no_grad()
    def follow(
        self,
        networks: dict[str, Network],
        z: Tensor,
        condition: Tensor,
        *,
        seeds: Sequence[int] | Tensor,
        indices: Sequence[int] | Tensor,
    ) -> Tensor:
        """Take latents z along, as the function `follow` does; with seeds and indices on the device a CUDA graph can hold it."""
        for value in self.told:
            condition = F.pad(condition, (0, 1), value=value)
        corrections = iter(self.corrections)
        for index, step in enumerate(self.hops):
            network, table, (at_t, at_s) = networks[step.member], self.tables[index], self.logsnr[index]
            v, v_uncond = _evaluate(network, step, z, at_t, condition, self.guidance[index])
            stream = self.taken + index + 1
            fresh = noise(seeds, indices, z.shape[1:], stream=stream, device=z.device) if step.random else None
            if step.s == 0 and self.decode:
                return self.decode(take_hop(z, v, table, v_uncond=v_uncond))
            if step.s == 0:
                return last_hop(z, v, table, v_uncond=v_uncond)
            z_s = take_hop(z, v, table, v_uncond=v_uncond, noise=fresh)
            if step.rule == "heun":
                v, v_uncond = _evaluate(network, step, z_s, at_s, condition, self.guidance[index])
                kept = halfway(step, self.schedule, z, z_s)
                z_s = take_hop(z_s, v, next(corrections), v_uncond=v_uncond, noise=kept)
            z = z_s
        return z


def _evaluate(
    network: Network, step: Hop, z: Tensor, logsnr: Tensor, condition: Tensor, guidance: float
) -> tuple[Tensor, Tensor | None]:
    """Return v, and the unconditional v where there is guidance, from one evaluation of a doubled batch."""
    if guidance:
        z, condition = torch.cat([z, z]), torch.cat([condition, torch.zeros_like(condition)])
    if step.segments is not None:
        condition = F.pad(condition, (0, 1), value=step.segments)
    v = network(z, logsnr.expand(len(z)), condition)
    if not guidance:
        return v, None
    v, v_uncond = v.chunk(2)
    return v, v_uncond
