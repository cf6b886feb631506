"""Waves that are recorded once and repeated give the bits of waves that are evaluated, or are not repeated."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from diffusion.family import Family
from diffusion.plans import Hop, Plan, teacher_plan
from server.engine import Engine, choose_device
from server.samples import Previewed, Sample, Turn
from tests.diffusion.captures import fixed_memory, impossible
from tests.kernels.host_sync import NoHostSync

MIXED = Plan(
    hops=(
        Hop(member="teacher", t=1.0, s=0.75, rule="heun", clip=True),
        Hop(member="teacher", t=0.75, s=0.5, rule="ancestral", clip=True),
        Hop(member="student-2", t=0.5, s=0.0),
    )
)
"""Every kind of update: two evaluations in one hop, fresh noise, a change of network."""


def prepared(family: Family, capture: Any = None, device: str = "cpu") -> Engine:
    engine = Engine(family, device=choose_device(device), max_wave=4, capture=capture)
    engine.prepare()
    return engine


def lot(family: Family) -> list[Sample]:
    plans = [MIXED, family.positions[4], teacher_plan("teacher", 3)]
    return [
        Sample(plan, (1, 2, seed % 3), seed=seed, index=seed % 2, guidance=w)
        for seed, (plan, w) in enumerate((plan, w) for plan in plans for w in (0.0, 2.0))
    ]


def shapes(engine: Engine) -> dict[tuple[str, bool, int], bool]:
    return {key: replay.is_captured for key, replay in engine._evaluators[0].replays.items()}


@pytest.fixture(scope="module")
def repeating(family: Family) -> Engine:
    """An engine whose waves are repetitions of recorded ones."""
    return prepared(family, fixed_memory)


def test_every_network_and_size_is_recorded_before_the_engine_is_ready(repeating: Engine, family: Family) -> None:
    members = {(member.name, False) for member in family.manifest.members} | {("teacher", True)}
    recorded = shapes(repeating)
    assert recorded == {(name, guided, rows): True for name, guided in members for rows in (1, 2, 4)}


def test_repeated_waves_draw_the_same_bytes_as_evaluated_ones(
    repeating: Engine, engine: Engine, family: Family
) -> None:
    for sample in lot(family):
        assert np.array_equal(repeating.draw([sample])[0], engine.draw([sample])[0])


def test_what_a_wave_returned_is_not_overwritten_by_the_next(repeating: Engine, family: Family) -> None:
    first, second = (
        [Turn(Sample(family.positions[steps], (1, 1, 1), seed=seed), 0, None, preview=True) for seed in seeds]
        for steps, seeds in ((4, (1, 2)), (4, (3, 4)))
    )
    results: Any = repeating.draw_wave(first)
    before = [(result.latent.clone(), result.pixels.copy()) for result in results]
    assert all(isinstance(result, Previewed) for result in repeating.draw_wave(second))
    for result, (latent, pixels) in zip(results, before, strict=True):
        assert torch.equal(result.latent, latent) and np.array_equal(result.pixels, pixels)


def wrong(step: Callable[[], Any], /) -> Callable[[], Any]:
    """Repeat the step's first results, whatever it is to read: what a graph does that has the inputs' values in it."""
    results = step()
    return lambda: results


@pytest.mark.parametrize(
    ("capture", "why"), [(wrong, "other bits"), (impossible, "operation not permitted when stream is capturing")]
)
def test_a_wave_that_cannot_be_repeated_is_evaluated_and_the_log_says_why(
    capture: Any, why: str, family: Family, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        stubborn = prepared(family, capture)
    assert not any(shapes(stubborn).values())
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == len(shapes(stubborn)) and all(why in line and "more of it" not in line for line in lines)
    sample = lot(family)[0]
    assert np.array_equal(stubborn.draw([sample])[0], engine.draw([sample])[0])


def test_the_evaluation_of_a_wave_never_waits_for_the_host(engine: Engine) -> None:
    assert engine._evaluators[0].replays
    for replay in engine._evaluators[0].replays.values():
        with torch.inference_mode(), NoHostSync():
            replay._evaluate()


def test_every_field_of_what_a_wave_is_told_begins_where_kernels_read_it_at_once(engine: Engine) -> None:
    for replay in engine._evaluators[0].replays.values():
        begin = replay._told
        assert all(field.data_ptr() % 16 == 0 for field in (begin.table, begin.ending, begin.logsnr, begin.condition))
        assert all(row.data_ptr() % 16 == 0 for kind in begin.draws for row in kind)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_waves_are_cuda_graphs_with_the_bits_of_evaluated_ones(family: Family) -> None:
    graphs, eager = prepared(family, device="cuda"), prepared(family, impossible, device="cuda")
    assert all(shapes(graphs).values()) and not any(shapes(eager).values())
    for sample in lot(family):
        assert np.array_equal(graphs.draw([sample])[0], eager.draw([sample])[0])
    together = [turn for turn in (Turn(sample, 0, None) for sample in lot(family)[:2])]
    assert len(graphs.draw_wave(together)) == 2
