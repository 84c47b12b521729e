"""The positions of held-out rows at which a file is compared with what it was made from, and what rows cost there.

Letters in names: S positions.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tunesmith.tokens.rows import TokenRows

LONGEST = 512  # tokens of a row that are read, where rows allow it: one long row would take the place of many


@dataclass(frozen=True)
class Row:
    """A held-out row, or its start, and where in it models are asked for the next token."""

    number: int
    ids: tuple[int, ...]
    """Token ids up to the last place."""
    places: tuple[int, ...]
    """After these tokens of `ids` a model is asked for the next one."""
    targets: tuple[int, ...]
    """The next one."""
    ends: tuple[bool, ...]
    """Whether that ends an answer: no text."""
    answer_bytes: int | None
    """UTF-8 bytes of the answers; None where not all of their tokens are asked for."""


@dataclass(frozen=True)
class HeldOutLoss:
    """What a model's probabilities make of the held-out tokens."""

    loss: float
    """Nats a supervised token, the end-of-turn tokens among them, as training measures it."""
    bits_per_byte: float | None
    """Of the answers' text in the rows that are whole; None where there is none."""
    positions: int
    rows: int
    stop_probability: float | None
    """Mean probability of the end-of-turn token where the answers of the data end; None where none of them was read to
    its end."""


@dataclass(frozen=True)
class Sample:
    """The positions, row by row."""

    rows: tuple[Row, ...]

    def __len__(self) -> int:
        return sum(len(row.places) for row in self.rows)

    @property
    def targets_S(self) -> NDArray[np.int64]:  # noqa: N802 (its shape)
        """The token that follows each position."""
        return np.array([token for row in self.rows for token in row.targets])

    @property
    def starts(self) -> list[int]:
        """Number of each row's first position, and the number of all of them."""
        return np.cumsum([0, *(len(row.places) for row in self.rows)]).tolist()

    def place(self, position: int) -> str:
        """A position in words."""
        row = int(np.searchsorted(self.starts, position, side="right")) - 1
        token = self.rows[row].places[position - self.starts[row]] + 1
        return f"held-out row {self.rows[row].number}, token {token}"

    def end_of_an_answer(self) -> tuple[tuple[int, ...], int] | None:
        """The tokens before the first end-of-turn token that was read, and that token; None where there is none."""
        for row in self.rows:
            for place, target, end in zip(row.places, row.targets, row.ends, strict=True):
                if end:
                    return row.ids[: place + 1], target
        return None

    def prefixes(self) -> Iterator[tuple[int, ...]]:
        """The tokens up to each position."""
        return (row.ids[: place + 1] for row in self.rows for place in row.places)

    def spread(self, count: int) -> "Sample":
        """At most so many of the positions, evenly spread."""
        chosen = set(np.linspace(0, len(self) - 1, count).round().astype(int).tolist())
        rows = [_only(row, [n - start for n in range(start, end) if n in chosen])
                for row, (start, end) in zip(self.rows, pairwise(self.starts), strict=True)]  # fmt: skip
        return Sample(tuple(row for row in rows if row.places))

    def held_out_loss(self, nats_S: NDArray[np.float64]) -> HeldOutLoss:
        """From the cost of each position's next token; definitions as in training/score.py."""
        whole = [n for n, row in enumerate(self.rows) if row.answer_bytes]
        nats = sum(
            float(nats_S[self.starts[n] : self.starts[n + 1]][~np.array(self.rows[n].ends)].sum()) for n in whole
        )
        text_bytes = sum(self.rows[n].answer_bytes or 0 for n in whole)
        bits = nats / math.log(2) / text_bytes if text_bytes else None
        ends_S = np.array([end for row in self.rows for end in row.ends])
        stops = float(np.exp(-nats_S[ends_S]).mean()) if ends_S.any() else None
        return HeldOutLoss(float(nats_S.mean()), bits, len(self), len(self.rows), stops)


def pick_sample(rows: TokenRows, count: int) -> Sample:
    """The supervised positions of whole rows, spread over all of them, until there are `count`; all if there are fewer.

    The same ones every time. Rows are read up to LONGEST tokens, unless nothing is supervised there.
    """
    longest = LONGEST
    found = _picked(rows, count, longest)
    return found if found.rows else _picked(rows, count, int(rows.lengths_N.max()))


def first_sample(rows: TokenRows, count: int) -> Sample:
    """The supervised positions of the first rows, up to LONGEST tokens of each."""
    found = (_row(rows, number, LONGEST) for number in range(min(count, len(rows))))
    return Sample(tuple(row for row in found if row))


def _picked(rows: TokenRows, count: int, longest: int) -> Sample:
    chosen: list[Row] = []
    left = count
    for number in rows.spread():
        if left > 0 and (row := _row(rows, number, longest)):
            chosen.append(row)
            left -= len(row.places)
    return Sample(tuple(sorted(chosen, key=lambda row: row.number)))


def _row(rows: TokenRows, number: int, longest: int) -> Row | None:
    """The start of a row; None where nothing in it is supervised."""
    span = slice(int(rows.offsets_N1[number]), int(rows.offsets_N1[number + 1]))
    ids, supervised = rows.tokens_T[span], np.append(rows.supervised_T[span], False)
    all_targets = np.flatnonzero(supervised[1:]) + 1  # nothing comes before a first token, so nothing predicts it
    targets = all_targets[all_targets < longest]
    if not len(targets):
        return None
    return Row(
        number=number, ids=tuple(ids[: targets[-1]].tolist()), places=tuple((targets - 1).tolist()),
        targets=tuple(ids[targets].tolist()), ends=tuple((~supervised[targets + 1]).tolist()),
        answer_bytes=int(rows.answer_bytes_N[number]) if len(targets) == len(all_targets) else None,
    )  # fmt: skip


def _only(row: Row, kept: Sequence[int]) -> Row:
    """A row with some of its positions."""
    if len(kept) == len(row.places):
        return row
    places, targets = (tuple(part[n] for n in kept) for part in (row.places, row.targets))
    ends = tuple(row.ends[n] for n in kept)
    last = places[-1] + 1 if places else 0
    return replace(row, ids=row.ids[:last], places=places, targets=targets, ends=ends, answer_bytes=None)
