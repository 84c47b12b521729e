"""Packing changes nothing: packed conversations have the logits they have alone (invariant 3 of the design)."""

from bisect import bisect_right
from itertools import accumulate

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from tunesmith.errors import ProofError
from tunesmith.model.attention import PACKED
from tunesmith.model.base import head, hidden_states
from tunesmith.model.batch import Batching, MicroBatch
from tunesmith.record import Proof
from tunesmith.tokens.rows import TokenRows

NAME = "packed = alone, logits (relative)"
ALONE = "each row has a forward pass to itself; its logits = transformers' own (relative)"
ROWS = 3
LONGEST = 512  # tokens of the longer row that joins them: its logits, three times in fp32, are all that is in memory
LIMITS = {torch.float32: 1e-4, torch.bfloat16: 8e-2, torch.float16: 2e-2}
# relative difference of a token's logits: products of other shapes round in another order, by 1e-6 in fp32, 3e-2 in
# bf16 and 4e-3 in fp16 on a random Llama 1B; a token that sees the conversation before its own differs by more


@torch.no_grad()
def prove_packing(model: PreTrainedModel, *packed: tuple[TokenRows, Batching]) -> Proof:
    """Compare the logits of a few packed rows with those of each row alone, through transformers' own attention.

    `packed` are rows and how they are batched, training and held-out; the first of which two share a forward pass are
    taken. Where none do, nothing is packed, and the proof is named for what it is. The value is the largest relative
    difference. Raises ProofError above the limit, which also catches a base whose head does more than a linear layer.
    """
    bins = [(rows, batching, rows_of_one_bin(rows, batching.capacity)) for rows, batching in packed]
    rows, batching, chosen = next((found for found in bins if len(found[2]) > 1), bins[0])
    batch = batching.micro_batch(rows, chosen)
    hidden_TD = hidden_states(model, batch.ids_T, batch.positions_T, batch.packing)
    model.set_attn_implementation("sdpa")
    try:
        difference_T = torch.cat([_difference(model, batch, hidden_TD, row) for row in chosen])
    finally:
        model.set_attn_implementation(PACKED)
    worst, limit = int(difference_T.argmax()), LIMITS[hidden_TD.dtype]
    if not difference_T[worst] <= limit:
        raise ProofError(
            f"packing changes the base's logits: relative difference {difference_T[worst]:.2g} "
            f"(limit {limit:g}) at row {batch.row_of_T[worst]}, token {batch.positions_T[worst]}",
            fix="this base cannot be trained packed; use another base, and report this one",
        )
    return Proof(NAME if len(chosen) > 1 else ALONE, float(difference_T[worst]), limit, len(difference_T))


def rows_of_one_bin(rows: TokenRows, capacity: int) -> list[int]:
    """The shortest rows, three where so many fit, with the longest that fits beside them; one if no two ever fit.

    The longer one is second: what is broken shows in a row that has another before it, and most after a long one.
    """
    by_length = sorted(range(len(rows)), key=lambda row: (int(rows.lengths_N[row]), row))
    lengths = [int(rows.lengths_N[row]) for row in by_length]
    fit = min(ROWS, bisect_right(list(accumulate(lengths)), capacity))
    longer = bisect_right(lengths, min(capacity - sum(lengths[:fit]), LONGEST)) - 1
    return [by_length[0], *([by_length[longer]] if longer >= fit else []), *by_length[1:fit]]


def _difference(model: PreTrainedModel, batch: MicroBatch, hidden_TD: torch.Tensor, row: int) -> torch.Tensor:
    """Relative difference of the logits of each token of one packed row from those it has alone."""
    at_T = torch.from_numpy(batch.row_of_T == row).to(hidden_TD.device)
    packed_TV = F.linear(hidden_TD[at_T], *head(model)).float()
    alone_TV = model(input_ids=batch.ids_T[None, at_T], use_cache=False).logits[0].float()
    return (packed_TV - alone_TV).norm(dim=1) / alone_TV.norm(dim=1)
