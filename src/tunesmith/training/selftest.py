"""Before the first step, on this model and this machine: does packing change nothing, and compiling neither?"""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.errors import ProofError
from tunesmith.model.attention import PACKED
from tunesmith.model.base import compile_layers, head, hidden_states
from tunesmith.model.lora import adapted_layers
from tunesmith.tokens.rows import TokenRows
from tunesmith.training.batch import Batching, MicroBatch
from tunesmith.training.loss import loss_sum

ROWS = 3
LIMITS = {torch.float32: 1e-4, torch.bfloat16: 8e-2, torch.float16: 2e-2}
# relative difference of a token's logits: products of other shapes round in another order, by 1e-6 in fp32, 3e-2 in
# bf16 and 4e-3 in fp16 on a random Llama 1B; a token that sees the conversation before its own differs by more
GRADIENT_LIMITS = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.1}
# relative difference of a layer's gradient: 6e-2 in bf16 and 5e-3 in fp16 there; a lost one differs by 1


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
            f"(limit {LIMITS[weight_VD.dtype]:g}) at row {batch.row_of_T[worst]}, token {batch.positions_T[worst]}",
            fix="this base cannot be trained packed; use another base, and report this one",
        )
    return float(difference_T[worst])


def prove_compiling(model: PreTrainedModel, rows: TokenRows, batching: Batching, backend: str = "inductor") -> float:
    """Compile the decoder layers and compare each adapter's gradient with the one before, on the first row.

    Returns the largest relative difference of a layer. Raises ProofError above the limit. Gradients are left cleared.
    """
    batch = batching.micro_batch(rows, [0])
    plain = _gradients(model, batch)
    compile_layers(model, backend)
    pairs = zip(plain, _gradients(model, batch), strict=True)
    difference = max(float((after_OR - before_OR).norm() / before_OR.norm()) for before_OR, after_OR in pairs)
    limit = GRADIENT_LIMITS[head(model)[0].dtype]
    if not difference <= limit:
        raise ProofError(
            f"compiling changes an adapter's gradient: relative difference {difference:.2g} (limit {limit:g})",
            fix="set train.deterministic: true, which does not compile, and report the versions of torch and the GPU",
        )
    return difference


def _gradients(model: PreTrainedModel, batch: MicroBatch) -> list[Tensor]:
    """The gradient of B of every layer; A's is zero before the first step."""
    hidden_TD = hidden_states(model, batch.ids_T, batch.positions_T, batch.packing)
    loss_sum(hidden_TD[batch.at_S], *head(model), batch.targets_S).backward()
    gradients = []
    for _, layer in adapted_layers(model):
        grad_OR = layer.b_OR.grad
        gradients.append(torch.zeros_like(layer.b_OR) if grad_OR is None else grad_OR)
        layer.a_RI.grad = layer.b_OR.grad = None
    return gradients
