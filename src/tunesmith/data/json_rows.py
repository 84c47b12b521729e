"""JSON files: rows one a line (JSONL), arrays, objects over many lines, and several of these in one file.

Every byte is in a row, between rows, in a line that is named as not used, or in the part that an error names as
unread. A file with one row a line loses a damaged line and goes on with the next. In anything else nobody can know
where the next row starts after a fault, so that the fault is an error and nothing is dropped in silence.
"""

import codecs
import json
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from tunesmith.data.formats import Row
from tunesmith.errors import DataError

BAD_JSON, BAD_TEXT, NO_OBJECT = "not valid JSON", "not valid UTF-8", "not a JSON object"
BETWEEN = re.compile("[\\s\ufeff]*")  # some editors start UTF-8 files with U+FEFF
BETWEEN_ITEMS = re.compile("[\\s,\ufeff]*")
ONLY_OPENS = re.compile(r"[\[{\s]+")
PIECE_BYTES = 1 << 20
CUT_TAIL = 12  # characters of what the end of a piece can cut in two, the longest an escaped pair: \ud83d\ude00
DECODER = json.JSONDecoder()


Numbered = Iterator[tuple[int, Row | str]]
"""Line, item or row number, counted from 1, and the row or what is wrong with it."""


def json_rows(path: Path) -> Numbered:
    """Every row of a file; its number is that of its line, or of the item where rows are not lines.

    Raises DataError, with line and column and what is unread, for a fault where rows are not lines.
    """
    with path.open("rb") as file:
        start = number = 0
        by_line = False
        while line := file.readline():
            number += 1
            found = _line_values(line)
            if isinstance(found, list):
                by_line = by_line or any(isinstance(row, dict) for row in found)
                yield from ((number, row) for row in found)
            else:
                must_open = found.must_open and not by_line
                rows = _from_here(_Text(path, file, start, number), must_open) if found.opens else None
                if rows is not None:
                    yield from rows
                    return
                file.seek(start + len(line))
                yield number, found.reason
            start += len(line)


class _Fault(NamedTuple):
    """What is wrong with a line."""

    reason: str
    opens: bool
    """It may be the start of something that goes on in the next lines."""
    must_open: bool
    """It is the start of something, whole or not, unless the lines before are rows."""


def _line_values(line: bytes) -> list[Row | str] | _Fault:
    """The rows in a line: none if it is blank, the items of an array; or why it cannot be read alone."""
    text, place, values = line.decode(errors="surrogateescape").strip(), 0, list[Any]()
    is_array = text.lstrip("\ufeff").startswith("[")
    try:
        text.encode()
        while (place := _end(BETWEEN, text, place)) < len(text):
            value, place = DECODER.raw_decode(text, place)
            values += value if isinstance(value, list) else [value]
    except UnicodeEncodeError:
        return _Fault(BAD_TEXT, is_array, is_array)
    except json.JSONDecodeError as error:
        must_open = is_array or bool(ONLY_OPENS.fullmatch(text))
        goes_on = not values and (error.pos == len(text) or text.endswith(","))
        return _Fault(BAD_JSON, must_open or goes_on, must_open)
    except (ValueError, RecursionError):  # a number of thousands of digits; brackets in brackets in brackets
        return _Fault(BAD_JSON, is_array, is_array)
    return [_checked(value) for value in values]


def _from_here(text: "_Text", must_open: bool) -> Numbered | None:
    """The rows from a place on to the end of the file; None if there is no row there, but a damaged line."""
    rows = _documents(text)
    if must_open:
        return rows
    try:
        first = next(rows, None)
    except DataError:
        return None
    return chain([first], rows) if first and isinstance(first[1], dict) else None


def _documents(text: "_Text") -> Numbered:
    """Objects one after the other, and the items of arrays."""
    number = text.line
    while letter := text.skip(BETWEEN):
        if letter != "[":
            yield number, _checked(text.value())
            number += 1
            continue
        opened, text.place = text.at(text.place), text.place + 1
        while (letter := text.skip(BETWEEN_ITEMS)) != "]":
            if not letter:
                raise text.fault(f"the array that opens at {opened} is not closed; was the file cut?", text.place)
            yield number, _checked(text.value())
            number += 1
        text.place += 1


def _checked(item: Any) -> Row | str:
    return item if isinstance(item, dict) else NO_OBJECT


def _end(pattern: re.Pattern[str], text: str, place: int) -> int:
    """The end of a match that may be empty."""
    found = pattern.match(text, place)
    return found.end() if found else place


class _Text:
    """A file from a line on, a piece at a time: `text` holds what was read and is needed, `place` is where we are."""

    def __init__(self, path: Path, file: BinaryIO, start: int, line: int) -> None:
        file.seek(start)
        self._path, self._file, self._ended = path, file, False
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")  # a bad byte is a fault of its row
        self.text, self.place, self.line = "", 0, line
        self._column, self._bytes = 1, start

    def skip(self, between: re.Pattern[str]) -> str:
        """Pass what is between two values; the next letter, or "" at the end of the file."""
        while (end := _end(between, self.text, self.place)) == len(self.text) and not self._ended:
            self.place = end
            self._read_on()
        self.place = end
        return self.text[end : end + 1]

    def value(self) -> Any:
        """The value that starts at the place. Raises DataError if there is none."""
        while True:
            try:
                value, end = DECODER.raw_decode(self.text, self.place)
            except json.JSONDecodeError as error:
                is_cut = error.pos >= len(self.text) - CUT_TAIL or error.msg.startswith("Unterminated string")
                if not is_cut or self._ended:
                    raise self.fault(error.msg, error.pos) from None
            except (ValueError, RecursionError) as error:
                reason = "brackets too deep" if isinstance(error, RecursionError) else str(error)
                raise self.fault(reason, self.place) from None
            else:
                if self._ended or end < len(self.text):  # else a number may go on
                    self.place = end
                    return value
            self._read_on()

    def at(self, place: int) -> str:
        """Line and column of a place in the text, in words."""
        lines = self.text.count("\n", 0, place)
        column = place - self.text.rfind("\n", 0, place) if lines else self._column + place
        return f"line {self.line + lines}, column {column}"

    def fault(self, reason: str, place: int) -> DataError:
        """What is wrong at a place, and how much of the file is unread because of it: from the value's start on."""
        first, size = self.at(self.place).partition(", column")[0], self._path.stat().st_size
        unread = size - self._bytes - len(_bytes(self.text[: self.place]))
        return DataError(
            f"{self._path} is not valid JSON at {self.at(place)}: {reason}. {unread:,} of {size:,} bytes, from {first} "
            f"on, cannot be read, as nobody can know where the next row starts",
            fix="correct it there; or write one row a line (JSONL), so that a damaged line is lost alone",
            where=f"{self._path.name}, {self.at(place)}",
        )

    def _read_on(self) -> None:
        """Drop what is behind the place, and read at least as much as is left."""
        behind, self.text, self.place = self.text[: self.place], self.text[self.place :], 0
        lines = behind.count("\n")
        self.line += lines
        self._column = len(behind) - behind.rfind("\n") if lines else self._column + len(behind)
        self._bytes += len(_bytes(behind))
        piece = self._file.read(max(PIECE_BYTES, len(self.text)))
        self._ended = not piece
        self.text += self._decoder.decode(piece, final=self._ended)


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogateescape")
