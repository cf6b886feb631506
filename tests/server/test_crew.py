"""A crew evaluates a network as one thread would, and exact samples keep their bits."""

import threading
from concurrent.futures import ThreadPoolExecutor

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
from server.samples import Sample
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


def test_exact_samples_of_a_crew_have_the_same_bits_in_any_crowd(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)  # what a machine of two cores has; tests run with one
    engine = Engine(family, device=torch.device("cpu"), max_wave=8)
    engine.prepare()
    condition = tuple(1 for _ in family.manifest.conditioning.sizes)
    samples = [Sample(teacher_plan("teacher", 3), condition, seed=seed) for seed in range(8)]
    alone = [engine.draw([sample])[0] for sample in samples]
    for size in (2, 5, 8):
        assert all(map(np.array_equal, engine.draw(samples[:size]), alone))
