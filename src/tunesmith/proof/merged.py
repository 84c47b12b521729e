"""Merged = adapter: each stored weight is base + update, and the merged model has the adapter's logits.

The weights are compared piece by piece from disk, which takes little memory and is always done. The logits are those
of three models, a decoder layer at a time: the base with its adapter, the base merged in fp32, and what is stored.

Shapes: T tokens of all rows, D hidden width, C words of the vocabulary at a time, O and I output and input width of a
layer, R rank.
"""

from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.errors import BaseError, ProofError
from tunesmith.model.adapter import attach_saved, load_adapter
from tunesmith.model.base import decoder_layers
from tunesmith.model.lora import adapted_layers
from tunesmith.model.streamed import StreamedModel, read_f32, roomiest
from tunesmith.proof.sample import Sample, first_sample
from tunesmith.record import Proof
from tunesmith.tokens.rows import TokenRows
from tunesmith.weights.tensorfile import TensorInfo, pieces, read_index, read_rows

WEIGHTS_STORED = "stored = base + update, error over what rounding may cost"
MERGED, STORED = "merged = adapter, logits in fp32", "stored = adapter, mean KL in nats"
CHOICE, RELATIVE = "stored = adapter, other first choice", "stored = adapter, max relative difference of logits"
BITS, STORED_BITS = "adapter: held-out bits per byte", "stored: held-out bits per byte"
LIMIT, LIMIT_KL = 1e-3, 1e-2
# largest |difference of logits| before rounding to the stored type; nats, which rounding to bf16 alone stays below
ROUNDING = {"F64": 1e-6, "F32": 1e-6, "F16": 2**-11, "BF16": 2**-8}
# largest relative error of a stored number: half a unit in its last place; in fp32 sums of another order differ more
NEAR_ZERO = 1e-6  # and the largest absolute one beside it
ROWS, LONGEST = 8, 512  # held-out rows the logits are compared on, and how much of each
PIECE_BYTES = 16 << 20  # fp32 logits of all tokens for some words, or the head's weights for them
FIX = "if files of the run were changed by hand, delete adapter/ and run again; otherwise report this base"


def prove_merged(base: Path, adapter: Path, merged: Path, held_out: TokenRows) -> list[Proof]:
    """Compare stored weights with base + update; and logits, on held-out rows, before and after the stored type's
    rounding.

    Raises ProofError above the limits. The logits are skipped, with the reason, where not even a layer fits.
    """
    weights = prove_stored(base, adapter, merged)
    rows = _first_rows(held_out)
    tokens = sum(map(len, rows))
    try:
        model, stored = StreamedModel(base), StreamedModel(merged)
        device, reason = roomiest(model.needed_bytes(tokens))
    except BaseError as error:  # stored by names of its own, as the experts of a mixture are
        device, reason = None, error.what
    if device is None:
        limits = {MERGED: LIMIT, STORED: LIMIT_KL, CHOICE: None, RELATIVE: None}
        return [weights, *(Proof(name, None, limit, 0, reason) for name, limit in limits.items())]
    model.to(device)
    stored.to(device)
    attach_saved(model.model, adapter, device)
    wanted_TD = model.hidden(rows)
    for layer in decoder_layers(model.model):
        layer.register_forward_pre_hook(_merge)  # comes after the one that reads the layer's weights
    sample = first_sample(held_out, ROWS)
    starts = [sum(map(len, rows[:number])) for number in range(len(rows))]
    found = _Logits(tokens, [starts[row.number] + place for row in sample.rows for place in row.places], sample, device)
    found.compare((model, wanted_TD, model.hidden(rows)), (stored, stored.hidden(rows)))
    difference, kl = float(found.difference_T.max()), float(found.kl_T.mean())
    if not difference <= LIMIT:
        raise _unequal("merging changes the logits", difference, LIMIT, found.difference_T, rows)
    if not kl <= LIMIT_KL:
        raise _unequal("the stored merged model is not the adapter's (KL)", kl, LIMIT_KL, found.kl_T, rows, found)
    bits = zip((BITS, STORED_BITS), found.bits_per_byte(), strict=True)
    return [
        weights,
        Proof(MERGED, difference, LIMIT, tokens),
        Proof(STORED, max(0.0, kl), LIMIT_KL, tokens),  # sums of another order can leave it just below zero
        Proof(CHOICE, float(found.other_T.float().mean()), None, tokens),  # near ties: for the user to judge
        Proof(RELATIVE, float(found.relative_T.max()), None, tokens),
        *(Proof(name, value, None, len(sample)) for name, value in bits if value is not None),
    ]


