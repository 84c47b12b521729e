"""Packing changes nothing: packed conversations have the logits they have alone (invariant 3 of the design).

Shapes: T tokens of a flat row, P places of one row, D hidden width, V vocabulary.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.boundary import NO_MEMORY
from tunesmith.errors import BaseError, ProofError
from tunesmith.model.attention import PACKED
from tunesmith.model.base import head, hidden_states
from tunesmith.model.batch import Batching
from tunesmith.record import Proof
from tunesmith.tokens.rows import TokenRows

NAME = "packed = alone, logits (relative)"
ALONE = "each row has a forward pass to itself; its logits = transformers' own (relative)"
ROWS = 3
SMALLEST = 1e-30  # a token whose embedding is zero may have logits that are all zero
LONGEST = 512  # tokens of the longer row that joins them, of which logits, three times in fp32, are all in memory
LIMITS = {torch.float32: 1e-4, torch.bfloat16: 8e-2, torch.float16: 2e-2}
# relative difference of a token's logits: products of other shapes round in another order, by 1e-6 in fp32, 3e-2 in
# bf16 and 4e-3 in fp16 on a random Llama 1B; a token that sees the conversation before its own differs by more


@torch.no_grad()
def prove_packing(model: PreTrainedModel, *packed: tuple[TokenRows, Batching]) -> Proof:
    """Compare the logits of a few packed rows with those of each row alone, through transformers' own attention.

    `packed` are rows and how they are batched, training and held-out; the first of which two share a forward pass are
    taken. Where none do, nothing is packed, and the proof is named for what it is. Of a base with sliding windows a row
    longer than the window is compared too, where there is one. The value is the largest relative difference. Raises
    ProofError above the limit, which also catches a base whose head does more than is known here.
    """
    bins = [_Bin(rows, batching, rows_of_one_bin(rows, batching.capacity)) for rows, batching in packed]
    chosen = [next((one for one in bins if len(one.chosen) > 1), bins[0])]
    window = model.config.get_text_config().to_dict().get("sliding_window")
    if window is not None and chosen[0].longest <= window:
        longer = (_Bin(rows, of, rows_past(window, rows, of.capacity)) for rows, of in packed)
        chosen += [one for one in longer if one.chosen][:1]
    try:
        compared = [found for one in chosen for found in _differences(model, one)]
    except (RuntimeError, ValueError, TypeError, IndexError) as error:  # of a family that was never tried
        if any(sign in str(error) for sign in (*NO_MEMORY, "CUDA", "CUDNN")):  # of the machine
            raise
        what = f"{type(model).__name__} cannot be computed packed: {str(error).strip().partition(chr(10))[0][:200]}"
        raise BaseError(what, fix="use another base, and report this one") from error
    difference_T = torch.cat([difference for difference, _, _ in compared])
    worst, limit = int(difference_T.argmax()), LIMITS[head(model).weight_VD.dtype]
    if difference_T.isnan().any() and head(model).weight_VD.dtype == torch.float16:
        raise ProofError(
            "the base computes numbers that are too large for fp16",
            fix="set train.precision to fp32, or to bf16 on a GPU that has it",
        )
    if not difference_T[worst] <= limit:
        at = [f"row {row}, token {place}" for _, row, places in compared for place in places.tolist()]
        raise ProofError(
            f"packing changes the base's logits: relative difference {difference_T[worst]:.2g} "
            f"(limit {limit:g}) at {at[worst]}",
            fix="this base cannot be trained packed; use another base, and report this one",
        )
    return Proof(NAME if len(chosen[0].chosen) > 1 else ALONE, float(difference_T[worst]), limit, len(difference_T))


@dataclass(frozen=True)
class _Bin:
    """Rows that share a forward pass."""

    rows: TokenRows
    batching: Batching
    chosen: list[int]

    @property
    def longest(self) -> int:
        return max(int(self.rows.lengths_N[row]) for row in self.chosen)


def rows_of_one_bin(rows: TokenRows, capacity: int) -> list[int]:
    """The shortest rows, three where so many fit, with the longest that fits beside them; one if no two ever fit.

    The longer one is second: what is broken shows in a row that has another before it, and most after a long one.
    """
    by_length = sorted(range(len(rows)), key=lambda row: (int(rows.lengths_N[row]), row))
    lengths = [int(rows.lengths_N[row]) for row in by_length]
    fit = min(ROWS, bisect_right(list(accumulate(lengths)), capacity))
    longer = bisect_right(lengths, min(capacity - sum(lengths[:fit]), LONGEST)) - 1
    return [by_length[0], *([by_length[longer]] if longer >= fit else []), *by_length[1:fit]]


def rows_past(window: int, rows: TokenRows, capacity: int) -> list[int]:
    """The shortest row longer than a window, after the shortest of all where both fit; nothing if all are shorter."""
    by_length = sorted(range(len(rows)), key=lambda row: (int(rows.lengths_N[row]), row))
    past = [row for row in by_length if rows.lengths_N[row] > window][:1]
    together = [row for row in by_length[:1] if row not in past] + past
    return together if past and sum(int(rows.lengths_N[row]) for row in together) <= capacity else past


def _differences(model: PreTrainedModel, one: _Bin) -> Iterator[tuple[Tensor, int, Tensor]]:
    """Of each row packed in a bin: the relative difference of its logits from those it has alone, its number, and the
    places in it that were compared: the first and the last of a long row.
    """
    batch = one.batching.micro_batch(one.rows, one.chosen)
    hidden_TD = hidden_states(model, batch.ids_T, batch.positions_T, batch.packing)
    model.set_attn_implementation("sdpa")
    try:
        for row in one.chosen:
            at_T = torch.from_numpy(np.flatnonzero(batch.row_of_T == row)).to(hidden_TD.device)
            places_P = torch.arange(len(at_T), device=at_T.device)
            if len(at_T) > LONGEST:
                places_P = torch.cat([places_P[: LONGEST // 2], places_P[-LONGEST // 2 :]])
            packed_PV = head(model).logits(hidden_TD[at_T[places_P]])
            alone = model(input_ids=batch.ids_T[None, at_T], use_cache=False, logits_to_keep=places_P)
            alone_PV = alone.logits[0].float()
            size_P = alone_PV.norm(dim=1).clamp_min(SMALLEST)
            yield (packed_PV - alone_PV).norm(dim=1) / size_P, row, places_P
    finally:
        model.set_attn_implementation(PACKED)
