"""Rows into bins of a fixed capacity, pure and deterministic: best-fit decreasing, or filled one by one."""

from bisect import bisect_left, insort
from collections.abc import Sequence

MOST_BINS = 64
"""More of them are not filled anew: best-fit decreasing wastes about one, which is little of so many."""


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Row numbers, bin by bin; no bin holds more than `capacity` tokens and every row is in exactly one.

    As few bins as the better of two ways finds. Raises ValueError if a row alone is longer than a bin.
    """
    for row, length in enumerate(lengths):
        if length > capacity:
            raise ValueError(f"row {row} has {length} tokens, a bin holds {capacity}")
    bins = _best_fit(lengths, capacity)
    if -(-sum(lengths) // capacity) < len(bins) <= MOST_BINS:
        return min(bins, _least_slack(lengths, capacity), key=len)  # of two as short the first
    return bins


def _best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: at most 11/9 of the fewest bins possible, plus 4 (Johnson 1973). O(n log n)."""
    bins: list[list[int]] = []
    space: list[tuple[int, int]] = []  # (tokens free, bin), sorted, so that the tightest bin is found by bisection
    for row in _longest_first(lengths):
        length = lengths[row]
        found = bisect_left(space, (length, -1))
        if found == len(space):
            bins.append([row])
            insort(space, (capacity - length, len(bins) - 1))
        else:
            free, index = space.pop(found)
            bins[index].append(row)
            insort(space, (free - length, index))
    return bins


def _least_slack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Each bin: the longest row that is left, and those others that leave the least of it free (minimum bin slack,
    Gupta and Ho 1999; which rows these are is found by subset sums). O(bins * n) operations on `capacity` bits.

    Rows that nearly fill a step nearly fill its bins: best-fit decreasing leaves over a row or two, and wastes a bin.
    """
    bins: list[list[int]] = []
    left = _longest_first(lengths)
    while left:
        longest, *others = left
        room = capacity - lengths[longest]
        sums = [1]  # bit s of the n-th: some of the first n others have s tokens together
        for row in others:
            sums.append((sums[-1] | sums[-1] << lengths[row]) & ((1 << room + 1) - 1))
        taken = {longest}
        tokens = sums.pop().bit_length() - 1
        while sums:
            without = sums.pop()
            if not without >> tokens & 1:  # only with the last of these others
                taken.add(others[len(sums)])
                tokens -= lengths[others[len(sums)]]
        bins.append([row for row in left if row in taken])
        left = [row for row in left if row not in taken]
    return bins


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda row: -lengths[row])  # stable: equal rows keep their order