def prove_stored(base: Path, adapter: Path, merged: Path) -> Proof:
    """Compare every stored weight with base + update, computed anew; without an update its bytes are the base's.

    The value is the largest error, where 1 is what rounding to the stored type may cost. Raises ProofError above it.
    """
    (updates, scale), theirs, ours = load_adapter(adapter), read_index(base), read_index(merged)
    forms = [{name: (info.dtype, info.shape) for name, info in infos.items()} for infos in (theirs, ours)]
    if other := sorted(name for name in theirs.keys() | ours.keys() if forms[0].get(name) != forms[1].get(name)):
        raise ProofError(f"{other[0]} is not stored in the base's type and shape", fix=FIX, where=str(merged))
    largest = 0.0
    for name, info in theirs.items():
        update = updates.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        for start, stop in pieces(info):
            if update:
                error = _error(info, ours[name], start, stop, update, scale)
            else:
                same = read_rows(info, start, stop).tobytes() == read_rows(ours[name], start, stop).tobytes()
                error = 0.0 if same else float("inf")
            if not error <= 1:
                what = f"{name} is not stored as it was merged: rows {start} to {stop} are off by {error:.2g} roundings"
                raise ProofError(what, fix=FIX, where=str(ours[name].file))
            largest = max(largest, error)
    return Proof(WEIGHTS_STORED, largest, 1.0, sum(prod(info.shape) for info in theirs.values()))


def _error(
    base: TensorInfo, merged: TensorInfo, start: int, stop: int, update: tuple[Tensor, Tensor], scale: float
) -> float:
    """Largest difference of stored rows from W + s B A, over what rounding may cost."""
    a_RI, b_OR = update
    exact_OI = read_f32(base, start, stop, torch.device("cpu")) + (scale * b_OR[start:stop].float()) @ a_RI.float()
    error_OI = (read_f32(merged, start, stop, torch.device("cpu")) - exact_OI).abs_()
    return float(error_OI.div_(exact_OI.abs_().mul_(ROUNDING[merged.dtype]).add_(NEAR_ZERO)).max())


def _unequal(
    what: str, value: float, limit: float, each_T: Tensor, rows: list[list[int]], logits: "_Logits | None" = None
) -> ProofError:
    """The first position beyond the limit: its row and token, and the first choices there."""
    place = int((~(each_T <= limit)).int().argmax()) if (~(each_T <= limit)).any() else int(each_T.argmax())
    row, token = 0, place
    while token >= len(rows[row]):
        row, token = row + 1, token - len(rows[row])
    said = f"; {logits.choices(place)}" if logits else ""
    where = (
        f"first at held-out row {row}, after token {token} (id {rows[row][token]}): {float(each_T[place]):.2g}{said}"
    )
    return ProofError(f"{what}: {value:.2g}, limit {limit:g}", fix=FIX, where=where)


def _first_rows(rows: TokenRows) -> list[list[int]]:
    """Token ids of the first rows, the beginning of each."""
    spans = [(int(rows.offsets_N1[row]), int(rows.offsets_N1[row + 1])) for row in range(min(ROWS, len(rows)))]
    return [rows.tokens_T[start : min(stop, start + LONGEST)].tolist() for start, stop in spans]


def _merge(layer: nn.Module, arguments: Any) -> None:
    """Merge the adapters of one decoder layer, as its weights have just been read."""
    for _, adapted in adapted_layers(layer):
        adapted.merge_in_place()


