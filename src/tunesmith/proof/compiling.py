"""Compiling changes nothing: each adapter has the gradient it had before (torch 2.11 could lose it without a word)."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.errors import ProofError
from tunesmith.model.base import compile_layers, head, hidden_states
from tunesmith.model.batch import Batching, MicroBatch
from tunesmith.model.lora import adapted_layers
from tunesmith.model.loss import loss_sum
from tunesmith.runs import Proof
from tunesmith.tokens.rows import TokenRows

NAME = "compiled = eager, gradients (relative)"
GRADIENT_LIMITS = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.1}
# relative difference of a layer's gradient: 6e-2 in bf16 and 5e-3 in fp16 there; a lost one differs by 1


def prove_compiling(model: PreTrainedModel, rows: TokenRows, batching: Batching, backend: str = "inductor") -> Proof:
    """Compile the decoder layers and compare each adapter's gradient with the one before, on the first row.

    The value is the largest relative difference of a layer. Raises ProofError above the limit. Gradients are left
    cleared.
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
    return Proof(NAME, difference, limit, len(plain))


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
