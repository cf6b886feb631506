"""A crew evaluates a network as one thread would, and exact samples keep their bits."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from diffusion.backbone import Backbone
from diffusion.family import Family
from diffusion.plans import teacher_plan
from diffusion.recording import RecordedNetwork, Recorder
from server.crew import SMALLEST_PART, Crew, CrewNetwork
from server.device import THREADS
from server.engine import Engine
from server.samples import Sample, Turn
from tests.diffusion.test_backbone import backbone


def batch(family: Family, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    z = torch.randn(rows, *family.manifest.shape, generator=torch.Generator().manual_seed(rows))
    condition = torch.ones(rows, len(family.manifest.conditioning.sizes), dtype=torch.int64)
    return z, torch.linspace(-5, 5, rows), condition


@pytest.mark.parametrize("rows", [1, SMALLEST_PART, 2 * SMALLEST_PART, 3 * SMALLEST_PART + 1, 16])
def test_a_crew_gives_every_row_what_the_network_gives_it(family: Family, rows: int) -> None:
    network, asked = family.network("teacher"), batch(family, rows)
    with torch.inference_mode():
        alone, together = network(*asked), CrewNetwork(RecordedNetwork(network, Recorder()), Crew(3))(*asked)
    assert together.shape == alone.shape and torch.allclose(together, alone, atol=1e-4)


def test_every_row_of_a_network_of_diffusers_is_told_its_own_segment_count() -> None:
    teacher = backbone()
    network = Backbone(teacher.config.model_copy(update={"segments": (0, 1, 4)})).eval().requires_grad_(False)
    torch.nn.init.normal_(network.segments.weight)
    z, logsnr = torch.randn(16, 3, 8, 8), torch.zeros(16)
    told = torch.tensor([[4 * (row >= 8)] for row in range(16)])
    with torch.inference_mode():
        alone, crewed = network(z, logsnr, told), CrewNetwork(network, Crew(2))
        assert all(torch.allclose(crewed(z, logsnr, told), alone, atol=1e-4) for _ in range(50))


def test_what_is_done_alone_has_all_threads_whatever_others_compute_with() -> None:
    crew = Crew(3)
    with ThreadPoolExecutor(1) as other:
        other.submit(Crew.lead).result()
        assert crew.alone(lambda z: (z + 1, torch.get_num_threads())[1], torch.zeros(1)) == 3
        assert other.submit(torch.get_num_threads).result() == 1


def test_the_process_does_not_wait_for_an_idle_crew_when_it_ends() -> None:
    before = set(threading.enumerate())
    crew = Crew(2)
    crew.alone(torch.neg, torch.zeros(1))
    idle = set(threading.enumerate()) - before
    assert idle and not any(thread.name.startswith(THREADS) for thread in idle)


def test_what_the_network_raises_comes_out_of_the_crew(family: Family) -> None:
    z, logsnr, condition = batch(family, 16)
    with pytest.raises(ValueError, match="condition has"):
        CrewNetwork(RecordedNetwork(family.network("teacher"), Recorder()), Crew(2))(z, logsnr, condition.repeat(1, 2))


def test_work_that_takes_all_threads_waits_for_parts_and_parts_for_it(family: Family) -> None:
    crew, network = Crew(2), RecordedNetwork(family.network("teacher"), Recorder())
    busy, seen = threading.Semaphore(0), []

    def slow(z: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        seen.append("part begins")
        time.sleep(0.05)
        seen.append("part ends")
        busy.release()
        return z

    network._ways[SMALLEST_PART] = slow
    with ThreadPoolExecutor(3) as leads:
        parts = [leads.submit(crew.evaluate, network, *batch(family, 2 * SMALLEST_PART)) for _ in range(2)]
        busy.acquire()  # at least one part has been begun
        leads.submit(crew.alone, lambda _: seen.extend(["alone begins", "alone ends"]), torch.zeros(1)).result()
        [part.result() for part in parts]
    under_way = 0
    for event in seen:
        under_way += {"begins": 1, "ends": -1}[event.split()[1]]
        assert not event.startswith("alone") or under_way == (event == "alone begins")
    assert seen.count("part ends") == 4 and "alone ends" in seen


@pytest.fixture(scope="module")
def crewed(family: Family) -> Iterator[Engine]:
    """An engine with a crew of two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 2)  # what a machine of two cores has; tests run with one
        engine = Engine(family, device=torch.device("cpu"), max_wave=8)
        engine.prepare()
        yield engine


def some(family: Family) -> list[Sample]:
    condition = tuple(1 for _ in family.manifest.conditioning.sizes)
    return [Sample(teacher_plan("teacher", 3), condition, seed=seed) for seed in range(8)]


def test_exact_samples_of_a_crew_have_the_same_bits_in_any_crowd(family: Family, crewed: Engine) -> None:
    samples = some(family)
    alone = [crewed.draw([sample])[0] for sample in samples]
    for size in (2, 5, 8):
        assert all(map(np.array_equal, crewed.draw(samples[:size]), alone))


def test_two_waves_at_once_give_what_each_gives_alone(family: Family, crewed: Engine) -> None:
    waves = [[Turn(sample, 0, None) for sample in some(family)[first:]] for first in (0, 1, 4, 7)]
    alone = [crewed.draw_wave(wave) for wave in waves]
    for _ in range(5):
        under_way: list[Any] = [crewed.wave(wave) for wave in waves]
        for wave, expected in zip(under_way, alone, strict=True):
            assert all(map(torch.equal, wave.wait(), expected))
