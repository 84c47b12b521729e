"""Which conversations say the same: two signatures for each, one to drop duplicates by and one to split by."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple
from unicodedata import category, normalize

from tunesmith.data.conversation import Turn
from tunesmith.recipe import Dedup


class Signature(NamedTuple):
    """Hashes of one conversation; rows of the same hash are the same."""

    whole: str
    """What duplicates share: all but the first of them are dropped."""
    said: str
    """What rows of one side of the held-out split may share: questions and answers, under any system prompt."""


class _Words(dict[int, str]):
    """Character -> itself, or a space where it is neither letter, mark, number nor symbol; filled as text comes by."""

    def __missing__(self, code: int) -> str:
        letter = chr(code)
        self[code] = letter if category(letter)[0] in "LMNS" else " "
        return self[code]


WORDS = _Words()


def exact(text: str) -> str:
    """A text with each letter in one form (NFC) and each run of white space one space; case and signs stay."""
    return " ".join(normalize("NFC", text).split())


def words(text: str) -> str:
    """The words of a text, without case, punctuation and the kind of white space; marks are kept (Hindi needs them)."""
    return " ".join(normalize("NFKC", text.casefold()).translate(WORDS).split())


def signature(turns: Iterable[Turn], dedup: Dedup) -> Signature:
    """sha256 of what is said. `words` leaves system prompts out; for `exact` two rows that differ in theirs are two
    rows (it may hold the text that the question is about), but stay on one side of the split. `off` splits as `exact`.
    """
    turns = list(turns)
    asked = [turn for turn in turns if turn.role != "system"]
    if dedup == "words":
        found = _hash(asked, words)
        return Signature(found, found)
    said = _hash(asked, exact)
    return Signature(_hash(turns, exact) if len(asked) < len(turns) else said, said)


def _hash(turns: Iterable[Turn], form: Callable[[str], str]) -> str:
    return hashlib.sha256("\n".join(f"{turn.role}: {form(turn.text)}" for turn in turns).encode()).hexdigest()


def clusters(signatures: Sequence[str]) -> list[int]:
    """Cluster of each row, numbered by first appearance; rows of one cluster are duplicates of each other."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(found, len(numbers)) for found in signatures]
