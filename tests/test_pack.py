"""Bins and step order: every row once, nothing over capacity, the same everywhere."""

from hashlib import blake2b
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.tokens.order import rows_of_epoch
from tunesmith.tokens.pack import pack

LENGTHS = st.lists(st.integers(1, 100), max_size=200)


@given(LENGTHS, st.integers(100, 400))
def test_every_row_is_in_one_bin_that_holds_it(lengths, capacity):
    bins = pack(lengths, capacity)
    assert sorted(row for rows in bins for row in rows) == list(range(len(lengths)))
    assert all(0 < sum(lengths[row] for row in rows) <= capacity for rows in bins)
    assert bins == pack(lengths, capacity)


@given(LENGTHS, st.integers(100, 400))
def test_bins_are_few(lengths, capacity):
    bins = pack(lengths, capacity)
    assert (
        sum(2 * sum(lengths[row] for row in rows) <= capacity for rows in bins) <= 1
    )  # two half-empty ones would be one


def test_best_fit_takes_the_tightest_bin():
    assert pack([6, 5, 4, 3, 2], 10) == [[0, 2], [1, 3, 4]]
    assert pack([], 10) == []
    with pytest.raises(ValueError, match="row 1 has 11 tokens"):
        pack([3, 11], 10)


@given(LENGTHS, st.integers(100, 400), st.integers(0, 5), st.integers(0, 3))
def test_every_row_is_in_one_step_of_an_epoch(lengths, tokens_per_step, seed, epoch):
    steps = rows_of_epoch(lengths, tokens_per_step, seed, epoch)
    assert sorted(row for rows in steps for row in rows) == list(range(len(lengths)))
    assert all(0 < sum(lengths[row] for row in rows) <= tokens_per_step for rows in steps)
    for rows, later in pairwise(steps):
        assert sum(lengths[row] for row in rows) + lengths[later[0]] > tokens_per_step  # full


def test_the_order_changes_with_seed_and_epoch_and_with_nothing_else():
    first = rows_of_epoch([5] * 100, 50, 0, 0)
    assert rows_of_epoch([5] * 100, 50, 0, 1) != first != rows_of_epoch([5] * 100, 50, 1, 0)
    shuffled = sorted(range(100), key=lambda row: blake2b(f"0:0:{row}".encode(), digest_size=16).digest())
    assert first == [shuffled[at : at + 10] for at in range(0, 100, 10)]
    with pytest.raises(ValueError, match="row 0 has 60 tokens"):
        rows_of_epoch([60], 50, 0, 0)
