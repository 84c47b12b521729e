"""Packing changes nothing: packed conversations have the logits they have alone (invariant 3 of the design)."""

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from tunesmith.errors import ProofError
from tunesmith.model.attention import PACKED
from tunesmith.model.base import head, hidden_states
from tunesmith.model.batch import Batching
from tunesmith.runs import Proof
from tunesmith.tokens.rows import TokenRows

NAME = "packed = alone, logits (relative)"
ROWS = 3
LIMITS = {torch.float32: 1e-4, torch.bfloat16: 8e-2, torch.float16: 2e-2}
# relative difference of a token's logits: products of other shapes round in another order, by 1e-6 in fp32, 3e-2 in
# bf16 and 4e-3 in fp16 on a random Llama 1B; a token that sees the conversation before its own differs by more


@torch.no_grad()
def prove_packing(model: PreTrainedModel, rows: TokenRows, batching: Batching) -> Proof:
    """Compare the logits of a few packed rows with those of each row alone, through transformers' own attention.

    The value is the largest relative difference. Raises ProofError above the limit, which also catches a base whose
    head does more than a linear layer.
    """
    shortest = sorted(range(len(rows)), key=lambda row: (int(rows.lengths_N[row]), row))
    chosen = shortest[len(shortest) // 2 :][:ROWS]
    while len(chosen) > 1 and sum(int(rows.lengths_N[row]) for row in chosen) > batching.capacity:
        chosen.pop()
    batch = batching.micro_batch(rows, chosen)
    weight_VD, bias_V = head(model)
    hidden_TD = hidden_states(model, batch.ids_T, batch.positions_T, batch.packing)
    packed_TV = F.linear(hidden_TD[: batch.tokens], weight_VD, bias_V).float()
    model.set_attn_implementation("sdpa")
    try:
        ids = [batch.ids_T[None, torch.from_numpy(batch.row_of_T == row)] for row in chosen]
        alone_TV = torch.cat([model(input_ids=ids_1T, use_cache=False).logits[0] for ids_1T in ids]).float()
    finally:
        model.set_attn_implementation(PACKED)
    difference_T = (packed_TV - alone_TV).norm(dim=1) / alone_TV.norm(dim=1)
    worst = int(difference_T.argmax())
    if not difference_T[worst] <= LIMITS[weight_VD.dtype]:
        raise ProofError(
            f"packing changes the base's logits: relative difference {difference_T[worst]:.2g} "
            f"(limit {LIMITS[weight_VD.dtype]:g}) at row {batch.row_of_T[worst]}, token {batch.positions_T[worst]}",
            fix="this base cannot be trained packed; use another base, and report this one",
        )
    return Proof(NAME, float(difference_T[worst]), LIMITS[weight_VD.dtype], len(difference_T))
