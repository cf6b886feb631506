"""A crew evaluates a network as one thread would, and exact samples keep their bits."""

import numpy as np
import pytest
import torch

from diffusion.family import Family
from diffusion.plans import teacher_plan
from server.crew import SMALLEST_PART, Crew, CrewNetwork
from server.engine import Engine
from server.samples import Sample


def batch(family: Family, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    z = torch.randn(rows, *family.manifest.shape, generator=torch.Generator().manual_seed(rows))
    condition = torch.ones(rows, len(family.manifest.conditioning.sizes), dtype=torch.int64)
    return z, torch.linspace(-5, 5, rows), condition


@pytest.mark.parametrize("rows", [1, SMALLEST_PART, 2 * SMALLEST_PART, 3 * SMALLEST_PART + 1, 16])
def test_a_crew_gives_every_row_what_the_network_gives_it(family: Family, rows: int) -> None:
    network, asked = family.network("teacher"), batch(family, rows)
    with torch.inference_mode():
        alone, together = network(*asked), CrewNetwork(network, Crew(3))(*asked)
    assert together.shape == alone.shape and torch.allclose(together, alone, atol=1e-4)


def test_what_the_network_raises_comes_out_of_the_crew(family: Family) -> None:
    z, logsnr, condition = batch(family, 16)
    with pytest.raises(ValueError, match="condition has"):
        CrewNetwork(family.network("teacher"), Crew(2))(z, logsnr, condition.repeat(1, 2))


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
