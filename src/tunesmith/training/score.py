"""Losses that choose: of held-out rows, and of the base on each training row. VERB score: rows in, a number a row out.

Shapes: N rows, T tokens, S supervised positions.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunesmith.console import progress, say
from tunesmith.data.conversation import Conversation
from tunesmith.data.read import conversations
from tunesmith.data.select import log_weights
from tunesmith.data.split import TRAIN
from tunesmith.errors import DataError
from tunesmith.model.base import head, hidden_states, load_base
from tunesmith.model.batch import Batching, batching_for, supervised_in
from tunesmith.model.loss import loss_sum, losses
from tunesmith.recipe import Recipe
from tunesmith.record import Record
from tunesmith.runs import Run, commit_stage
from tunesmith.tokens.rows import Array, TokenRows, load_rows
from tunesmith.tokens.selected import SCORES, examples_of, scores_needs
from tunesmith.tokens.template import form_of, template_of
from tunesmith.tokens.texts import texts_of
from tunesmith.tokens.tokenizer import load_tokenizer
from tunesmith.training.device import device_name, pick_device, set_determinism
from tunesmith.training.memory import decide_autos
from tunesmith.weights.locate import LocatedBase

WINDOW_TOKENS = 1 << 16
"""Tokens of the rows that are packed at once when rows are scored: some seconds on two cores, between two lines."""
BITS_PER_BYTE_DEFINITION = 2
"""1, in runs that began with version 0.1: the end-of-turn tokens, which are no text, counted above the line only."""


@dataclass(frozen=True)
class HeldOut:
    """What the held-out rows cost a model."""

    loss: float
    """Nats per supervised token, the end-of-turn tokens among them."""
    text_nats: float
    """Nats of all supervised tokens together, but the end-of-turn tokens."""


@torch.no_grad()
def measure_held_out(
    model: PreTrainedModel, rows: TokenRows, batching: Batching, pause: Callable[[], None] = lambda: None
) -> HeldOut:
    """The loss over all rows. Dropout must be off. `pause` may raise."""
    total_nats = end_nats = 0.0
    for batch in batching.micro_batches(rows, range(len(rows))):
        pause()
        hidden_TD = hidden_states(model, batch.ids_T, batch.positions_T, batch.packing)
        total_nats += loss_sum(hidden_TD[batch.at_S], head(model), batch.targets_S).item()
        ends_S = batch.ends_S
        end_nats += loss_sum(hidden_TD[batch.at_S[ends_S]], head(model), batch.targets_S[ends_S]).item()
    return HeldOut(total_nats / supervised_in(rows, range(len(rows))), total_nats - end_nats)


def bits_per_byte(found: HeldOut, rows: TokenRows, definition: int = BITS_PER_BYTE_DEFINITION) -> float:
    """The loss, comparable between tokenizers: nats of the answers' text over ln 2 and the bytes of that text."""
    nats = found.text_nats if definition > 1 else found.loss * supervised_in(rows, range(len(rows)))
    return nats / math.log(2) / int(rows.answer_bytes_N.sum())


def score(recipe: Recipe, run: Run, base: LocatedBase) -> tuple[Record, bool]:
    """Make run.scores, a number for each training row: what data.select.by says, which data/select.py reads.

    Raises DataError if there is nothing to compare with. How many rows are kept changes nothing here.
    """

    def work(draft: Path) -> dict[str, Any]:
        select, rows = recipe.data.select, load_rows(run.data)[0]
        assert select is not None
        scores_N, counts = _likeness(run, rows, select.like) if select.like else _difficulty(recipe, run, rows, base)
        np.save(draft / SCORES, scores_N, allow_pickle=False)
        low, middle, high = (round(float(number), 4) for number in np.quantile(scores_N, (0.1, 0.5, 0.9)))
        say(
            f"score: {select.by} of {len(scores_N):,} rows; a tenth is below {low}, half below {middle}, 9 in 10 {high}"
        )
        return {"by": select.by, "rows": len(scores_N), "low": low, "middle": middle, "high": high} | counts

    return commit_stage(run.scores, *scores_needs(recipe, run, base.digest), work)


def _likeness(run: Run, rows: TokenRows, like: str) -> tuple[Array, dict[str, Any]]:
    """Log weights of the rows' texts against the examples, and counts."""
    read = (row for row in conversations(examples_of(like)) if isinstance(row, Conversation))
    found = [row for row in read if _text(row).strip()]
    if not found:
        fix = "write examples in it, in any form that data.sources may have"
        raise DataError(f"data.select.like: no row of {like} is a conversation", fix=fix)
    scores_N = log_weights(lambda: map(_text, texts_of(run.data, TRAIN)), map(_text, found))
    if len(scores_N) != len(rows):
        what = f"the texts of {len(scores_N)} of {len(rows)} training rows are there, so they cannot be compared"
        raise DataError(what, fix="begin a run by another name, which makes its rows anew", where=str(run.data))
    return scores_N, {"examples": len(found)}


