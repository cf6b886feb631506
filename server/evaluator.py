"""The evaluator: one evaluation of a batch's network and the update after it, in memory of its own."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffusion.capture import Capture
from diffusion.family import Family
from diffusion.plans import Evaluation, coefficient_row, correction_row, halfway
from kernels import Column
from server.replay import Network, Replay, Told
from server.samples import Previewed, Turn


class Halfway(NamedTuple):
    """The latent of a sample amid a heun hop."""

    z: Tensor
    """Where the first evaluation led to, (C, H, W)."""
    kept: Tensor
    """What the second adds to its own x_hat (`diffusion.plans.halfway`)."""


class Evaluator:
    """Evaluates batches, one at a time."""

    def __init__(
        self,
        family: Family,
        device: torch.device,
        networks: Mapping[str, Network],
        decode: Callable[[Tensor], Tensor] | None,
    ):
        """networks: by the names of members.  decode: makes images of latents, of families whose networks draw latents."""
        self._family, self._device, self._networks, self._decode = family, device, networks, decode
        self._rows: dict[Evaluation, tuple[np.ndarray, float]] = {}
        self.replays: dict[tuple[str, bool, int], Replay] = {}
        """What was evaluated so far: (member, guided, rows) -> its memory, and its recording where there is one."""

    @torch.inference_mode()
    def evaluate(self, turns: Sequence[Turn], bucket: int) -> list[Any]:
        """Take one evaluation of turns of one member and like guidance, padded to `bucket` rows by repeating the first.

        Returns latents, of last turns images (H, W, C), and `Previewed` where a turn asks for a preview.
        """
        replay = self._replay(turns[0], bucket)
        adds = self._load(replay, turns, bucket)
        z_s, ended = replay.run(
            moves=not all(turn.is_last for turn in turns),
            ends=any(turn.makes_image for turn in turns),
            adds=adds,
        )
        images = {} if ended is None else self._images(turns, ended)
        return [
            images[row]
            if turn.is_last
            else self._moved(turn, replay.z[row], z_s[row], images[row] if turn.preview else None)
            for row, turn in enumerate(turns)
        ]

    @torch.inference_mode()
    def record(self, turns: Sequence[Turn], bucket: int, capture: Capture) -> str | None:
        """Have waves of this size recorded and keep that where repeating gives the bits of evaluating; else say why not.

        turns: others than were evaluated last.  A device that is lost says so there.
        """
        replay, why = self._replay(turns[0], bucket), "its repetition has other bits"
        try:
            replay.capture(capture)  # over the facts of the wave before, for this one to replace
            self._load(replay, turns, bucket)
            if replay.agrees():
                return None
        except RuntimeError as error:
            why = str(error).partition("\n")[0]
        replay.release()
        return why

    def _replay(self, turn: Turn, bucket: int) -> Replay:
        """The shape of a batch's waves, made when it is first used."""
        member, guided = turn.hop.member, turn.guidance != 0
        known = self.replays.get((member, guided, bucket))
        if known is None:
            known = self.replays[member, guided, bucket] = Replay(
                self._networks[member],
                rows=bucket,
                shape=self._family.manifest.shape,
                columns=len(turn.condition),
                guided=guided,
                decoded=self._decode is not None,
                words=self._family.manifest.text is not None,
                device=self._device,
                kind=kind_of(self._family),
            )
        return known

    def _load(self, replay: Replay, turns: Sequence[Turn], bucket: int) -> bool:
        """Tell a wave its turns, and return whether their updates add anything beside x_hat and eps_hat."""
        padded = [*turns, *[turns[0]] * (bucket - len(turns))]
        replay.tell(partial(self._write, turns, padded))
        latents = self._latents(replay, turns)
        torch.stack([*latents, *[latents[0]] * (bucket - len(turns))], out=replay.z)
        adds = any(turn.hop.random or turn.evaluation.corrects for turn in turns)
        if adds:
            drawn = replay.noise(len(turns), begins=False)
            kept = (turn.latent.kept if turn.evaluation.corrects else drawn[row] for row, turn in enumerate(turns))
            torch.stack(list(kept), out=replay.added[: len(turns)])
        return adds

    def _write(self, turns: Sequence[Turn], padded: Sequence[Turn], told: Told) -> None:
        """Write all facts of a batch: coefficients, conditions, and which noise is drawn."""
        rows = [self._row(turn) for turn in padded]
        told.table[:] = [row for row, _ in rows]
        told.table[:, Column.GUIDANCE] = [turn.guidance for turn in padded]
        told.ending[:] = told.table
        told.ending[:, Column.OUT_X] = 1.0  # what the image would be if it ended with this evaluation
        told.ending[:, [Column.OUT_EPS, Column.Z_VAR, Column.OUT_NOISE]] = 0.0
        told.logsnr[:] = [logsnr for _, logsnr in rows]
        told.condition[:] = [turn.condition for turn in padded]
        begun = [(turn.sample.seed, turn.sample.index, 0) for turn in turns if turn.latent is None]
        told.draws[:, 0, : len(begun)] = np.array(begun, dtype=np.int64).reshape(-1, 3).T
        told.draws[:, 1, : len(turns)] = np.array([_stream(turn) for turn in turns], dtype=np.int64).T

    def _moved(self, turn: Turn, z_t: Tensor, z_s: Tensor, preview: np.ndarray | None) -> Any:
        """What a turn that is not the last returns."""
        latent: Any = z_s
        if not turn.ends_hop:
            latent = Halfway(z_s, halfway(turn.hop, self._family.manifest.schedule, z_t, z_s))
        return latent if preview is None else Previewed(latent, preview)

    @staticmethod
    def _latents(replay: Replay, turns: Sequence[Turn]) -> list[Tensor]:
        """The turns' latents; those that begin get the noise of their seed, which no neighbour changes."""
        new = sum(turn.latent is None for turn in turns)
        drawn = iter(replay.noise(new, begins=True)) if new else iter(())
        known = (turn.latent.z if turn.evaluation.corrects else turn.latent for turn in turns)
        return [next(drawn) if latent is None else latent for latent in known]

    def _images(self, turns: Sequence[Turn], ended: Tensor) -> dict[int, np.ndarray]:
        """x_hat as images, by row; latents are decoded where somebody looks at them."""
        if self._decode is None:
            return dict(enumerate(self._to_host(ended)))
        shown = [row for row, turn in enumerate(turns) if turn.makes_image]
        decoded = self._decode(torch.stack([ended[row] for row in shown]))
        return dict(zip(shown, self._to_host(decoded), strict=True))

    def _to_host(self, images: Tensor) -> np.ndarray:
        """Images in host memory; of a GPU's they are there once the wave is finished, without waiting for it now."""
        if self._device.type != "cuda":
            return images.numpy()
        return torch.empty_like(images, device="cpu", pin_memory=True).copy_(images, non_blocking=True).numpy()

    def _row(self, turn: Turn) -> tuple[np.ndarray, float]:
        """The turn's row of the coefficient table, but for what the sample decides, and its logsnr."""
        known = self._rows.get(turn.evaluation)
        if known is None:
            schedule = self._family.manifest.schedule
            if turn.evaluation.corrects:
                row = correction_row(turn.hop, schedule)
            else:
                row = coefficient_row(turn.hop, schedule, variance=self._family.variance)
            known = self._rows[turn.evaluation] = row.float().numpy(), schedule.logsnr(turn.evaluation.t).item()
        return known


def kind_of(family: Family) -> torch.dtype:
    """Return what a family's networks take latents as."""
    return torch.bfloat16 if family.precision == "bf16" else torch.float32


def _stream(turn: Turn) -> tuple[int, int, int]:
    """Seed, index and stream of the noise of the turn's hop."""
    earlier = turn.sample.plan.evaluations[: turn.number]
    return turn.sample.seed, turn.sample.index, 1 + sum(not evaluation.corrects for evaluation in earlier)
