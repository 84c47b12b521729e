"""Rows into bins of a fixed capacity: best-fit decreasing, pure and deterministic."""

from bisect import bisect_left, insort
from collections.abc import Sequence


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Row numbers, bin by bin; no bin holds more than `capacity` tokens and every row is in exactly one.

    Best-fit decreasing needs at most 11/9 of the fewest bins possible, plus 4 (Johnson 1973). O(n log n).
    Raises ValueError if a row alone is longer than a bin.
    """
    bins: list[list[int]] = []
    space: list[tuple[int, int]] = []  # (tokens free, bin), sorted, so that the tightest bin is found by bisection
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):  # stable: equal rows keep their order
        length = lengths[row]
        if length > capacity:
            raise ValueError(f"row {row} has {length} tokens, a bin holds {capacity}")
        found = bisect_left(space, (length, -1))
        if found == len(space):
            bins.append([row])
            insort(space, (capacity - length, len(bins) - 1))
        else:
            free, index = space.pop(found)
            bins[index].append(row)
            insort(space, (free - length, index))
    return bins
