"""Which rows make up each step: a function of (lengths, tokens per step, seed, epoch), so there is nothing to save.

A step is the same set of rows on every machine; only then is it packed into micro-batches.
"""

import hashlib
import math
from collections.abc import Sequence

from tunesmith.recipe import TrainConfig

FEW_STEPS = 30
"""Fewer than these teach a model next to nothing: a file of 60 conversations in 9 steps left it as it was."""
MOST_EPOCHS = 10
"""More passes over the same rows are no more to learn from."""


def more_steps(steps: int, train: TrainConfig, longest: int) -> str:
    """What makes FEW_STEPS of so few `steps`, in words: smaller ones, then more epochs, then more data.

    `longest`: tokens of the longest row, which a step must hold.
    """
    size, epochs, made = train.tokens_per_step, train.epochs, steps
    while made < FEW_STEPS and size // 2 >= longest:
        size, made = size // 2, made * 2
    if made < FEW_STEPS:
        epochs = math.ceil(epochs * FEW_STEPS / made)
        made = FEW_STEPS
    if epochs > MOST_EPOCHS:
        return "these are few rows: add conversations"
    settings: dict[str, float] = {"tokens_per_step": size}
    if train.max_length > size:
        settings["max_length"] = size
    if epochs != train.epochs:
        settings["epochs"] = epochs
    return f"{' '.join(f'--set train.{name}={value:g}' for name, value in settings.items())} makes about {made}"


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
