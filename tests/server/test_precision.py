"""Networks in bf16 draw nearly the same pictures, keep the promise of exact samples, and never answer for fp32's."""

import numpy as np
import pytest

from diffusion.family import Family, open_family
from server.content import content_key, edition
from server.engine import Engine, choose_device
from server.roster import weights_bytes
from server.samples import Sample


@pytest.fixture(scope="module")
def halved(family: Family) -> Family:
    return open_family(family.folder, "bf16")


def test_in_bf16_pictures_are_nearly_the_same_and_exact_ones_do_not_depend_on_the_crowd(
    halved: Family, engine: Engine
) -> None:
    drawing = Engine(halved, device=choose_device("cpu"), max_wave=4)
    drawing.prepare()  # passes the golden check
    samples = [Sample(halved.positions[4], (1, 1, 1), seed=seed) for seed in range(6)]
    alone = [drawing.draw([sample])[0] for sample in samples]
    assert all(np.array_equal(one, other) for one, other in zip(alone, drawing.draw(samples), strict=True))
    full = [engine.draw([sample])[0] for sample in samples]
    differences = [np.abs(one.astype(int) - other).mean() for one, other in zip(alone, full, strict=True)]
    assert 0 < max(differences) < 2


def test_pictures_in_bf16_have_other_names_and_their_networks_half_the_size(family: Family, halved: Family) -> None:
    sample = Sample(family.positions[4], (1, 1, 1), seed=7)
    assert content_key(halved, [sample], "png") != content_key(family, [sample], "png")
    assert edition(halved) != edition(family)
    assert 2 * weights_bytes(halved) == weights_bytes(family)
