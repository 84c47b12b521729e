"""Which rows make up each step: a function of (lengths, tokens per step, seed, epoch), so there is nothing to save.

A step is the same set of rows on every machine; only then is it packed into micro-batches.
"""

import hashlib
from collections.abc import Sequence


def rows_of_epoch(lengths_N: Sequence[int], tokens_per_step: int, seed: int, epoch: int) -> list[list[int]]:
    """Row numbers, step by step: every row once, shuffled, filled into steps of at most `tokens_per_step` tokens.

    The shuffle sorts by a hash of (seed, epoch, row): unlike a random generator's it is the same in every version
    of every library. Raises ValueError if a row alone is longer than a step.
    """
    lengths = [int(length) for length in lengths_N]
    prefix = hashlib.blake2b(f"{seed}:{epoch}:".encode(), digest_size=16)

    def place(row: int) -> bytes:
        state = prefix.copy()
        state.update(b"%d" % row)
        return state.digest()

    steps: list[list[int]] = []
    room = 0
    for row in sorted(range(len(lengths)), key=place):
        if lengths[row] > tokens_per_step:
            raise ValueError(f"row {row} has {lengths[row]} tokens, a step holds {tokens_per_step}")
        if lengths[row] > room or not steps:
            steps.append([])
            room = tokens_per_step
        steps[-1].append(row)
        room -= lengths[row]
    return steps
