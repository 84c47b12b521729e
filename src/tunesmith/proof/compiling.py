"""Compiling changes nothing: each layer has the gradients it had before (torch 2.11 could lose them without a word).

Layers are compared one by one, on the input each has in the model and on one gradient of its output: through a whole
model in 16 bits the rounding of thirty layers adds up, and hides in the first ones what compiling did to them.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.errors import ProofError
from tunesmith.model.base import compile_layers, decoder_layers, head, hidden_states
from tunesmith.model.batch import Batching, MicroBatch
from tunesmith.model.lora import DropoutKeys, adapted_layers
from tunesmith.record import Proof
from tunesmith.tokens.rows import TokenRows

NAME = "compiled = eager, gradients of each layer (relative)"
GRADIENT_LIMITS = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 2e-2}
# relative difference of one gradient; a lost one differs by 1, one without the mask of a dropout of 5 % by 0.2
B_SIZE = 0.02  # of the numbers that stand in B during the proof: the size of a base's own weights


def prove_compiling(
    model: PreTrainedModel, keys: DropoutKeys, rows: TokenRows, batching: Batching, backend: str = "inductor"
) -> Proof:
    """Compile the decoder layers and compare the gradients of A, B and the input with those before, on the first row.

    As in training: with dropout where the recipe has it, the same before and after. B is not zero meanwhile, since A
    would have no gradient; it gets its bits back. The value is the largest relative difference. Raises ProofError
    above the limit. Gradients are left cleared.
    """
    batch = batching.micro_batch(rows, [0])
    with _dropout(keys, batch), _some_b(model):
        calls = _calls(model, batch)
        eager = [call.gradients() for call in calls]
        compile_layers(model, backend)
        differences = [
            (now - was).norm() / was.norm()
            for call, before in zip(calls, eager, strict=True)
            for was, now in zip(before, call.gradients(), strict=True)
        ]
    difference, limit = float(torch.stack(differences).max()), GRADIENT_LIMITS[head(model).weight_VD.dtype]
    if not difference <= limit:
        raise ProofError(
            f"compiling changes an adapter's gradient: relative difference {difference:.2g} (limit {limit:g})",
            fix="set train.deterministic: true, which does not compile, and report the versions of torch and the GPU",
        )
    return Proof(NAME, difference, limit, len(differences))


@dataclass(frozen=True)
class _Call:
    """What the model calls one layer with, and a gradient for what comes out."""

    layer: nn.Module
    hidden_1TD: Tensor
    others: tuple[Any, ...]
    settings: dict[str, Any]
    grad_1TD: Tensor
    """Random; zero in the padding, as in training."""

    def gradients(self) -> list[Tensor]:
        """The gradients of the input, where there is one in training, and of A and B; zeros where none came."""
        output = self.layer(self.hidden_1TD, *self.others, **self.settings)
        (output if isinstance(output, Tensor) else output[0]).backward(self.grad_1TD)
        adapters = [parameter for _, one in adapted_layers(self.layer) for parameter in (one.a_RI, one.b_OR)]
        wanted = [self.hidden_1TD] * self.hidden_1TD.requires_grad + adapters
        found = [torch.zeros_like(tensor) if tensor.grad is None else tensor.grad for tensor in wanted]
        for tensor in wanted:
            tensor.grad = None
        return found


@torch.no_grad()
def _calls(model: PreTrainedModel, batch: MicroBatch) -> list[_Call]:
    """The call of every decoder layer in a forward pass of the batch."""
    calls: list[_Call] = []

    def note(layer: nn.Module, arguments: tuple[Any, ...], settings: dict[str, Any]) -> None:
        hidden_1TD, *others = arguments
        grad_1TD = torch.randn(hidden_1TD.shape, generator=torch.Generator().manual_seed(len(calls))).to(hidden_1TD)
        grad_1TD[:, batch.tokens :] = 0
        hidden_1TD = hidden_1TD.clone().requires_grad_(bool(calls))  # the first one's is the frozen embedding
        calls.append(_Call(layer, hidden_1TD, tuple(others), settings, grad_1TD))

    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in decoder_layers(model)]
    hidden_states(model, batch.ids_T, batch.positions_T, batch.packing)
    for hook in hooks:
        hook.remove()
    return calls


@contextlib.contextmanager
def _dropout(keys: DropoutKeys, batch: MicroBatch) -> Iterator[None]:
    keys.keys_T = batch.dropout_keys(seed=0, step=0)
    try:
        yield
    finally:
        keys.keys_T = None


@contextlib.contextmanager
def _some_b(model: PreTrainedModel) -> Iterator[None]:
    """Small random numbers in every B, the same each time; after the block B has the bits that it had."""
    generator, before = torch.Generator().manual_seed(0), {}
    for name, layer in adapted_layers(model):
        before[name] = layer.b_OR.detach().clone()
        layer.b_OR.data.copy_(torch.randn(layer.b_OR.shape, generator=generator) * B_SIZE)
    try:
        yield
    finally:
        for name, layer in adapted_layers(model):
            layer.b_OR.data.copy_(before[name])
