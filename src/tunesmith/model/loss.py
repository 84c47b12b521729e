"""Cross-entropy of the frozen head at supervised positions, in chunks: the whole logits never exist.

A head that scales or caps its logits, y = cap * tanh(scale * x / cap), has dy / dx = scale * (1 - (y / cap)^2).

Shapes: S supervised positions, C of them in a chunk, D hidden width, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tunesmith.model.base import Head

CHUNK_BYTES = 64 << 20  # fp32 logits of one chunk; 340 positions of SmolLM2, 130 of Llama 3


class _HeadLoss(torch.autograd.Function):
    """Sum of -log softmax(logits)[target]; the gradient of h is formed in the forward pass, chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, hidden_SD: Tensor, head: Head, targets_S: Tensor) -> Tensor:
        wants_grad = ctx.needs_input_grad[0]
        grad_SD = torch.empty_like(hidden_SD) if wants_grad else None
        total = torch.zeros((), device=hidden_SD.device)
        rows = max(1, CHUNK_BYTES // (4 * head.weight_VD.shape[0]))
        for start in range(0, hidden_SD.shape[0], rows):
            part = slice(start, start + rows)
            logits_CV = head.logits(hidden_SD[part])
            slope_CV = _slope(logits_CV, head) if grad_SD is not None else None
            picked_C1 = targets_S[part, None]
            picked_logit_C1 = logits_CV.gather(1, picked_C1)
            largest_C1 = logits_CV.amax(dim=1, keepdim=True)
            exp_CV = logits_CV.sub_(largest_C1).exp_()  # in place: torch's logsumexp takes as long as the product above
            sum_C1 = exp_CV.sum(dim=1, keepdim=True)
            total += (sum_C1.log() + largest_C1 - picked_logit_C1).sum()
            if grad_SD is not None:
                softmax_CV = exp_CV.div_(sum_C1)
                softmax_CV.scatter_add_(1, picked_C1, -torch.ones_like(sum_C1))  # d loss / d logits
                if slope_CV is not None:
                    softmax_CV.mul_(slope_CV)
                torch.mm(softmax_CV.to(hidden_SD.dtype), head.weight_VD, out=grad_SD[part])
        if grad_SD is not None:
            ctx.save_for_backward(grad_SD)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_SD,) = ctx.saved_tensors
        return grad_SD * grads[0].to(grad_SD.dtype), None, None


def _slope(logits_CV: Tensor, head: Head) -> Tensor | float | None:
    """d logits / d output of the linear layer; None where that is 1."""
    if head.cap is not None:
        return (logits_CV / head.cap).square_().neg_().add_(1).mul_(head.scale)
    return head.scale if head.scale != 1 else None


def loss_sum(hidden_SD: Tensor, head: Head, targets_S: Tensor) -> Tensor:
    """Sum over supervised positions in nats, not the mean: the caller divides by the tokens of the whole step."""
    loss = _HeadLoss.apply(hidden_SD, head, targets_S)
    assert isinstance(loss, Tensor)
    return loss


@torch.no_grad()
def losses(hidden_SD: Tensor, head: Head, targets_S: Tensor) -> Tensor:
    """The same position by position: nats [S]."""
    rows = max(1, CHUNK_BYTES // (4 * head.weight_VD.shape[0]))
    parts = [
        F.cross_entropy(head.logits(hidden_SD[start : start + rows]), targets_S[start : start + rows], reduction="none")
        for start in range(0, len(targets_S), rows)
    ]
    return torch.cat(parts) if parts else targets_S.new_zeros(0, dtype=torch.float32)