class _Logits:
    """How far logits are apart at each token, taken in for some words of the vocabulary after others."""

    def __init__(self, tokens: int, places: list[int], sample: Sample, device: torch.device) -> None:
        """`places`: of the sample's positions among all tokens."""
        self._sample, self._at_S = sample, torch.tensor(places, device=device, dtype=torch.int64)
        self._target_S = torch.from_numpy(sample.targets_S).to(device)
        self.difference_T = torch.zeros(tokens, device=device)
        """Largest |merged - wanted|."""
        self._wanted, self._stored = _Softmax(tokens, device), _Softmax(tokens, device)
        self._gain_T = torch.zeros(tokens, device=device, dtype=torch.float64)
        self._apart, self._size = _Spread(tokens, device), _Spread(tokens, device)

    @torch.no_grad()
    def compare(self, base: tuple[StreamedModel, Tensor, Tensor], stored: tuple[StreamedModel, Tensor]) -> None:
        """Take in all words. With each model come its last hidden states [T, D]: of the base as wanted, and merged."""
        (model, wanted_TD, merged_TD), (other, stored_TD) = base, stored
        words, start = max(1, PIECE_BYTES // (4 * max(wanted_TD.shape))), 0
        for head, other_head in zip(model.head_pieces(words), other.head_pieces(words), strict=True):
            wanted_TC, stored_TC = head.logits(wanted_TD), other_head.logits(stored_TD)
            difference_T = head.logits(merged_TD).sub_(wanted_TC).abs_().amax(dim=1)
            self.difference_T = torch.maximum(self.difference_T, difference_T)
            exp_TC, shrink_T = self._wanted.add(wanted_TC, start)
            self._stored.add(stored_TC, start)
            for softmax, logits_TC in ((self._wanted, wanted_TC), (self._stored, stored_TC)):
                softmax.keep(logits_TC, start, self._at_S, self._target_S)
            self._size.add(wanted_TC)
            self._apart.add(wanted_TC.sub_(stored_TC))
            self._gain_T = self._gain_T * shrink_T + exp_TC.mul_(wanted_TC).sum(dim=1)
            start += len(head.weight_VD)

    @property
    def kl_T(self) -> Tensor:  # noqa: N802 (its shape)
        """KL(wanted || stored) in nats: sum of p (w - s), less the difference of the logarithms of the sums."""
        return self._gain_T / self._wanted.sum_T - self._wanted.log_sum_T + self._stored.log_sum_T

    @property
    def other_T(self) -> Tensor:  # noqa: N802
        """Whether the most likely word is another one."""
        return self._wanted.first_T != self._stored.first_T

    @property
    def relative_T(self) -> Tensor:  # noqa: N802
        """Length of the difference over that of the wanted logits, both less their mean, as of log-probabilities."""
        return self._apart.length_T / self._size.length_T

    def bits_per_byte(self) -> tuple[float | None, float | None]:
        """Of the adapter, and of what is stored, on the rows that are read whole."""
        if not len(self._sample):
            return None, None
        nats = [(one.log_sum_T[self._at_S] - one.target_S).cpu().numpy() for one in (self._wanted, self._stored)]
        return self._sample.held_out_loss(nats[0]).bits_per_byte, self._sample.held_out_loss(nats[1]).bits_per_byte

    def choices(self, place: int) -> str:
        """The most likely words of both at a token, with their logits."""
        (word, logit), (other, other_logit) = (
            (int(one.first_T[place]), float(one.largest_T[place])) for one in (self._wanted, self._stored)
        )
        return f"the adapter has token {word} first (logit {logit:.3f}), the stored model {other} ({other_logit:.3f})"


class _Spread:
    """How long rows of numbers are when their mean is taken away, taken in for some words after others."""

    def __init__(self, tokens: int, device: torch.device) -> None:
        self._sum_T, self._squares_T = (torch.zeros(tokens, device=device, dtype=torch.float64) for _ in range(2))
        self._words = 0

    def add(self, numbers_TC: Tensor) -> None:
        self._sum_T += numbers_TC.sum(dim=1, dtype=torch.float64)
        self._squares_T += torch.linalg.vector_norm(numbers_TC, dim=1, dtype=torch.float64).square()
        self._words += numbers_TC.shape[1]

    @property
    def length_T(self) -> Tensor:  # noqa: N802
        return (self._squares_T - self._sum_T.square() / self._words).clamp(min=0).sqrt()


class _Softmax:
    """The sum of the exponentials of logits, and the first choice, over the words taken in so far."""

    def __init__(self, tokens: int, device: torch.device) -> None:
        self.largest_T = torch.full((tokens,), -torch.inf, device=device)
        self.first_T = torch.zeros(tokens, device=device, dtype=torch.int64)
        self.sum_T = torch.zeros(tokens, device=device, dtype=torch.float64)
        """Of exp(logit - largest)."""
        self.target_S = torch.zeros(0, device=device, dtype=torch.float64)
        """Logits of the words that follow."""

    def add(self, logits_TC: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Take in words from `start` on. Returns exp(logit - largest) of them, and what sums before shrink by [T]."""
        largest_T, first_T = logits_TC.max(dim=1)
        self.first_T = torch.where(largest_T > self.largest_T, first_T + start, self.first_T)
        largest_T = torch.maximum(largest_T, self.largest_T)
        exp_TC, shrink_T = (logits_TC - largest_T[:, None]).exp_(), (self.largest_T - largest_T).exp().double()
        self.sum_T = self.sum_T * shrink_T + exp_TC.sum(dim=1)
        self.largest_T = largest_T
        return exp_TC, shrink_T

    def keep(self, logits_TC: Tensor, start: int, at_S: Tensor, target_S: Tensor) -> None:
        """Keep the logits of the words that follow, of those from `start` on."""
        if not len(self.target_S):
            self.target_S = torch.zeros(len(at_S), device=logits_TC.device, dtype=torch.float64)
        here_S = (target_S >= start) & (target_S < start + logits_TC.shape[1])
        self.target_S[here_S] = logits_TC[at_S[here_S], target_S[here_S] - start].double()

    @property
    def log_sum_T(self) -> Tensor:  # noqa: N802
        """log of the sum of exp(logit)."""
        return self.sum_T.log() + self.largest_T
