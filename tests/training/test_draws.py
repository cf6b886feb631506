"""Random numbers that belong to places: the same in any division of a batch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from training.draws import Draws, normal, stratified_uniform, uniform
from training.share import Share

DIVISIONS = st.tuples(st.integers(1, 4), st.integers(1, 5), st.sampled_from([(1,), (1, 1, 1), (1, 3), (2, 1, 1)]))


def drawn(size: int, of: int, division: int, parts: tuple[int, ...], seed: int) -> tuple[Tensor, ...]:
    """What each place of a batch of size * of gets in a division: numbers, strata of all, strata of each part, noise twice."""
    batch = size * of * sum(parts)
    found = [torch.zeros(batch, 3), *torch.zeros(2, batch, dtype=torch.float64), *torch.zeros(2, batch, 2, 2)]
    for index in range(division):
        share = Share(batch, index, division, parts)
        draws, places = Draws("cpu", seed=seed, share=share), torch.tensor(share.places)
        found[0][places] = uniform(share.size, 3, generator=draws)
        found[1][places] = stratified_uniform(share.size, draws)
        found[2][places] = torch.cat([stratified_uniform(len(run), draws) for run in share.runs])
        for noise in found[3:]:
            noise[places] = normal((share.size, 2, 2), draws)
    return tuple(found)


@given(DIVISIONS, st.integers(0, 9))
def test_a_place_draws_the_same_in_any_division(division: tuple[int, int, tuple[int, ...]], seed: int):
    size, of, parts = division
    for whole, shared in zip(drawn(size, of, 1, parts, seed), drawn(size, of, of, parts, seed), strict=True):
        assert torch.equal(whole, shared)


@given(DIVISIONS, st.integers(0, 9))
def test_the_strata_are_those_of_the_global_batch_in_every_part(division: tuple[int, int, tuple[int, ...]], seed: int):
    size, of, parts = division
    _, of_all, of_parts, *_ = drawn(size, of, of, parts, seed)
    for strata in (of_all, *of_parts.split([size * of * part for part in parts])):
        assert torch.equal((strata * len(strata)).long().sort().values, torch.arange(len(strata)))


def test_no_two_images_and_no_two_seeds_share_their_noise():
    both = torch.cat([drawn(64, 1, 1, (1,), seed)[row] for seed in (0, 1) for row in (3, 4)]).flatten(1)
    assert len({tuple(row) for row in both.tolist()}) == 4 * 64
    assert both.mean().item() == pytest.approx(0, abs=0.15) and both.std().item() == pytest.approx(1, abs=0.1)


def test_what_torch_itself_draws_differs_between_shares():
    shares = [torch.rand(8, generator=Draws("cpu", seed=3, share=Share(16, index, 2))) for index in range(2)]
    assert not torch.equal(*shares)


def test_a_plain_generator_stands_for_a_whole_batch():
    numbers = stratified_uniform(50, torch.Generator().manual_seed(0))
    assert torch.equal((numbers * 50).long().sort().values, torch.arange(50))
    assert uniform(4, 2, generator=torch.Generator()).shape == (4, 2)
    assert normal((4, 3, 2, 2), torch.Generator()).shape == (4, 3, 2, 2)


@given(DIVISIONS)
def test_the_shares_of_a_batch_are_all_of_it_and_have_equal_runs_of_every_part(
    division: tuple[int, int, tuple[int, ...]],
):
    size, of, parts = division
    batch = size * of * sum(parts)
    shares = [Share(batch, index, of, parts) for index in range(of)]
    assert sorted(place for share in shares for place in share.places) == list(range(batch))
    for share in shares:
        assert [len(run) for run in share.runs] == [size * part for part in parts] and share.size == size * sum(parts)
