"""The importance matrix: how large the inputs of each linear layer are, so that what counts is quantised best.

An error in column c of a weight is multiplied by input c; so llama.cpp's quantiser, given the mean square of each
input, makes the errors small where inputs are large. They are gathered as its tool does, from every token of some
conversations: here of the training rows, as the chat template renders them, by our own forward pass in fp32.

Shapes: T tokens, C inputs of a layer.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from tunesmith.console import progress, warn
from tunesmith.errors import BaseError, ResourceError
from tunesmith.model.base import decoder_layers
from tunesmith.model.streamed import in_passes, opened
from tunesmith.tokens.rows import TokenRows

TOKENS = 8192  # of the sample; twice as many, or half, change the KL of a file by less than its interval (RESULTS.md)
LONGEST = 512  # tokens that are read of a row, so that a few long ones do not fill the sample
FLOOR = 1e-6  # of a layer's mean: what a column counts whose inputs were all zero in the sample
Importance = dict[str, NDArray[np.float32]]


def gather_importance(folder: Path, rows: TokenRows) -> tuple[Importance, int]:
    """(Mean square [C] of the inputs of each linear layer, by its name; tokens) of a model on some training rows.

    The same numbers each time. Raises BaseError where a layer's inputs are no numbers, by its name; ResourceError where
    there is no memory for a layer, or the weights cannot be read a layer at a time.
    """
    passes = list(in_passes(_sample(rows), len))
    model = opened(folder, max(sum(map(len, group)) for group in passes))
    if isinstance(model, str):
        raise ResourceError(f"no importance matrix can be gathered: {model}", fix="set export.importance to off")
    sums: dict[str, Tensor] = {}
    linears = {id(m) for layer in decoder_layers(model.model) for m in layer.modules() if isinstance(m, nn.Linear)}
    for name, module in model.model.named_modules():
        if id(module) in linears:
            module.register_forward_pre_hook(partial(_add_squares, sums, name))
    tokens = sum(len(row) for group in passes for row in group)
    with progress("importance matrix", tokens, unit="tokens") as advance:
        for group in passes:
            model.hidden(group)
            advance(sum(map(len, group)), "")
    means = {name: _counted(name, (sum_C / tokens).cpu().numpy(), folder) for name, sum_C in sums.items()}
    return {name: mean_C for name, mean_C in means.items() if mean_C is not None}, tokens


def _add_squares(sums: dict[str, Tensor], name: str, _: nn.Module, arguments: tuple[Any, ...]) -> None:
    """Add the squares of a layer's inputs to its sums."""
    squares_C = arguments[0].detach().flatten(0, -2).square().sum(dim=0).double()  # in fp32 for the tokens of a pass
    sums[name] = squares_C if name not in sums else sums[name].add_(squares_C)


def _counted(name: str, mean_C: NDArray[np.float64], folder: Path) -> NDArray[np.float32] | None:
    """Mean squares as the quantiser takes them: all above zero. None, with a warning, where a layer gets only zeros."""
    if not np.isfinite(mean_C).all():
        what = f"the inputs of {name} are no numbers on training conversations"
        raise BaseError(what, fix="train with a lower train.lr; see the loss", where=str(folder))
    if not mean_C.any():
        warn(f"{name} gets nothing but zeros from the training conversations: quantised without importance")
        return None
    return np.maximum(mean_C, FLOOR * mean_C.mean()).astype(np.float32)


def _sample(rows: TokenRows) -> Iterator[Sequence[int]]:
    """Token ids of rows from all parts of the data, TOKENS of them."""
    left = TOKENS
    for number in rows.spread():
        if left <= 0:
            break
        start = int(rows.offsets_N1[number])
        ids = rows.tokens_T[start : min(int(rows.offsets_N1[number + 1]), start + min(LONGEST, left))].tolist()
        yield ids
        left -= len(ids)
