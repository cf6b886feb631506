"""The command `benchmarks/gpu/run`."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from time import monotonic

from benchmarks.gpu.piece import Ask, Piece, Result, run
from benchmarks.gpu.pieces import PIECES
from benchmarks.gpu.report import write_table
from diffusion import provenance

HERE = Path(__file__).parent
MORE = 75
"""Exit status when there is more to do: start the same command again."""


def parser() -> argparse.ArgumentParser:
    """Return what reads the command line."""
    made = argparse.ArgumentParser(
        prog="benchmarks/gpu/run",
        description="Measure and train on a GPU, in pieces that end in time and go on when they are started again. Exit status: "
        f"0 when the piece is done, {MORE} when the same command is to be started again, 1 when a step failed.",
    )
    made.add_argument("--list", action="store_true", help="list the pieces, their steps, and which are done")
    made.add_argument("--piece", choices=[piece.name for piece in PIECES], help="the piece to run")
    made.add_argument("--minutes", type=float, default=8.0, help="end before so many minutes (default: 8)")
    made.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu")
    made.add_argument(
        "--tiny", action="store_true", help="smallest sizes, to try the pieces; such numbers mean nothing"
    )
    made.add_argument("--again", action="store_true", help="also steps that are done")
    made.add_argument("--results", type=Path, default=HERE, help="folder of the result files (default: this one)")
    made.add_argument(
        "--work", type=Path, default=HERE.parents[1] / "runs" / "gpu", help="folder of checkpoints and copies"
    )
    made.add_argument("--readme", action="store_true", help="write what was measured into README.md")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments say and return the exit status."""
    asked = parser().parse_args(arguments)
    provenance.commit()  # of the code that runs, before it changes under a long run
    ask = Ask(
        device=asked.device,
        tiny=asked.tiny,
        until=monotonic() + 60 * asked.minutes,
        results=asked.results,
        work=asked.work,
    )
    if asked.readme:
        write_table(HERE / "README.md", ask)
        return 0
    if not asked.piece:
        print("\n".join(line for piece in PIECES for line in _listed(piece, ask)))
        return 0
    (piece,) = (piece for piece in PIECES if piece.name == asked.piece)
    result = run(piece, ask, again=asked.again)
    return 1 if result.failed else MORE if result.unfinished else 0


def _listed(piece: Piece, ask: Ask) -> list[str]:
    """A piece and its steps, as lines."""
    result = Result.read(piece, ask.results)
    lines = [f"{piece.name}: {piece.question}"]
    for step in piece.steps(ask):
        done = [
            f"{d.device}, {d.commit}, {d.measured_at[:10]}" for d in result.done if d.step == step.name and not d.tiny
        ]
        state = "; ".join(done) or result.failed.get(step.name) or result.unfinished.get(step.name)
        lines.append(f"  {step.name}: {state or 'not measured'}")
    return lines
