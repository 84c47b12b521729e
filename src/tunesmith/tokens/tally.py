"""What becomes of the rows that are read: counted by reason; each that is dropped is a line of dropped.jsonl."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import StringIO
from typing import TextIO, cast

from tunesmith.data.conversation import Turn
from tunesmith.data.noted import Noted
from tunesmith.json_file import json_line
from tunesmith.printable import visible

WORDS = 80  # letters of a dropped row that are kept: a line of a terminal
EXAMPLES = 3
MOST_REASONS = 1000  # that are counted each by itself: strange roles can be as many as rows, and the record holds all
FURTHER = "further reasons"


@dataclass
class Tally:
    """What is counted on the way from the files to the rows."""

    listed: TextIO
    """Where each row that is dropped is written at once, so that memory does not grow with them."""
    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    changed: Counter[str] = field(default_factory=Counter)
    sources: dict[str, Noted] = field(default_factory=dict)
    """Path of a source -> what was seen in it."""
    unproved: Counter[str] = field(default_factory=Counter)
    """Kind, a key of UNPROVED in prepare.py -> rows."""
    first_unproved: dict[str, str] = field(default_factory=dict)
    """Kind -> the first row, with what was found."""

    def drop(self, where: str, reason: str, words: str = "", of: str = "") -> None:
        """Count and list a row that is not used; the first EXAMPLES of a reason are named.

        `words`: how it begins. `of`: where the row was read that it is dropped for, or the prompt that it asks.
        """
        counted = self._counted(reason)
        self.dropped[counted] += 1
        if self.dropped[counted] <= EXAMPLES:
            self.examples.setdefault(counted, []).append(where)
        line = {"where": where, "reason": reason, "words": beginning(words)}
        self.listed.write(json_line(line | {"of": of} if of else line))

    def add(self, later: "Tally") -> None:
        """Add what was counted of the rows after these, listed in memory. The sources are the reader's to note."""
        self.read += later.read
        self.listed.write(cast(StringIO, later.listed).getvalue())
        for reason, rows in later.dropped.items():
            counted = self._counted(reason)
            self.dropped[counted] += rows
            self.examples[counted] = [*self.examples.get(counted, ()), *later.examples[reason]][:EXAMPLES]
        self.changed.update(later.changed)
        self.unproved.update(later.unproved)
        for kind, row in later.first_unproved.items():
            self.first_unproved.setdefault(kind, row)

    def _counted(self, reason: str) -> str:
        """As what a reason is counted: all beyond the first MOST_REASONS together; the list has each."""
        return reason if reason in self.dropped or len(self.dropped) < MOST_REASONS else FURTHER

    def reasons(self) -> str:
        """Why rows were dropped, how many, and where the first ones are."""
        named = (f"{reason}: {n} ({', '.join(self.examples[reason])})" for reason, n in self.dropped.items())
        return "; ".join(named) or "none"


def first_words(turns: Sequence[Turn]) -> str:
    """What the user says first; of a row without one, what is said first."""
    texts = [turn.text for turn in turns if turn.role == "user"] or [turn.text for turn in turns]
    return texts[0] if texts else ""


def beginning(text: str) -> str:
    """The first letters of a text in one line, which steers no terminal."""
    start = text.lstrip()[: 4 * WORDS]
    line = visible(" ".join(start.split()))
    whole = len(line) <= WORDS and len(start) < 4 * WORDS
    return line if whole else line[: WORDS - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"
