"""Equal samples give equal images: alone, in any crowd, and as the sampling loop of training draws them."""

import asyncio
import random
from typing import Any

import numpy as np
import pytest

from diffusion.family import Family
from diffusion.manifest import GoldenSample
from diffusion.plans import Hop, Plan
from server.engine import Engine, choose_device
from server.invariance import invariant_buckets
from server.samples import Sample
from server.scheduler import Scheduler
from tests.server.tiny import draw_alone

THREE = Plan(
    hops=(
        Hop(member="student-4", t=1.0, s=0.75),
        Hop(member="student-4", t=0.75, s=0.5),
        Hop(member="student-2", t=0.5, s=0.0),
    )
)
"""Three evaluations that begin on one student and end on another."""


def wish(family: Family, number: int, *, exact: bool = True) -> Sample:
    """The so-manyth of a varied lot of samples."""
    chance = random.Random(number)
    steps = chance.choice([1, 2, 3, 4, 4, 32])
    condition = (chance.randint(0, 3), chance.randint(1, 2), chance.randint(0, 2))
    plan = THREE if steps == 3 else family.positions[steps]
    guidance = chance.choice([0.0, 1.0, 2.5]) if steps == 32 else None
    w = family.guidance(plan, guidance)
    return Sample(plan, condition, seed=chance.randrange(2**63), index=chance.randint(0, 3), guidance=w, exact=exact)


def draw_through_waves(engine: Engine, calls: list[list[Sample]]) -> list[list[Any]]:
    """Draw all calls concurrently through a scheduler of the engine."""

    async def main() -> list[list[Any]]:
        scheduler = Scheduler(engine, max_wave=8, max_evaluations=10**6)
        loop = asyncio.create_task(scheduler.run())
        while scheduler.state == "starting":
            await asyncio.sleep(0.01)
        drawn = await asyncio.gather(*(scheduler.draw(call) for call in calls))
        loop.cancel()
        return [[image.pixels for image in images] for images in drawn]

    return asyncio.run(main())


def test_an_exact_sample_has_the_same_bytes_alone_and_in_a_crowd_of_32(family: Family, engine: Engine) -> None:
    samples = [wish(family, number) for number in range(32)]
    alone = [engine.draw([sample])[0] for sample in samples]
    for _ in range(2):
        random.shuffle(order := list(range(32)))
        crowd = draw_through_waves(engine, [[samples[number]] for number in order])
        for number, (pixels,) in zip(order, crowd, strict=True):
            assert np.array_equal(pixels, alone[number]), samples[number]


def test_fast_neighbours_do_not_change_an_exact_sample(family: Family, engine: Engine) -> None:
    samples = [wish(family, number, exact=number % 3 == 0) for number in range(24)]
    crowd = draw_through_waves(engine, [samples[:12], samples[12:]])
    for sample, pixels in zip(samples, [*crowd[0], *crowd[1]], strict=True):
        alone = engine.draw([sample])[0]
        if sample.exact:
            assert np.array_equal(pixels, alone)
        else:  # another order of sums moves a level by one at most here and there
            assert np.abs(pixels.astype(int) - alone.astype(int)).mean() < 1.0


def test_the_image_of_an_index_does_not_depend_on_how_many_are_asked_for(family: Family, engine: Engine) -> None:
    plan = family.positions[2]
    several = [Sample(plan, (1, 1, 1), seed=5, index=index) for index in range(5)]
    assert np.array_equal(engine.draw(several)[3], engine.draw([several[3]])[0])
    assert not np.array_equal(engine.draw([several[0]])[0], engine.draw([several[1]])[0])


@pytest.mark.parametrize(("steps", "guidance"), [(1, None), (2, None), (4, None), (32, None), (32, 0.0), (32, 3.0)])
def test_waves_draw_what_the_sampling_loop_draws(
    family: Family, engine: Engine, steps: int, guidance: float | None
) -> None:
    entry = GoldenSample(steps=steps, condition=(2, 1, 0), seed=2**63 - 1, index=1)
    plan = family.positions[steps]
    sample = Sample(plan, entry.condition, entry.seed, entry.index, family.guidance(plan, guidance))
    expected = draw_alone(family, entry, guidance=guidance).numpy().astype(int)
    assert np.abs(engine.draw([sample])[0].astype(int) - expected).max() <= 1


def test_seed_condition_steps_and_guidance_all_matter(family: Family, engine: Engine) -> None:
    base = Sample(family.positions[32], (1, 1, 1), seed=1, guidance=1.0)
    variants = [
        base,
        Sample(base.plan, base.condition, seed=2, guidance=1.0),
        Sample(base.plan, (2, 1, 1), seed=1, guidance=1.0),
        Sample(base.plan, base.condition, seed=1, guidance=4.0),
        Sample(family.positions[4], base.condition, seed=1),
    ]
    images = {engine.draw([sample])[0].tobytes() for sample in variants}
    assert len(images) == len(variants)


def rows_by(rule: Any) -> Any:
    """A device of which each row's result follows from its number, its place and its batch's size by a rule."""
    return lambda rows: np.array([rule(row, place, len(rows)) for place, row in enumerate(rows)])


def test_buckets_that_agree_with_the_largest_are_exact() -> None:
    assert invariant_buckets(rows_by(lambda row, place, size: row), [1, 2, 4, 8]) == (1, 2, 4, 8)
    assert invariant_buckets(rows_by(lambda row, place, size: (row, size > 1)), [1, 2, 4, 8]) == (2, 4, 8)
    assert invariant_buckets(rows_by(lambda row, place, size: (row, size >= 4)), [1, 2, 4, 6]) == (4, 6)


def test_a_bucket_in_which_the_place_matters_is_never_exact() -> None:
    assert invariant_buckets(rows_by(lambda row, place, size: (row, place)), [1, 2, 4]) == (1,)
    assert invariant_buckets(rows_by(lambda row, place, size: (row, size > 4 and place > 5)), [1, 4, 8]) == (1, 4)
    assert invariant_buckets(rows_by(lambda row, place, size: (row, size == 4 and place == 3)), [1, 4, 8]) == (1, 8)


def test_when_only_single_rows_are_exact_a_wave_draws_them_one_by_one(family: Family) -> None:
    engine = Engine(family, device=choose_device("cpu"), max_wave=4)
    engine.prepare()
    engine._exact = dict.fromkeys(engine._exact, (1,))
    samples = [wish(family, 3, exact=True), wish(family, 3, exact=True), wish(family, 3, exact=False)]
    exact, _, _ = engine.draw(samples)
    assert np.array_equal(exact, engine.draw([samples[0]])[0])
