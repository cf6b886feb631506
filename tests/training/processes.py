"""What the processes of test_world.py do: train the same in several ways, and write down losses and weights.

torchrun --nproc-per-node 2 tests/training/processes.py FAMILY FOLDER
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from diffusion.family import Family, open_family
from diffusion.uvit import PRESETS, UViT
from training.datasets import DataSet, digits
from training.failures import TrainingError
from training.feed import feed
from training.run import Loss, Run
from training.student import distillation, new_whole_run
from training.student_settings import StudentSettings
from training.teacher import TeacherSettings, teacher_loss
from training.world import World

ITERATIONS, BATCH, COUNTS = 4, 24, (0, 1, 4)
WAYS: dict[str, tuple[bool, dict[str, int | bool]]] = {  # shard, how Run.spread is asked
    "all in each": (False, {}),
    "turns": (False, {"turns": 2}),
    "sharded": (True, {"turns": 4, "checkpointing": True}),
}
"""Ways to spread the same training."""


def teacher(folder: Path, family: Family, **changes: object) -> tuple[Run, Loss, tuple[int, ...]]:
    """Return a run of a teacher without dropout, its loss, and the parts of its batch."""
    given = {
        "preset": "debug",
        "iterations": 2 * ITERATIONS,
        "batch": BATCH,
        "warmup": 2,
        "lr": 2e-3,
        "precision": "fp32",
    }
    settings = TeacherSettings.model_validate(given | changes)
    torch.manual_seed(settings.seed)
    network = UViT(PRESETS["debug"].model_copy(update={"slots": (10,)}))
    run = Run(network, settings, folder, settings=settings.model_dump(mode="json"))
    return run, lambda network, x, condition, _, draws: teacher_loss(settings, network, x, condition, draws), (1,)


def whole(folder: Path, family: Family) -> tuple[Run, Loss, tuple[int, ...]]:
    """Return a run of a student for the whole dial, its loss, and the parts of its batch."""
    settings = StudentSettings(
        iterations=2 * ITERATIONS, batch=BATCH, warmup=2, lr=1e-3, precision="fp32", guidance=1.0
    )
    run = new_whole_run(settings, COUNTS, family, folder, torch.device("cpu"))
    return run, distillation(settings, COUNTS, family, torch.device("cpu"), run), (1,) * len(COUNTS)


KINDS: dict[str, Callable[..., tuple[Run, Loss, tuple[int, ...]]]] = {"teacher": teacher, "whole": whole}


def trained(run: Run, loss: Loss, data: DataSet, iterations: int = ITERATIONS) -> list[float]:
    """Train a run that is spread already, without fit's checkpoints, and return the loss of each iteration to come."""
    batches = feed(
        data,
        batch=run.schedule.batch,
        seed=run.schedule.seed,
        iterations=range(run.iteration, iterations),
        shares=run.shares,
    )
    with batches as following:
        return [run.step(following, loss) for _ in range(run.iteration, iterations)]


def broken(folder: Path, family: Family, data: DataSet, world: World) -> str:
    """Have the last process alone meet a loss that is no number in iteration 3, and return what this process says."""
    run, loss, _ = teacher(folder / "broken", family)
    run.spread(world)

    def failing(network: nn.Module, x: Tensor, condition: Tensor, iteration: int, draws: torch.Generator) -> Tensor:
        bad = iteration == 3 and world.rank == world.size - 1
        return loss(network, x, condition, iteration, draws) * (float("nan") if bad else 1.0)

    try:
        trained(run, failing, data)
    except TrainingError as error:
        return str(error)
    return "nothing"


def main() -> None:
    """Train in every way, save every run, and write what there is to compare."""
    family, folder, data = open_family(Path(sys.argv[1])), Path(sys.argv[2]), digits()
    torch.set_num_threads(1)
    losses: dict[str, list[float]] = {}
    for way, (shard, how) in WAYS.items():
        world = World("cpu", shard=shard)
        for kind, begin in KINDS.items():
            losses[f"{way}, {kind}"] = []
            for until in (2, ITERATIONS):  # a new run goes on from what the first one saved
                run, loss, parts = begin(folder / way / kind, family)
                run.folder.mkdir(parents=True, exist_ok=True)
                run.spread(world, parts=parts, **how)
                assert run.resume() == (until > 2)
                losses[f"{way}, {kind}"] += trained(run, loss, data, until)
                run.save()
    said = {"losses": losses, "broken": broken(folder, family, data, world), "size": world.size}
    (folder / f"rank{world.rank}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main()
