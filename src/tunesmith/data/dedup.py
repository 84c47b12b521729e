"""Which conversations say the same to the letter or in their words: a signature for each."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple
from unicodedata import category, normalize

from tunesmith.data.conversation import Turn
from tunesmith.recipe import Dedup


class Signature(NamedTuple):
    """Hashes of one conversation."""

    said: str
    """What rows of one side of the held-out split may share: questions and answers, under any system prompt."""
    beside: str = ""
    """The system prompt, the tools and which answers are trained on; empty where there is nothing of the kind."""

    @property
    def whole(self) -> str:
        """What duplicates share."""
        return self.said + self.beside


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


def signature(turns: Iterable[Turn], dedup: Dedup, tools: str = "") -> Signature:
    """sha256 of what is said. `words` leaves system prompts out; else two rows that differ in theirs are two rows (it
    may hold the text that the question is about), but stay on one side of the split. `near` and `off` sign as `exact`.
    """
    turns = list(turns)
    form = words if dedup == "words" else exact
    said = _hash(part for turn in turns if turn.role != "system" for part in _parts(turn, form))
    beside = [] if dedup == "words" else [("system", exact(turn.text)) for turn in turns if turn.role == "system"]
    beside += [("tools", exact(tools))] if tools else []
    beside += [("untrained", str(place)) for place, turn in enumerate(turns) if not turn.trained]
    return Signature(said, _hash(beside) if beside else "")


def _parts(turn: Turn, form: Callable[[str], str]) -> Iterator[tuple[str, str]]:
    """What a turn says, each part by its name: the same words as reasoning and as an answer are not the same."""
    if turn.reasoning:
        yield "reasoning", form(turn.reasoning)
    yield turn.role, form(turn.text)
    if turn.calls:
        yield "calls", form(turn.calls)


def _hash(lines: Iterable[tuple[str, str]]) -> str:
    return hashlib.sha256("\n".join(f"{name}: {text}" for name, text in lines).encode()).hexdigest()
