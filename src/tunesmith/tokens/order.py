"""Which rows make up each step: a function of (lengths, settings, seed, epoch), so there is nothing to save.

A step is the same set of rows on every machine; only then is it packed into micro-batches.
"""

import hashlib
import math
from collections import deque
from collections.abc import Callable, Sequence

from tunesmith.recipe import TrainConfig

FEW_STEPS = 30
"""Fewer than these teach a model next to nothing: a file of 60 conversations in 9 steps left it as it was."""
MOST_EPOCHS = 10
"""More passes over the same rows are no more to learn from."""


def more_steps(train: TrainConfig, longest: int, count: Callable[[TrainConfig], int]) -> str:
    """What makes FEW_STEPS, in words: smaller ones, then more epochs, then more data.

    `longest`: tokens of the longest row, which a step must hold. `count`: how many steps some settings make.
    """
    now = train
    while count(now) < FEW_STEPS and now.tokens_per_step // 2 >= longest:
        size = now.tokens_per_step // 2
        now = now.model_copy(update={"tokens_per_step": size, "max_length": min(now.max_length, size)})
    while (made := count(now)) < FEW_STEPS and now.epochs < MOST_EPOCHS:
        epochs = max(math.floor(now.epochs) + 1, math.ceil(now.epochs * FEW_STEPS / made))
        now = now.model_copy(update={"epochs": min(epochs, MOST_EPOCHS)})
    if made < FEW_STEPS:
        return "these are few rows: add conversations"
    changed = {name: value for name in ("tokens_per_step", "max_length", "epochs")
               if (value := getattr(now, name)) != getattr(train, name)}  # fmt: skip
    return f"{' '.join(f'--set train.{name}={value:g}' for name, value in changed.items())} makes about {made}"


def rows_of_epoch(lengths_N: Sequence[int], train: TrainConfig, seed: int, epoch: int) -> list[list[int]]:
    """Row numbers, step by step: every row once, shuffled, filled into steps of at most `tokens_per_step` tokens.

    The shuffle sorts by a hash of (seed, epoch, row): unlike a random generator's it is the same in every version
    of every library. Where the next row has no room left, the first of the `packing_lookahead` rows after it that has
    is taken (bin packing with lookahead, Grove 1995), and the rows passed over stay first in line. So no row is more
    than `packing_lookahead` places before its own in the shuffled order, and none more than `packing_lookahead` + 1
    steps after the first that passed it over. O(n log n + steps * packing_lookahead). Raises ValueError if a row alone
    is longer than a step.
    """
    lengths, size = [int(length) for length in lengths_N], train.tokens_per_step
    for row, length in enumerate(lengths):
        if length > size:
            raise ValueError(f"row {row} has {length} tokens, a step holds {size}")
    prefix = hashlib.blake2b(f"{seed}:{epoch}:".encode(), digest_size=16)

    def place(row: int) -> bytes:
        state = prefix.copy()
        state.update(b"%d" % row)
        return state.digest()

    line = deque(sorted(range(len(lengths)), key=place))
    steps: list[list[int]] = []
    while line:
        step, passed, room = list[int](), list[int](), size
        while line and len(passed) <= train.packing_lookahead:
            row = line.popleft()
            if lengths[row] > room:  # nor does it fit later on in this step
                passed.append(row)
                continue
            step.append(row)
            room -= lengths[row]
        line.extendleft(reversed(passed))
        steps.append(step)
    return steps
