"""The engine draws every plan of a family as the sampling loop of training does, previews it, and names what went wrong."""

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from diffusion.family import Family
from diffusion.plans import Hop, Plan, teacher_plan
from diffusion.sampler import sample as draw_alone
from kernels import last_hop
from server.engine import Engine, choose_device
from server.failures import OutOfMemory
from server.samples import Previewed, Sample, Turn
from server.scheduler import Scheduler


def loop_draws(family: Family, sample: Sample) -> np.ndarray:
    """The image that the sampling loop draws of a sample."""
    return draw_alone(
        {name: family.network(name) for name in sample.plan.members},
        sample.plan,
        family.manifest.schedule,
        torch.tensor([sample.condition]),
        seeds=[sample.seed],
        indices=[sample.index],
        shape=family.manifest.shape,
        guidance=sample.guidance,
        variance=family.variance,
    )[0].numpy()


def differ(one: np.ndarray, other: np.ndarray) -> int:
    """Largest difference in levels."""
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def through(*hops: tuple[str, float, str]) -> Plan:
    """A plan of these members, each to its time by its rule."""
    times = [1.0, *(s for _, s, _ in hops)]
    return Plan(
        hops=tuple(
            Hop(member=member, t=t, s=s, rule=rule, clip=member == "teacher")  # type: ignore[arg-type]
            for t, (member, s, rule) in zip(times, hops, strict=False)
        )
    )


PLANS = {
    "guided amid": teacher_plan("teacher", 5, guided=(0.3, 0.7)),
    "heun": teacher_plan("teacher", 9, rule="heun"),
    "heun, then noise": through(
        ("teacher", 0.75, "heun"),
        ("teacher", 0.5, "ancestral"),
        ("teacher", 0.25, "noise_ddim"),
        ("teacher", 0.0, "ddim"),
    ),
    "heun of the first step, then a student": through(("teacher", 0.5, "heun"), ("student-2", 0.0, "ddim")),
    "two students": through(("student-4", 0.75, "ddim"), ("student-4", 0.5, "ddim"), ("student-2", 0.0, "ddim")),
    "a short cut": through(("student-4", 0.75, "ddim"), ("student-1", 0.0, "ddim")),
}


@pytest.mark.parametrize("guidance", [0.0, 2.0])
@pytest.mark.parametrize("name", PLANS)
def test_a_composed_or_heun_plan_is_drawn_as_the_sampling_loop_draws_it(
    name: str, guidance: float, family: Family, engine: Engine
) -> None:
    sample = Sample(PLANS[name], (2, 1, 1), seed=11, index=3, guidance=guidance)
    assert differ(engine.draw([sample])[0], loop_draws(family, sample)) <= 1


def test_heun_plans_share_waves_with_others_and_keep_their_bytes(engine: Engine) -> None:
    plans = [*PLANS.values(), teacher_plan("teacher", 6)]
    samples = [Sample(plan, (1, 2, 1), seed=seed) for seed, plan in enumerate(plans * 2)]
    alone = [engine.draw([sample])[0] for sample in samples]

    async def main() -> list[Any]:
        scheduler = Scheduler(engine, max_wave=8, max_evaluations=10**6)
        loop = asyncio.create_task(scheduler.run())
        while scheduler.state == "starting":
            await asyncio.sleep(0.01)
        drawn = await scheduler.draw(samples)
        loop.cancel()
        return drawn

    for pixels, drawn, sample in zip(alone, asyncio.run(main()), samples, strict=True):
        assert np.array_equal(pixels, drawn.pixels) and drawn.evaluations == sample.plan.steps


def test_a_preview_is_the_image_that_would_end_there_and_changes_nothing(family: Family, engine: Engine) -> None:
    asked, quiet = (Sample(family.positions[4], (1, 1, 1), seed=seed) for seed in (1, 2))
    turns = [Turn(asked, 0, None, preview=True), Turn(quiet, 0, None)]
    first, second = engine.draw_wave(turns)
    assert isinstance(first, Previewed) and isinstance(second, torch.Tensor)
    assert torch.equal(first.latent, engine.draw_wave([replace(turn, preview=False) for turn in turns])[0])
    short = Sample(through(("student-4", 0.0, "ddim")), (1, 1, 1), seed=1)
    assert np.array_equal(first.pixels, engine.draw([short])[0])


def test_a_preview_of_a_guided_teacher_is_guided(family: Family, engine: Engine) -> None:
    sample = Sample(teacher_plan("teacher", 4), (1, 1, 1), seed=1, guidance=3.0)
    (preview,) = engine.draw_wave([Turn(sample, 0, None, preview=True)])
    short = Sample(through(("teacher", 0.0, "ddim")), (1, 1, 1), seed=1, guidance=3.0)
    assert np.array_equal(preview.pixels, engine.draw([short])[0])


def test_preparing_times_every_network_at_every_size_guided_and_not(family: Family) -> None:
    engine = Engine(family, device=choose_device("cpu"), max_wave=3)
    timings = engine.prepare()
    teacher = [(timing.guided, timing.rows) for timing in timings if timing.network == "teacher"]
    assert sorted(teacher) == [(guided, rows) for guided in (False, True) for rows in (1, 2, 3)]
    assert {timing.network for timing in timings} == {member.name for member in family.manifest.members}
    assert all(timing.seconds > 0 for timing in timings)


def test_a_wave_for_which_there_is_no_memory_says_so(family: Family, engine: Engine, monkeypatch: Any) -> None:
    def greedy(z: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return torch.empty(2**60)  # the allocator of this machine refuses

    monkeypatch.setattr("server.replay.last_hop", greedy)
    turn = Turn(Sample(family.positions[1], (1, 1, 1), seed=1), 0, None)
    with pytest.raises(OutOfMemory) as refusal:
        engine.draw_wave([turn])
    assert refusal.value.__cause__ is None and refusal.value.__context__ is None  # the failed wave's tensors are free
    monkeypatch.setattr("server.replay.last_hop", last_hop)
    assert engine.draw([turn.sample])[0].shape == (8, 8, 3)


def test_a_family_for_which_there_is_no_memory_says_so_and_leaves_nothing_behind(
    family: Family, monkeypatch: Any
) -> None:
    engine = Engine(family, device=choose_device("cpu"), max_wave=1)
    with monkeypatch.context() as patch:
        patch.setattr("server.replay.hop", lambda *_, **__: torch.empty(2**60))
        with pytest.raises(OutOfMemory):
            engine.prepare()
    assert not engine._networks
    assert engine.prepare()
