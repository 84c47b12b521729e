"""Before the first step: does packing change nothing, on this model and this machine?"""

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from tunesmith.errors import ProofError
from tunesmith.model.attention import PACKED
from tunesmith.model.base import head, hidden_states
from tunesmith.tokens.rows import TokenRows
from tunesmith.training.batch import Batching

ROWS = 3
LIMITS = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 2e-2}
# relative difference of logits; products of other shapes round in another order: about 1e-6 in fp32 and 1e-2 in bf16,
# where a token that sees its neighbour's conversation differs by more than 0.1


@torch.no_grad()
def prove_packing(model: PreTrainedModel, rows: TokenRows, batching: Batching) -> float:
    """Compare the logits of a few packed rows with those of each row alone, through transformers' own attention.

    Returns the largest relative difference. Raises ProofError above the limit, which also catches a base whose head
    does more than a linear layer.
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
            f"(limit {LIMITS[weight_VD.dtype]:g}) at row {batch.row_of_T[worst]}, token {int(batch.positions_T[worst])}",
            fix="this base cannot be trained packed; use another base, and report this one",
        )
    return float(difference_T[worst])
