"""Attention over packed conversations, through transformers' public attention interface.

Conversations lie end to end in one flat row of tokens; attention stays inside each of them. One function, two
backends: FlashAttention's variable-length kernel on NVIDIA GPUs of compute capability 8.0 or higher in 16 bits, and
scaled dot product attention conversation by conversation on everything else (older GPUs, the CPU). A sliding window,
which a layer's class states, is the kernel's own there, and a mask over blocks of queries here.

Shapes: B = 1 row, H heads, K key and value heads, T tokens, D head width, N conversations, Q queries of a block, W keys
that they see.
"""

from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

from tunesmith.errors import BaseError

PACKED = "tunesmith_packed"
LEAST_BLOCK = 128  # queries that meet their keys at once, where the window is shorter
GROUPED: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in signature(varlen_attn).parameters else {}
# torch 2.11 takes fewer key and value heads as they come; later ones want to be told


@dataclass(frozen=True)
class Packing:
    """Where the conversations of one flat row begin and end."""

    lengths: tuple[int, ...]
    """Tokens of each conversation, N of them; their sum is T."""
    cu_seqlens_N1: Tensor | None
    """0 and the running sums of the lengths, int32 on the GPU; None selects the backend that needs no kernel."""
    longest: int
    """A bound on the lengths; constant over a run, so that compiled code is not compiled again."""

    def kwargs(self) -> dict[str, Any]:
        """What the attention function below is given through the model's forward call."""
        if self.cu_seqlens_N1 is not None:
            return {"cu_seq_lens_q": self.cu_seqlens_N1, "max_length_q": self.longest}
        return {"conversation_lengths": self.lengths}


def has_varlen_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the variable-length kernel runs on this device in these numbers."""
    return (
        device.type == "cuda"
        and dtype in (torch.bfloat16, torch.float16)
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def packed_attention(  # noqa: PLR0913 - the signature of transformers' attention interface
    module: nn.Module,
    query_BHTD: Tensor,
    key_BKTD: Tensor,
    value_BKTD: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    conversation_lengths: tuple[int, ...] | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int = 0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each conversation. Returns [B, T, H, D], and no attention weights.

    Raises BaseError for what neither backend computes. Dropout of attention weights is not applied.
    """
    if attention_mask is not None or softcap:
        raise BaseError(
            "this base model masks or caps its attention in a way packing cannot keep", fix="use another base"
        )
    if cu_seq_lens_q is not None:
        window = (-1, 0) if sliding_window is None else (sliding_window - 1, 0)
        out_THD = varlen_attn(
            query_BHTD[0].transpose(0, 1), key_BKTD[0].transpose(0, 1), value_BKTD[0].transpose(0, 1),
            cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q, scale=scaling, window_size=window, **GROUPED,
        )  # fmt: skip
        assert isinstance(out_THD, Tensor)
        return out_THD[None], None
    lengths = conversation_lengths or (query_BHTD.shape[2],)
    groups = query_BHTD.shape[1] // key_BKTD.shape[1]
    if groups > 1:
        key_BKTD = key_BKTD.repeat_interleave(groups, dim=1)
        value_BKTD = value_BKTD.repeat_interleave(groups, dim=1)
    parts = [
        F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling)
        if sliding_window is None or q.shape[2] <= sliding_window
        else _windowed(q, k, v, scaling, sliding_window)
        for q, k, v in zip(*(x.split(list(lengths), dim=2) for x in (query_BHTD, key_BKTD, value_BKTD)), strict=True)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2), None


def _windowed(query_BHTD: Tensor, key_BHTD: Tensor, value_BHTD: Tensor, scaling: float, window: int) -> Tensor:
    """Attention of one conversation in which each token sees itself and the window - 1 tokens before it.

    Each block of queries meets only the keys that one of them sees: memory grows with T * window, not with T * T.
    """
    tokens, block, parts = query_BHTD.shape[2], max(window, LEAST_BLOCK), list[Tensor]()
    for start in range(0, tokens, block):
        stop, first = min(start + block, tokens), max(0, start - window + 1)
        query_Q1 = torch.arange(start, stop, device=query_BHTD.device)[:, None]
        key_W = torch.arange(first, stop, device=query_BHTD.device)
        sees_QW = (key_W <= query_Q1) & (key_W > query_Q1 - window)
        q, k, v = query_BHTD[:, :, start:stop], key_BHTD[:, :, first:stop], value_BHTD[:, :, first:stop]
        parts.append(F.scaled_dot_product_attention(q, k, v, attn_mask=sees_QW, scale=scaling))
    return torch.cat(parts, dim=2)


AttentionInterface.register(PACKED, packed_attention)
