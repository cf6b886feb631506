"""The order of a stream: every image once an epoch, computed from (seed, position) alone."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.order import TOGETHER, Order, mixed_seed, permuted

SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=40).filter(any)


@given(st.integers(1, 3000), st.integers(0, 2**63 - 1))
def test_a_permutation_sends_every_place_to_another_one(size: int, key: int):
    assert sorted(permuted(np.arange(size), size, key).tolist()) == list(range(size))


@given(st.integers(2, 2**40), st.integers(0, 2**63 - 1), st.lists(st.integers(0, 2**40), min_size=1, max_size=20))
def test_a_place_is_sent_to_the_same_one_whatever_else_is_asked(size: int, key: int, places: list[int]):
    asked = np.array(places) % size
    together = permuted(asked, size, key)
    assert [int(permuted(np.array([place]), size, key)[0]) for place in asked] == together.tolist()
    assert len(set(together.tolist())) == len(set(asked.tolist())) and together.max() < size


@given(SIZES, st.integers(0, 200), st.integers(1, 60), st.integers(1, 59), st.integers(0, 5))
def test_what_is_at_a_position_does_not_depend_on_where_reading_began(
    sizes: list[int], start: int, count: int, cut: int, seed: int
):
    order = Order(sizes)
    whole = order.rows(start, count, seed=seed).tolist()
    cut = min(cut, count)
    parts = Order(sizes).rows(start, cut, seed=seed).tolist()
    parts += order.rows(start + cut, count - cut, seed=seed).tolist()
    assert parts == whole


@given(SIZES, st.integers(0, 9), st.integers(0, 9))
def test_every_epoch_shows_every_image_once(sizes: list[int], epoch: int, seed: int):
    order = Order(sizes)
    rows = order.rows(epoch * order.total, order.total, seed=seed)
    assert sorted(rows.tolist()) == list(range(sum(sizes)))


@pytest.mark.parametrize("sizes", [[40], [1] * 40, [2, 0, 5, 1] * 5])
def test_epochs_and_seeds_have_orders_of_their_own(sizes: list[int]):
    order = Order(sizes)
    seen = {tuple(order.rows(epoch * 40, 40, seed=seed)) for epoch in range(8) for seed in range(8)}
    assert len(seen) == 64


def test_all_orders_of_few_images_come_up_about_equally_often():
    seen = Counter(tuple(Order([3]).rows(0, 3, seed=seed).tolist()) for seed in range(300))
    assert len(seen) == 6
    # 50 each expected; chi-square with 5 degrees of freedom is below 26 in 9,999 of 10,000 fair cases
    assert sum((count - 50) ** 2 / 50 for count in seen.values()) < 26


def test_neighbours_in_the_set_are_no_neighbours_in_the_stream():
    rows = Order([100_000]).rows(0, 100_000, seed=3)
    assert abs(np.corrcoef(rows[:-1], rows[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(rows, np.arange(100_000))[0, 1]) < 0.02
    assert (np.abs(np.diff(rows)) == 1).mean() < 1e-4


def test_of_many_shards_only_a_few_are_read_at_a_time_and_all_in_an_epoch():
    count, each = 5 * TOGETHER + 3, 30
    shards = Order([each] * count).rows(0, count * each, seed=1) // each
    blocks = [set(shards[at : at + TOGETHER * each].tolist()) for at in range(0, count * each, TOGETHER * each)]
    assert [len(block) for block in blocks] == [TOGETHER] * 5 + [3]
    assert len(set.union(*blocks)) == count and blocks[0] != set(range(TOGETHER))
    first = Order([each] * count).rows(0, 2 * each, seed=1)
    assert len(set((first // each).tolist())) > TOGETHER // 2  # the shards of a block are mixed from its beginning


@given(st.lists(st.tuples(st.integers(0, 10), st.integers(0, 100_000)), min_size=2, max_size=50, unique=True))
def test_seeds_of_different_iterations_and_runs_differ(pairs: list[tuple[int, int]]):
    seeds = {mixed_seed(*pair) for pair in pairs}
    assert len(seeds) == len(pairs) and all(0 <= seed < 2**63 for seed in seeds)


def test_the_order_of_a_stream_is_the_one_that_earlier_runs_saw():
    """A change of these numbers would change what a resumed run sees."""
    assert Order([10]).rows(0, 12, seed=1).tolist() == PINNED_WHOLE
    assert Order([3, 1, 4] * 7).rows(50, 12, seed=2).tolist() == PINNED_SHARDS


PINNED_WHOLE = [8, 6, 9, 2, 4, 0, 7, 3, 5, 1, 7, 1]
PINNED_SHARDS = [23, 1, 43, 21, 22, 25, 3, 8, 22, 42, 35, 14]
