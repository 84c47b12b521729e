"""Which rows make up each step: a function of (lengths, tokens per step, seed, epoch), so there is nothing to save.

A step is the same set of rows on every machine; only then is it packed into micro-batches.
"""

import hashlib
import math
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