def _text(row: Conversation) -> str:
    """What was said, without the system prompt."""
    return "\n".join(turn.text for turn in row.turns if turn.role != "system")


def _difficulty(recipe: Recipe, run: Run, rows: TokenRows, base: LocatedBase) -> tuple[Array, dict[str, Any]]:
    """The difficulty of each row for the base, and counts."""
    device = pick_device()
    recipe = decide_autos(recipe, base.folder, device)
    set_determinism(recipe.train)
    precision, tokenizer = recipe.train.precision, load_tokenizer(base.folder)
    say(f"score: loading {base.name} in {precision} on {device_name(device)}")
    model = load_base(base.folder, precision=precision, device=device)
    opening = opening_ids(tokenizer, recipe, rows)
    batching = replace(batching_for(recipe.train, int(rows.lengths_N.max()), device), static=False)  # nothing compiled
    counts = {"precision": precision, "device": device_name(device), "opening": tokenizer.decode(opening)}
    return difficulty(model, rows, opening, batching), counts


def opening_ids(tokenizer: PreTrainedTokenizerBase, recipe: Recipe, rows: TokenRows) -> list[int]:
    """What the base reads before an answer that stands alone: what the template writes between a question and it.

    Before that comes the token that begins every row, where the tokenizer has one: without it some bases predict
    nothing sensible.
    """
    form = form_of(tokenizer, template_of(tokenizer, recipe.chat.system, recipe.data.date), recipe.chat.system)
    first = int(rows.tokens_T[rows.offsets_N1[0]])
    header = tokenizer(form.header, add_special_tokens=False)["input_ids"]
    return [*([first] if first == tokenizer.bos_token_id else []), *header]


def difficulty(model: PreTrainedModel, rows: TokenRows, opening: Sequence[int], batching: Batching) -> Array:
    """Instruction-following difficulty of each row [N] (Li et al. 2023): the mean loss of its supervised tokens after
    all that comes before them, over that of each answer alone after `opening`. Of several answers it is of all tokens.
    """
    found, longest = [], batching.longest
    with progress("score", len(rows), unit="rows") as advance:
        for first, end in _windows(rows):
            window = rows.slice(first, end)
            alone, row_of = answers_alone(window, opening)
            bound = int(max(batching.capacity, alone.lengths_N.max(initial=0)))
            answers = replace(batching, capacity=bound, longest=max(longest, bound))
            with_N = row_nats(model, window, batching)
            without_N = np.bincount(row_of, row_nats(model, alone, answers), minlength=len(window))
            found.append(with_N / np.maximum(without_N, 1e-9))
            advance(end - first, "")
    return np.concatenate(found)


def answers_alone(rows: TokenRows, opening: Sequence[int]) -> tuple[TokenRows, Array]:
    """Each answer of the rows as a row of its own, `opening` before it; and of which row each is."""
    ids, supervised, row_of = list[Array](), list[Array](), list[int]()
    for row, (start, end) in enumerate(zip(rows.offsets_N1[:-1], rows.offsets_N1[1:], strict=True)):
        is_answer = rows.supervised_T[start:end].astype(np.int8)
        is_answer[0] = 0  # nothing predicts a first token
        edges = start + np.flatnonzero(np.diff(is_answer, prepend=0, append=0))
        for first, last in zip(edges[::2], edges[1::2], strict=True):
            ids.append(np.concatenate([np.array(opening, np.int32), rows.tokens_T[first:last]]))
            supervised.append(np.arange(len(ids[-1])) >= len(opening))
            row_of.append(row)
    offsets_N1 = np.cumsum([0, *map(len, ids)])
    none = [np.zeros(0, np.int32)]
    alone = TokenRows(
        np.concatenate(none + ids),
        np.concatenate([np.zeros(0, bool), *supervised]),
        offsets_N1,
        np.zeros(len(ids), int),
    )
    return alone, np.array(row_of, np.int64)


@torch.no_grad()
def row_nats(model: PreTrainedModel, rows: TokenRows, batching: Batching) -> Array:
    """Nats of the supervised tokens of each row, together [N]."""
    nats_N = np.zeros(len(rows))
    for batch in batching.micro_batches(rows, range(len(rows))):
        hidden_TD = hidden_states(model, batch.ids_T, batch.positions_T, batch.packing)
        nats_S = losses(hidden_TD[batch.at_S], head(model), batch.targets_S)
        np.add.at(nats_N, batch.row_of_T[batch.at_S.cpu().numpy()], nats_S.double().cpu().numpy())
    return nats_N


def _windows(rows: TokenRows) -> Iterator[tuple[int, int]]:
    """Rows of WINDOW_TOKENS at a time, one at least: the first and the one after the last."""
    first = 0
    while first < len(rows):
        end = int(np.searchsorted(rows.offsets_N1, rows.offsets_N1[first] + WINDOW_TOKENS, side="right")) - 1
        end = min(max(end, first + 1), len(rows))
        yield first, end
        first = end
