"""Which conversations say the same: a signature for each, and clusters of signatures."""

import hashlib
from collections.abc import Sequence
from unicodedata import category, normalize

from tunesmith.data.conversation import Conversation


class _Words(dict[int, str]):
    """Character -> itself, or a space where it is neither letter, mark, number nor symbol; filled as text comes by."""

    def __missing__(self, code: int) -> str:
        letter = chr(code)
        self[code] = letter if category(letter)[0] in "LMNS" else " "
        return self[code]


WORDS = _Words()


def words(text: str) -> str:
    """The words of a text, without case, punctuation and the kind of white space; marks are kept (Hindi needs them)."""
    return " ".join(normalize("NFKC", text.casefold()).translate(WORDS).split())


def signature(conversation: Conversation) -> str:
    """sha256 of the words of all questions and answers. System prompts do not count: they vary without saying more."""
    said = [f"{turn.role}: {words(turn.text)}" for turn in conversation.turns if turn.role != "system"]
    return hashlib.sha256("\n".join(said).encode()).hexdigest()


def clusters(signatures: Sequence[str]) -> list[int]:
    """Cluster of each row, numbered by first appearance; rows of one cluster are duplicates of each other."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(found, len(numbers)) for found in signatures]
