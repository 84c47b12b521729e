"""Held-out loss, in nats per supervised token and in bits per byte of the answers' text."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from tunesmith.model.base import head, hidden_states
from tunesmith.model.batch import Batching, supervised_in
from tunesmith.model.loss import loss_sum
from tunesmith.tokens.rows import TokenRows

BITS_PER_BYTE_DEFINITION = 2
"""1, in runs that began with version 0.1: the end-of-turn tokens, which are no text, counted above the line only."""


@dataclass(frozen=True)
class HeldOut:
    """What the held-out rows cost a model."""

    loss: float
    """Nats per supervised token, the end-of-turn tokens among them."""
    text_nats: float
    """Nats of all supervised tokens together, but the end-of-turn tokens."""


@torch.no_grad()
def measure_held_out(
    model: PreTrainedModel, rows: TokenRows, batching: Batching, pause: Callable[[], None] = lambda: None
) -> HeldOut:
    """The loss over all rows. Dropout must be off. `pause` may raise."""
    total_nats = end_nats = 0.0
    for batch in batching.micro_batches(rows, range(len(rows))):
        pause()
        hidden_TD = hidden_states(model, batch.ids_T, batch.positions_T, batch.packing)
        total_nats += loss_sum(hidden_TD[batch.at_S], head(model), batch.targets_S).item()
        ends_S = batch.ends_S
        end_nats += loss_sum(hidden_TD[batch.at_S[ends_S]], head(model), batch.targets_S[ends_S]).item()
    return HeldOut(total_nats / supervised_in(rows, range(len(rows))), total_nats - end_nats)


def bits_per_byte(found: HeldOut, rows: TokenRows, definition: int = BITS_PER_BYTE_DEFINITION) -> float:
    """The loss, comparable between tokenizers: nats of the answers' text over ln 2 and the bytes of that text."""
    nats = found.text_nats if definition > 1 else found.loss * supervised_in(rows, range(len(rows)))
    return nats / math.log(2) / int(rows.answer_bytes_N.sum())
