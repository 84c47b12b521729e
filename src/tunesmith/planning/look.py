"""A look at the first rows of a source: how many there are, how long, and which would be dropped."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from tunesmith.data.clean import clean
from tunesmith.data.conversation import Conversation, Dropped
from tunesmith.data.dedup import signature
from tunesmith.data.read import conversations
from tunesmith.decides import source_files
from tunesmith.recipe import DataConfig, Source

Count = Callable[[list[Conversation]], list[int | str]]
"""Tokens of each conversation, or why it would be dropped."""
MOST_ROWS = 2000
BATCH_ROWS = 200
COUNTING_S = 2.0
"""How long the rows after the first ones are counted one by one; then their number is told from the files' sizes."""


@dataclass
class Look:
    """What the first rows of a source are."""

    path: str
    read: int = 0
    """Rows that were looked at."""
    rows: int = 0
    """Rows of the source; about, where `exact` is false."""
    exact: bool = True
    lengths: list[int] = field(default_factory=list)
    """Tokens of each row that can be trained on, uncut."""
    dropped: dict[str, list[str]] = field(default_factory=dict)
    """Why rows of those would be dropped, and where they are."""

    @property
    def kept(self) -> float:
        """Share of the rows that can be trained on."""
        return len(self.lengths) / max(self.read, 1)

    def drop(self, where: str, reason: str) -> None:
        """Note a row that would be dropped."""
        self.dropped.setdefault(reason, []).append(where)


def look_at(source: Source, count: Count, data: DataConfig, seen: set[str], most: int = MOST_ROWS) -> Look:
    """Look at the first `most` rows of a source. `seen`: signatures of the rows before, which grow by these.

    Raises DataError for a source that is missing, empty or of no known format.
    """
    look, rows, sizes = Look(source.path), conversations(source, data.roles), list[int]()
    while look.read < most and (batch := list(islice(rows, min(BATCH_ROWS, most - look.read)))):
        look.read += len(batch)
        sizes += [letters_of(row) for row in batch if isinstance(row, Conversation)]
        _note(look, [_tidied(row, data, seen) for row in batch], count)
    look.rows, look.exact = _counted(source, look.read, sizes, rows)
    return look


def _tidied(row: Conversation | Dropped, data: DataConfig, seen: set[str]) -> Conversation | Dropped:
    """A row as prepare would have it."""
    if isinstance(row, Conversation):
        row, _ = clean(row, data.clean)
    if isinstance(row, Conversation) and data.dedup != "off":
        whole = signature(row.turns, data.dedup).whole
        if whole in seen:
            return Dropped(row.where, "says the same as an earlier row")
        seen.add(whole)
    return row


def _note(look: Look, batch: list[Conversation | Dropped], count: Count) -> None:
    whole = [row for row in batch if isinstance(row, Conversation)]
    for row in batch:
        if isinstance(row, Dropped):
            look.drop(row.where, row.reason)
    for row, tokens in zip(whole, count(whole), strict=True):
        if isinstance(tokens, str):
            look.drop(row.where, tokens)
        else:
            look.lengths.append(tokens)


def _counted(source: Source, read: int, sizes: list[int], rest: Iterator[Conversation | Dropped]) -> tuple[int, bool]:
    """Rows of the source, and whether that is their exact number: the others are read for a while, not all.

    `sizes`: letters of the rows so far that could be read.
    """
    until, more = time.monotonic() + COUNTING_S, 0
    whole, letters = len(sizes), sum(sizes)
    for row in rest:
        more += 1
        if isinstance(row, Conversation):
            whole, letters = whole + 1, letters + letters_of(row)
        if time.monotonic() > until:
            break
    else:
        return read + more, True
    size = sum(file.stat().st_size for file in source_files(source))
    # rows that cannot be read are taken to be as long as the others; more: names of keys, brackets, escapes
    about = max(read + more, round(whole * size / max(letters, 1)))
    return min(about, source.limit or about), False


def letters_of(row: Conversation) -> int:
    """Letters of all turns."""
    return sum(len(turn.text) for turn in row.turns)
