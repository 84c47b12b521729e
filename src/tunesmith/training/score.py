"""Held-out loss, in nats per supervised token and in bits per byte of the answers' text."""

import math
from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from tunesmith.model.base import head, hidden_states
from tunesmith.model.batch import Batching, supervised_in
from tunesmith.model.loss import loss_sum
from tunesmith.tokens.rows import TokenRows


@torch.no_grad()
def held_out_loss(
    model: PreTrainedModel, rows: TokenRows, batching: Batching, pause: Callable[[], None] = lambda: None
) -> float:
    """Sum of the losses of all supervised tokens divided by their number. Dropout must be off. `pause` may raise."""
    total_nats = 0.0
    for batch in batching.micro_batches(rows, range(len(rows))):
        pause()
        hidden_TD = hidden_states(model, batch.ids_T, batch.positions_T, batch.packing)
        total_nats += loss_sum(hidden_TD[batch.at_S], *head(model), batch.targets_S).item()
    return total_nats / supervised_in(rows, range(len(rows)))


def bits_per_byte(loss_nats: float, rows: TokenRows) -> float:
    """The same loss, comparable between tokenizers: nats of all supervised tokens over ln 2 and the answers' bytes.

    The end-of-turn tokens are counted above and are no text, so they are not counted below.
    """
    return loss_nats * supervised_in(rows, range(len(rows))) / math.log(2) / int(rows.answer_bytes_N.sum())
