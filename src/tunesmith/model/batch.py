"""Micro-batches: rows of tokens, packed end to end into one flat row, on the device.

Shapes: T tokens of the flat row, S supervised positions in it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tunesmith.model.attention import Packing, has_varlen_kernel
from tunesmith.model.lora import mix
from tunesmith.recipe import TrainConfig
from tunesmith.tokens.pack import pack
from tunesmith.tokens.rows import TokenRows

CU_SEQLENS_MULTIPLE = 32  # empty conversations at the end keep shapes few; each costs a row of the kernel's grid


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass."""

    ids_T: Tensor
    positions_T: Tensor
    at_S: Tensor
    """Positions whose next token is supervised."""
    targets_S: Tensor
    """Those next tokens."""
    ends_S: Tensor
    """bool: such a token ends its answer; it is the end-of-turn token."""
    packing: Packing
    row_of_T: np.ndarray
    """Row number of each token; -1 in padding."""
    tokens: int
    """Tokens without padding."""

    def dropout_keys(self, seed: int, step: int) -> Tensor:
        """One integer a token [T], from (seed, step, row, position): the same however rows are batched."""
        rows_T = torch.from_numpy(self.row_of_T).to(self.positions_T)
        return mix(mix(mix(rows_T + seed * 0x9E37) + step) + self.positions_T)


@dataclass(frozen=True)
class Batching:
    """How micro-batches are made on this device; the same for a whole run."""

    capacity: int
    """Most tokens in one."""
    longest: int
    """Bound on the length of a conversation."""
    device: torch.device
    kernel: bool
    """Whether attention runs in the variable-length kernel."""
    static: bool
    """Pad to the capacity, for compiled layers."""

    def micro_batches(self, rows: TokenRows, chosen: Sequence[int]) -> Iterator[MicroBatch]:
        """The chosen rows, packed into as few micro-batches as `pack` finds."""
        lengths = [int(rows.lengths_N[row]) for row in chosen]
        for packed in pack(lengths, self.capacity):
            yield self.micro_batch(rows, [chosen[i] for i in packed])

    def micro_batch(self, rows: TokenRows, chosen: Sequence[int]) -> MicroBatch:
        """The chosen rows as one flat row."""
        spans = [slice(int(rows.offsets_N1[row]), int(rows.offsets_N1[row + 1])) for row in chosen]
        lengths = [span.stop - span.start for span in spans]
        tokens = sum(lengths)
        padding = self.capacity - tokens if self.static else 0
        ids_T = np.concatenate([*(rows.tokens_T[span] for span in spans), np.zeros(padding, np.int32)])
        supervised_T = np.concatenate([*(rows.supervised_T[span] for span in spans), np.zeros(padding, bool)])
        all_lengths = [*lengths, padding] if padding else lengths
        starts = np.cumsum([0, *lengths[:-1]])
        supervised_T[starts] = False  # nothing comes before a first token, so nothing predicts it
        at_S = np.flatnonzero(supervised_T) - 1
        return MicroBatch(
            ids_T=self._tensor(ids_T),
            positions_T=self._tensor(np.concatenate([np.arange(n) for n in all_lengths])),
            at_S=self._tensor(at_S),
            targets_S=self._tensor(ids_T[at_S + 1]),
            ends_S=torch.from_numpy(~np.append(supervised_T, False)[at_S + 2]).to(self.device),
            packing=self._packing(all_lengths),
            row_of_T=np.repeat([*chosen, -1] if padding else list(chosen), all_lengths),
            tokens=tokens,
        )

    def _packing(self, lengths: list[int]) -> Packing:
        if not self.kernel:
            return Packing(tuple(lengths), None, self.longest)
        ends = np.cumsum([0, *lengths])
        empty = -len(lengths) % CU_SEQLENS_MULTIPLE
        cu_seqlens_N1 = torch.from_numpy(np.pad(ends, (0, empty), mode="edge").astype(np.int32)).to(self.device)
        return Packing(tuple(lengths), cu_seqlens_N1, max(self.longest, self.capacity if self.static else 0))

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array.astype(np.int64)).to(self.device, non_blocking=True)


def batching_for(train: TrainConfig, longest: int, device: torch.device) -> Batching:
    """How rows of at most `longest` tokens are batched here, once each `auto` of `train` is decided."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(train.precision, torch.float32)
    kernel = has_varlen_kernel(device, dtype) and not train.deterministic
    micro = train.micro_batch_tokens
    assert isinstance(micro, int)
    return Batching(max(micro, longest), train.max_length, device, kernel, static=kernel)


def supervised_in(rows: TokenRows, chosen: Sequence[int]) -> int:
    """Supervised tokens of the chosen rows that something predicts: all but a row's first token."""
    return sum(
        int(np.count_nonzero(rows.supervised_T[rows.offsets_N1[r] + 1 : rows.offsets_N1[r + 1]])) for r in chosen
    )
