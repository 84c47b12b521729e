"""JSON files: rows one a line (JSONL), arrays, objects over many lines, and several of these in one file.

Every byte is in a row, between rows, in a line that is named as not used, or in the part that an error names as
unread. A file with one row a line loses a damaged line and goes on with the next. In anything else, and in a line that
holds several rows, nobody can know where the next row starts after a fault, so that the fault is an error and nothing
is dropped in silence. Of a file no more is held than a row and a piece.
"""

import codecs
import json
import re
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from tunesmith.data.columns import Row
from tunesmith.data.keys import DECODER, key_twice, objects_in
from tunesmith.data.not_text import refuse_no_text, refuse_no_text_here
from tunesmith.data.opened import Lines, opened
from tunesmith.data.unread import BAD_TEXT, Numbered, Unread, words_of
from tunesmith.errors import DataError

BAD_JSON, NO_OBJECT = "not valid JSON", "not a JSON object"
BETWEEN = re.compile("[\\s\ufeff]*")  # some editors start UTF-8 files with U+FEFF
BETWEEN_ITEMS = re.compile("[\\s,\ufeff]*")
ONLY_OPENS = re.compile(r"[\[{\s]+")
ARRAY_OPENS = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[")
PIECE_BYTES = 1 << 20
ARRAY_BYTES = 1 << 20  # an array in a longer line is not held
ROW_BYTES = 64 << 20  # a row of 50 MB can be read; as Python's objects it takes some ten times that
CUT_TAIL = 12  # characters of what the end of a piece can cut in two, the longest an escaped pair: \ud83d\ude00
BESIDE = re.compile(r'\}[\s,]*(?=\{\s*")')  # one object after the other; inside a text the quote would be \\"
OPENS = re.compile(r'\{\s*("(?:[^"\\]|\\.)*")\s*:')  # an object, and its first key
NEXT = re.compile(r'\{\s*"')
BEGINNING = 4096  # bytes of a line in which its first words are looked for
TOO_LONG = f"a row of more than {ROW_BYTES >> 20} MiB"
NESTED = "an array in an array, with rows in it"
TEXT_OF_ROWS = "a text with rows in it: they were written as JSON twice"


def json_rows(path: Path) -> Numbered:
    """Every row of a file; its number is that of its line, or of the item where rows are not lines.

    Raises DataError, with line and column and what is unread, for a fault where rows are not lines.
    """
    refuse_no_text(path)
    with opened(path) as file:
        lines, number, by_line, key = Lines(path, file), 0, False, ""
        while line := lines.readline(ARRAY_BYTES):
            number += 1
            is_long = _goes_on(line, ARRAY_BYTES) and not ARRAY_OPENS.match(line)
            if is_long:
                line += lines.readline(ROW_BYTES - len(line))
            if _goes_on(line, ROW_BYTES if is_long else ARRAY_BYTES):
                if not by_line or not _is_cut_row(line):
                    yield from _documents(_Text(path, lines, line, number))
                    return
                while _goes_on(lines.readline(PIECE_BYTES), PIECE_BYTES):
                    pass
                yield number, Unread(TOO_LONG, _words(line))
                continue
            found = _line_values(line)
            if isinstance(found, list):
                key = key or next((next(iter(row), "") for row in found if isinstance(row, dict)), "")
                by_line = by_line or any(isinstance(row, dict) for row in found)
                yield from ((number, row) for row in found)
                continue
            refuse_no_text_here(path, line, f" from line {number} on")
            must_open = found.holds_rows or (found.must_open and not by_line)
            rows = _from_here(_Text(path, lines, line, number), must_open) if found.opens else None
            if rows is not None:
                yield from rows
                return
            for _ in range(_rows_begun(line, key)):
                yield number, Unread(found.reason, _words(line))


def _rows_begun(line: bytes, key: str) -> int:
    """How many rows begin in a damaged line, at least one: a line end that is lost makes one line of two.

    `key`: the first key of the rows before; where none of it is in the line, that of the line's own first object.
    """
    text = line.decode(errors="replace").strip()
    found = list(OPENS.finditer(text))
    if not found:
        return 1
    keys = [opened[1] for opened in found]
    ends_another = "}" in text[: found[0].start()]
    return (keys.count(json.dumps(key, ensure_ascii=False)) or keys.count(keys[0])) + ends_another


def _goes_on(line: bytes, limit: int) -> bool:
    """Whether a line that was read up to a limit is longer."""
    return len(line) == limit and not line.endswith(b"\n")


def _is_cut_row(line: bytes) -> bool:
    """Whether the start of a line is one row that goes on, as far as can be seen, and not several, or damaged."""
    text = line.decode(errors="surrogateescape")
    try:
        DECODER.raw_decode(text, _end(BETWEEN, text, 0))
    except json.JSONDecodeError as error:
        return _is_cut(error, text)
    except (ValueError, RecursionError):
        pass
    return False


def _is_cut(error: json.JSONDecodeError, text: str) -> bool:
    """Whether it may be no error once more of the text is there."""
    return error.pos >= len(text) - CUT_TAIL or error.msg.startswith("Unterminated string")


def _words(line: bytes) -> str:
    """How a line begins."""
    return words_of(line[:BEGINNING].decode(errors="replace").strip())


class _Fault(NamedTuple):
    """What is wrong with a line."""

    reason: str
    opens: bool
    """It may be the start of something that goes on in the next lines."""
    must_open: bool
    """It is the start of something, whole or not, unless the lines before are rows."""
    holds_rows: bool
    """It has more than one row in it, wherever it stands; counted as one bad line they would be lost in silence."""


def _line_values(line: bytes) -> list[Row | Unread] | _Fault:
    """The rows in a line: none if it is blank, the items of an array; or why it cannot be read alone."""
    text, place, values = line.decode(errors="surrogateescape").strip(), 0, list[Any]()
    is_array, is_text = text.lstrip("\ufeff").startswith("["), text.isascii() or _is_text(text)
    must_open, goes_on, fault = is_array, False, None
    try:
        while (place := _end(BETWEEN, text, place)) < len(text):
            value, place = DECODER.raw_decode(text, place)
            values += value if isinstance(value, list) else [value]
    except json.JSONDecodeError as error:
        must_open, fault = is_array or bool(ONLY_OPENS.fullmatch(text)), error.pos
        goes_on = is_text and not values and (fault == len(text) or text.endswith(","))
    except (ValueError, RecursionError):  # a number of thousands of digits; brackets in brackets in brackets
        fault = place
    hides = any(_hides_rows(value) for value in values)
    if is_text and fault is None and not hides:
        return [_checked(value) for value in values]
    objects = sum(isinstance(value, dict) for value in values)
    holds_rows = hides or objects > 1
    if fault is not None and not holds_rows:
        rest_has_one = objects and NEXT.search(text, place)
        holds_rows = bool(rest_has_one) or (is_array and text.count("{") > 1) or _has_rows(text, fault)
    return _Fault(
        BAD_JSON if is_text else BAD_TEXT, must_open or goes_on or holds_rows, must_open or holds_rows, holds_rows
    )


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _has_rows(text: str, place: int) -> bool:
    """True if whole objects stand there without a comma between them, or up to the end: no part of one row does."""
    while found := BESIDE.search(text, place):
        place = found.end()
        try:
            while True:
                _, end = DECODER.raw_decode(text, place)
                place = _end(BETWEEN_ITEMS, text, end)
                if place == len(text) or (text[place] == "{" and "," not in text[end:place]):
                    return True
        except (ValueError, RecursionError):
            continue
    return False


def _from_here(text: "_Text", must_open: bool) -> Numbered | None:
    """The rows from a place on to the end of the file; None if there is no row there, but a damaged line."""
    rows = _documents(text)
    if must_open:
        return rows
    text.tried = []
    try:
        first = next(rows, None)
    except DataError:
        first = None
    if first and isinstance(first[1], dict):
        text.tried = None
        return chain([first], rows)
    text.give_back()
    return None


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


def _checked(item: Any) -> Row | Unread:
    if reason := key_twice(item) if isinstance(item, dict) else NO_OBJECT:
        return Unread(reason, words_of(item))
    row: Row = item
    return row


def _hides_rows(item: Any) -> str | None:
    """What holds rows in the place of one."""
    if isinstance(item, list) and any(True for _ in objects_in(item)):
        return NESTED
    if isinstance(item, str) and ((item.lstrip().startswith("[") and NEXT.search(item)) or _has_rows(item, 0)):
        return TEXT_OF_ROWS
    return None


def _end(pattern: re.Pattern[str], text: str, place: int) -> int:
    """The end of a match that may be empty."""
    found = pattern.match(text, place)
    return found.end() if found else place


class _Text:
    """A file from a line on, a piece at a time: `text` holds what was read and is needed, `place` is where we are."""

    def __init__(self, path: Path, lines: Lines, line: bytes, number: int) -> None:
        self._path, self._lines, self._ended = path, lines, False
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")  # a bad byte is a fault of its row
        self.text, self.place, self.line = self._decoder.decode(line), 0, number
        self._column, self._bytes = 1, lines.place - len(line)
        self.tried: list[bytes] | None = None
        """What was read on, while it may have to be read again."""

    def give_back(self) -> None:
        """Let what was tried be read again."""
        self._lines.give_back(b"".join(self.tried or ()))

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
                if not _is_cut(error, self.text) or self._ended:
                    raise self.fault(error.msg, error.pos) from None
                if len(self.text) - self.place >= ROW_BYTES:
                    raise self.fault(TOO_LONG, self.place, "no list of rows") from None
            except (ValueError, RecursionError) as error:
                reason = "brackets too deep" if isinstance(error, RecursionError) else str(error)
                raise self.fault(reason, self.place) from None
            else:
                if hidden := _hides_rows(value):
                    raise self.fault(hidden, self.place, "no list of rows")
                if self._ended or end < len(self.text):  # else a number may go on
                    self.place = end
                    return value
            self._read_on()

    def at(self, place: int) -> str:
        """Line and column of a place in the text, in words."""
        lines = self.text.count("\n", 0, place)
        column = place - self.text.rfind("\n", 0, place) if lines else self._column + place
        return f"line {self.line + lines}, column {column}"

    def fault(self, reason: str, place: int, is_what: str = "not valid JSON") -> DataError:
        """What is wrong at a place, and how much of the file is unread because of it: from the value's start on."""
        first, size = self.at(self.place).partition(", column")[0], self._lines.size()
        unread = size - self._bytes - len(_bytes(self.text[: self.place]))
        return DataError(
            f"{self._path} is {is_what} at {self.at(place)}: {reason}. {unread:,} of {size:,} bytes, from {first} "
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
        piece = self._lines.read(max(PIECE_BYTES, min(len(self.text), ROW_BYTES - len(self.text))))
        self._ended = not piece
        if self.tried is not None:
            self.tried.append(piece)
        self.text += self._decoder.decode(piece, final=self._ended)


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogateescape")
