"""How many optimizer steps data of some length make."""

import math
from collections.abc import Sequence

from tunesmith.planning.look import Look
from tunesmith.recipe import TrainConfig
from tunesmith.tokens.order import rows_of_epoch


def steps_of(train: TrainConfig, tokens: float, lengths: Sequence[int], seed: int) -> int:
    """Optimizer steps for an epoch of so many `tokens`: rows of these lengths fill a step as well as they do here."""
    if tokens <= sum(lengths):  # all rows are here: those of a share of them are counted
        count = max(1, round(len(lengths) * tokens / sum(lengths)))
        few = [lengths[number * len(lengths) // count] for number in range(count)]
        return _of_epochs(train, len(rows_of_epoch(few, train.tokens_per_step, seed, 0)))
    many = list(lengths) * max(1, math.ceil(8 * train.tokens_per_step / sum(lengths)))  # a few steps at least
    filled = sum(many) / len(rows_of_epoch(many, train.tokens_per_step, seed, 0))
    return _of_epochs(train, max(1, math.ceil(tokens / filled)))


def _of_epochs(train: TrainConfig, epoch: int) -> int:
    """Steps of all epochs; of the part of one, at least one."""
    whole = math.floor(train.epochs)
    part = train.epochs - whole
    return whole * epoch + (max(1, round(part * epoch)) if part else 0)


def tokens_in(look: Look, max_length: int) -> float:
    """Tokens of a whole source, its rows cut to `max_length`, by those that were looked at."""
    return look.rows * look.kept * sum(min(n, max_length) for n in look.lengths) / max(len(look.lengths), 1)


def all_lengths(looks: Sequence[Look]) -> list[int]:
    """Tokens of every row that was looked at and can be used."""
    return [length for look in looks for length in look.lengths]
