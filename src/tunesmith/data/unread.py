"""What the readers give in the place of a row that cannot be read."""

import json
from collections.abc import Iterator
from typing import Any

from tunesmith.data.columns import Row

BAD_TEXT = "not valid UTF-8"
FIRST_WORDS = 80  # letters of a dropped row that are kept to find it by


class Unread(str):
    """Why a row cannot be read."""

    words: str
    """How it begins, where that can be had."""

    def __new__(cls, reason: str, words: str = "") -> "Unread":
        """`words` as they are to be shown."""
        self = super().__new__(cls, reason)
        self.words = words
        return self

    def __reduce__(self) -> tuple[type["Unread"], tuple[str, str]]:
        """For processes that rows are handed to."""
        return Unread, (str(self), self.words)


Numbered = Iterator[tuple[int, Row | Unread]]
"""Line, item or row number, counted from 1, and the row or what is wrong with it."""


def words_of(value: Any) -> str:
    """The first words of a row, or of the text that should be one."""
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, RecursionError):
        return ""
    return text[:FIRST_WORDS].encode(errors="replace").decode()
