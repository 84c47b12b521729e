"""Bins and step order: every row once, nothing over capacity, the same everywhere."""

import random
from hashlib import blake2b
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.recipe import TrainConfig
from tunesmith.tokens.order import rows_of_epoch
from tunesmith.tokens.pack import pack

LENGTHS = st.lists(st.integers(1, 100), max_size=200)
ORDERED = (LENGTHS, st.integers(100, 400), st.integers(0, 70), st.integers(0, 5), st.integers(0, 3))


def steps_of(lengths, tokens_per_step, lookahead, seed, epoch):
    train = TrainConfig(tokens_per_step=tokens_per_step, packing_lookahead=lookahead)
    return rows_of_epoch(lengths, train, seed, epoch)


def shuffled(rows, seed, epoch):
    return sorted(range(rows), key=lambda row: blake2b(f"{seed}:{epoch}:{row}".encode(), digest_size=16).digest())


def like_finetome(rows, seed):
    """Tokens of so many conversations: 450 in the mean, the longest cut."""
    draw = random.Random(seed)
    return [min(2048, max(1, round(draw.lognormvariate(5.79, 0.8)))) for _ in range(rows)]


def share_full(lengths, bins, capacity):
    return sum(lengths) / (len(bins) * capacity)


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


def best_fit_decreasing(lengths, capacity):
    """The plain way, with a search through all bins: tokens free in each."""
    free = []
    for length in sorted(lengths, reverse=True):
        places = [place for place, room in enumerate(free) if room >= length]
        if places:
            free[min(places, key=free.__getitem__)] -= length
        else:
            free.append(capacity - length)
    return free


@given(LENGTHS, st.integers(100, 400))
def test_bins_are_never_more_than_those_of_best_fit_decreasing(lengths, capacity):
    assert len(pack(lengths, capacity)) <= len(best_fit_decreasing(lengths, capacity))


def test_where_best_fit_wastes_a_bin_rows_are_put_together_that_fill_one():
    assert pack([2, 4, 3, 3, 5, 3], 10) == [[4, 2, 0], [1, 3, 5]]
    assert len(best_fit_decreasing([2, 4, 3, 3, 5, 3], 10)) == 3


@given(*ORDERED)
def test_every_row_is_in_one_step_of_an_epoch(lengths, tokens_per_step, lookahead, seed, epoch):
    steps = steps_of(lengths, tokens_per_step, lookahead, seed, epoch)
    assert sorted(row for rows in steps for row in rows) == list(range(len(lengths)))
    assert all(0 < sum(lengths[row] for row in rows) <= tokens_per_step for rows in steps)
    assert steps == steps_of(lengths, tokens_per_step, lookahead, seed, epoch)
    for rows, later in pairwise(steps):
        assert sum(lengths[row] for row in rows) + lengths[later[0]] > tokens_per_step  # full


@given(*ORDERED)
def test_the_first_row_that_fits_is_taken_of_the_next_ones(lengths, tokens_per_step, lookahead, seed, epoch):
    line = shuffled(len(lengths), seed, epoch)
    for rows in steps_of(lengths, tokens_per_step, lookahead, seed, epoch):
        room = tokens_per_step
        for row in rows:
            assert row == next(other for other in line[: lookahead + 1] if lengths[other] <= room)
            line.remove(row)
            room -= lengths[row]
        assert all(lengths[other] > room for other in line[: lookahead + 1])


@given(*ORDERED)
def test_the_order_is_random_within_a_window(lengths, tokens_per_step, lookahead, seed, epoch):
    """No row is more than the lookahead before its place, nor waits for more than as many steps and one."""
    steps = steps_of(lengths, tokens_per_step, lookahead, seed, epoch)
    place = {row: number for number, row in enumerate(shuffled(len(lengths), seed, epoch))}
    taken = [row for rows in steps for row in rows]
    assert all(place[row] - number <= lookahead for number, row in enumerate(taken))
    passed = {}  # row -> the first step that went beyond it
    for number, rows in enumerate(steps):
        furthest = max(place[row] for row in rows)
        for row in (row for later in steps[number + 1 :] for row in later):
            if place[row] < furthest:
                passed.setdefault(row, number)
    waited = [number - passed[row] for number, rows in enumerate(steps) for row in rows if row in passed]
    assert max(waited, default=0) <= lookahead + 1


def test_without_lookahead_the_order_is_that_of_earlier_versions():
    lengths = [30, 70, 20, 90, 40, 10, 60, 50, 80, 25, 35, 45]
    assert shuffled(12, 3, 1) == [4, 3, 10, 8, 5, 7, 1, 9, 6, 2, 0, 11]
    assert steps_of(lengths, 100, 0, 3, 1) == [[4], [3], [10], [8, 5], [7], [1, 9], [6, 2], [0, 11]]
    assert steps_of(lengths, 100, 1, 3, 1) == [[4, 10], [3, 5], [8], [7, 9], [1, 2], [6, 0], [11]]
    assert steps_of(lengths, 100, 2, 3, 1) == [[4, 10, 5], [3], [8], [7, 9, 2], [1, 0], [6], [11]]


@pytest.mark.parametrize("seed", range(3))
def test_steps_and_forward_passes_are_nearly_full_at_the_lengths_of_conversations(seed):
    lengths = like_finetome(10_000, seed)
    steps = rows_of_epoch(lengths, TrainConfig(), seed, 0)
    passes = [bin_ for rows in steps for bin_ in pack([lengths[row] for row in rows], 4096)]
    assert share_full(lengths, steps, 16384) > 0.99 and share_full(lengths, passes, 4096) > 0.98
    assert share_full(lengths, rows_of_epoch(lengths, TrainConfig(tokens_per_step=4096), seed, 0), 4096) > 0.98
    assert share_full(lengths, steps_of(lengths, 16384, 0, seed, 0), 16384) < 0.98  # so there is something to gain


def test_the_order_changes_with_seed_and_epoch_and_with_nothing_else():
    first = steps_of([5] * 100, 50, 64, 0, 0)
    assert steps_of([5] * 100, 50, 64, 0, 1) != first != steps_of([5] * 100, 50, 64, 1, 0)
    order = shuffled(100, 0, 0)
    assert first == [order[at : at + 10] for at in range(0, 100, 10)]
    with pytest.raises(ValueError, match="row 0 has 60 tokens"):
        steps_of([60], 50, 64, 0, 0)
