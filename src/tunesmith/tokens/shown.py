"""Token rows as people read them: the text that the model sees, what of it is trained on, and what is special."""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from tunesmith.printable import visible
from tunesmith.tokens.rows import TokenRows

HEAD, TAIL = 1200, 300
"""Tokens of a long row that are shown: some screens of its start, and how it ends."""


class Piece(NamedTuple):
    """Tokens side by side that are alike."""

    text: str
    trained: bool
    special: bool
    """Whether it is one token of the template, such as <|im_end|>."""


class Shown(NamedTuple):
    """A row of the data."""

    row: int
    tokens: int
    supervised: int
    parts: Sequence[Sequence[Piece]]
    """One; of a long row two, its start and its end."""

    @property
    def left_out(self) -> int:
        """Tokens between the two."""
        return max(0, self.tokens - HEAD - TAIL)


def spread_over_lengths(rows: TokenRows, count: int) -> list[int]:
    """`count` rows, from the shortest to the longest in even steps; all where there are no more."""
    order = np.argsort(rows.lengths_N, kind="stable")
    places = np.linspace(0, len(order) - 1, count) if count > 1 else np.array([(len(order) - 1) / 2])
    return [int(order[place]) for place in dict.fromkeys(places.round().astype(int).tolist())] if len(order) else []


def shown(tokenizer: PreTrainedTokenizerBase, rows: TokenRows, row: int) -> Shown:
    """A row, decoded."""
    start, end = int(rows.offsets_N1[row]), int(rows.offsets_N1[row + 1])
    ids, trained = rows.tokens_T[start:end].tolist(), rows.supervised_T[start:end].tolist()
    ends = [slice(0, len(ids))] if len(ids) <= HEAD + TAIL else [slice(0, HEAD), slice(len(ids) - TAIL, len(ids))]
    parts = [pieces(tokenizer, ids[part], trained[part]) for part in ends]
    return Shown(row, len(ids), sum(trained), parts)


def pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], trained: Sequence[bool]) -> list[Piece]:
    """The text of these tokens in pieces, each all trained on or not; special tokens stand alone."""
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}

    def kind(place: int) -> tuple[bool, int]:
        return trained[place], place if ids[place] in special else -1

    found, before, end = list[Piece](), "", 0
    for (is_trained, alone), places in groupby(range(len(ids)), kind):
        start, end = end, end + len(list(places))
        # of the whole so far: what follows a token may be written otherwise than what begins a text
        text = _decoded(tokenizer, ids[:end])
        piece = text[len(before) :] if text.startswith(before) else _decoded(tokenizer, ids[start:end])
        found.append(Piece(piece, is_trained, alone >= 0))
        before = text
    return found


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


BEGIN, END = "\N{MATHEMATICAL LEFT WHITE SQUARE BRACKET}", "\N{MATHEMATICAL RIGHT WHITE SQUARE BRACKET}"
"""Around what is trained on where there are no colours: signs that are rare in texts."""


def print_shown(console: Console, row: Shown, where: str) -> None:
    """Print a row; what is trained on in colour, or where there is none (a pipe, a plain terminal) between signs."""
    plain = console.color_system is None or console.no_color
    share = f"{row.supervised:,} of {row.tokens:,} tokens trained on"
    console.print(visible(f"--- {where}: {share}"), style="bold", markup=False, highlight=False, soft_wrap=True)
    gap = f"\n... {row.left_out:,} tokens ...\n"
    text = Text(gap).join(_text(part, plain) for part in row.parts)
    console.print(text, soft_wrap=True, highlight=False)
    console.print()


def legend(console: Console) -> str:
    """What the colours or signs mean."""
    plain = console.color_system is None or console.no_color
    return f"trained on: {BEGIN}so{END}" if plain else "trained on: green; tokens of the template: dim"


def _text(part: Sequence[Piece], plain: bool) -> Text:
    text = Text()
    for trained, run in groupby(part, lambda piece: piece.trained):
        if plain and trained:
            text.append(BEGIN)
        for piece in run:
            style = ("bold green" if trained else "") + (" dim" if piece.special else "")
            text.append(visible(piece.text), "" if plain else style)
        if plain and trained:
            text.append(END)
    return text
