"""How many optimizer steps data of some length make."""

import math
from collections.abc import Sequence

from tunesmith.planning.look import Look
from tunesmith.recipe import TrainConfig
from tunesmith.tokens.order import rows_of_epoch


def steps_of(train: TrainConfig, tokens: float, lengths: Sequence[int], seed: int) -> int:
    """Optimizer steps for an epoch of so many `tokens`: rows of these lengths fill a step as well as they do here."""
    if tokens <= sum(lengths):  # all rows are here: those of a share of them are counted, as training will
        count = max(1, round(len(lengths) * tokens / sum(lengths)))
        few = [lengths[number * len(lengths) // count] for number in range(count)]
        return sum(_of_epoch(train, few, seed, epoch) for epoch in range(math.ceil(train.epochs)))
    many = list(lengths) * max(1, math.ceil(8 * train.tokens_per_step / sum(lengths)))  # a few steps at least
    filled = sum(many) / len(rows_of_epoch(many, train, seed, 0))
    steps = max(1, math.ceil(tokens / filled))
    return sum(_share(train, steps, epoch) for epoch in range(math.ceil(train.epochs)))


def _of_epoch(train: TrainConfig, lengths: Sequence[int], seed: int, epoch: int) -> int:
    return _share(train, len(rows_of_epoch(lengths, train, seed, epoch)), epoch)


def _share(train: TrainConfig, steps: int, epoch: int) -> int:
    """Steps of an epoch; of the part of one, at least one."""
    return max(1, round(min(1.0, train.epochs - epoch) * steps))


def tokens_in(look: Look, max_length: int) -> float:
    """Tokens of a whole source, its rows cut to `max_length`, by those that were looked at."""
    return look.rows * look.kept * sum(min(n, max_length) for n in look.lengths) / max(len(look.lengths), 1)


def all_lengths(looks: Sequence[Look]) -> list[int]:
    """Tokens of every row that was looked at and can be used."""
    return [length for look in looks for length in look.lengths]
