"""Waves of one shape over memory that never moves, so that a GPU can repeat their evaluation as one CUDA graph.

Whatever the host has to say to a wave goes in one piece: written into pinned memory, copied once, without waiting.
"""

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffusion.capture import Capture
from kernels import Column, hop, last_hop, noise

ALIGNMENT = 16
"""Bytes at whose multiples each field begins: kernels copy what begins elsewhere, or are compiled once more for it."""
Network = Callable[[Tensor, Tensor, Tensor], Tensor]


class Told(NamedTuple):
    """What the host tells a wave of B rows."""

    table: Any
    """Coefficients, float32 (B, 8), columns as in `kernels.Column`."""
    ending: Any
    """Coefficients that make x_hat of every row, float32 (B, 8)."""
    logsnr: Any
    """float32 (B,)."""
    condition: Any
    """int64 (B, columns)."""
    draws: Any
    """Seed, index and stream of noise, int64 (3, 2, B): [:, 0] of rows that begin, in order; [:, 1] of all rows' hops."""


class Outcome(NamedTuple):
    """What comes of a wave: tensors, None where nobody asked."""

    z_s: Any
    """Latents after the update, float32 (B, C, H, W)."""
    ended: Any
    """x_hat as images, uint8 (B, H, W, C); of latents that are still to be decoded float32 (B, C, H, W)."""


class Replay:
    """The waves of one network, guided or not, at one batch size."""

    def __init__(
        self,
        network: Network,
        *,
        rows: int,
        shape: tuple[int, int, int],
        columns: int,
        guided: bool,
        decoded: bool,
        words: bool,
        device: torch.device,
        kind: torch.dtype = torch.float32,
    ):
        """shape: of a latent, (C, H, W).  columns: of the condition.  decoded: whether another network makes the images.

        words: whether the condition stays in host memory, where a prompt's words are looked up.  kind: what the network takes.
        """
        self._network, self._guided, self._decoded, self._words, self._kind = network, guided, decoded, words, kind
        self._fields = {
            "table": (torch.float32, (rows, len(Column))),
            "ending": (torch.float32, (rows, len(Column))),
            "logsnr": (torch.float32, (rows,)),
            "condition": (torch.int64, (rows, columns)),
            "draws": (torch.int64, (3, 2, rows + rows % 2)),  # even, so that every row of it is aligned
        }
        size = sum(_aligned(_size(*field)) for field in self._fields.values())
        self._memory = torch.zeros(size, dtype=torch.uint8, device=device)
        self._told = Told(**self._views(self._memory))
        self._on_host = self._told.condition
        self._pinned = device.type == "cuda"
        self.z = torch.zeros((rows, *shape), device=device)
        """Where the wave's latents go, float32 (B, C, H, W)."""
        self.added = torch.zeros_like(self.z)
        """Where goes what updates add beside x_hat and eps_hat."""
        self._again: Callable[[], Outcome] | None = None

    @property
    def is_captured(self) -> bool:
        """Whether waves are repetitions of a recorded one."""
        return self._again is not None

    def tell(self, fill: Callable[[Told], None]) -> None:
        """Have a wave's facts written, as NumPy arrays, and copy them to the device without waiting for it."""
        if not self._pinned:
            fill(Told(**{name: view.numpy() for name, view in self._views(self._memory).items()}))
            return
        # PyTorch keeps pinned memory and gives this piece to another wave only when the copy is done
        host = torch.empty(len(self._memory), dtype=torch.uint8, pin_memory=True)
        told = self._views(host)
        fill(Told(**{name: view.numpy() for name, view in told.items()}))
        self._memory.copy_(host, non_blocking=True)
        if self._words:
            self._on_host = told["condition"]

    def noise(self, rows: int, *, begins: bool) -> Tensor:
        """Return the noise that the facts name, float32 (rows, C, H, W): of rows that begin, or of all rows' hops."""
        seeds, indices, streams = self._told.draws[:, 0 if begins else 1, :rows]
        return noise(seeds, indices, self.z.shape[1:], stream=streams)

    def run(self, *, moves: bool, ends: bool, adds: bool) -> Outcome:
        """Evaluate the network and update, and return what is asked for, in memory of its own.

        moves: z_s.  ends: x_hat.  adds: whether `added` holds anything.
        """
        if self._again is None:
            return self._evaluate(moves=moves, ends=ends, adds=adds)
        z_s, ended = self._again()
        return Outcome(_own(z_s, moves), _own(ended, ends))

    def capture(self, capture: Capture) -> None:
        """Record a wave of the facts that are there.  Raises RuntimeError when it cannot be."""
        self._again = capture(self._evaluate)

    def agrees(self) -> bool:
        """Whether the recorded wave, repeated, gives the bits that it has without recording, of the facts there are now."""
        assert self._again is not None
        for left in self._again():
            left.fill_(1)  # what it should write, but does not, is not to be found right by chance
        return all(map(torch.equal, self._evaluate(), self._again()))

    def release(self) -> None:
        """Forget the recording."""
        self._again = None

    def _evaluate(self, *, moves: bool = True, ends: bool = True, adds: bool = True) -> Outcome:
        """One evaluation of the network, and the updates that are wanted."""
        table, ending, logsnr, condition, _ = self._told
        condition = self._on_host if self._words else condition
        v, v_uncond = self._predict(logsnr, condition)
        z_s = hop(self.z, v, table, v_uncond=v_uncond, noise=self.added if adds else None) if moves else None
        if not ends:
            return Outcome(z_s, None)
        return Outcome(z_s, (hop if self._decoded else last_hop)(self.z, v, ending, v_uncond=v_uncond))

    def _predict(self, logsnr: Tensor, condition: Tensor) -> tuple[Tensor, Tensor | None]:
        """v, and v without the condition where waves are guided."""
        z = self.z.to(self._kind)
        if not self._guided:
            return self._network(z, logsnr, condition), None
        both = torch.cat([condition, torch.zeros_like(condition)])
        v, v_uncond = self._network(torch.cat([z, z]), logsnr.repeat(2), both).chunk(2)
        return v, v_uncond

    def _views(self, memory: Tensor) -> dict[str, Tensor]:
        """The fields in a piece of memory."""
        views, start = {}, 0
        for name, (kind, shape) in self._fields.items():
            size = _size(kind, shape)
            views[name] = memory[start : start + size].view(kind).view(shape)
            start += _aligned(size)
        return views


def _size(kind: torch.dtype, shape: tuple[int, ...]) -> int:
    return kind.itemsize * prod(shape)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _own(static: Tensor | None, wanted: bool) -> Tensor | None:
    """What the next wave does not overwrite."""
    return static.clone() if wanted and static is not None else None
