"""CSV and TSV files: the rows below the header, and the line of a quote that is not closed."""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TextIO

from tunesmith.console import say
from tunesmith.data.json_rows import ROW_BYTES, TOO_LONG
from tunesmith.data.not_text import refuse_no_text
from tunesmith.data.opened import opened
from tunesmith.data.unread import Numbered, Unread, words_of
from tunesmith.data_files import kind_of
from tunesmith.errors import DataError

BAD_CSV = "not as many cells as the header"
DELIMITERS = {".csv": ",", ".tsv": "\t"}
OTHERS = {";": "semicolons", "\t": "tabs", ",": "commas"}
LINE_END = re.compile(r"\r\n|\r|\n")
PIECE_LETTERS = 1 << 16
csv.field_size_limit(2**31 - 1)  # conversations are longer than csv's 128 KiB


def csv_rows(path: Path) -> Numbered:
    """The rows below the header. Raises DataError where a quote is not closed: it would make one cell of many rows."""
    refuse_no_text(path)
    lines: list[str] = []  # read since the last whole row
    with opened(path) as data, io.TextIOWrapper(data, "utf-8-sig", "surrogateescape", newline="") as file:
        noted = _noted(path, file, lines)
        first = next((line for line in noted if line.strip()), "")
        above, delimiter = len(lines) - 1, _delimiter(path, first)
        reader = csv.reader(chain([first], noted), strict=True, delimiter=delimiter)
        ended = 0
        try:
            columns = next(reader, [])
            refuse_twice(path, columns)
            ended = above + reader.line_num
            lines.clear()
            for cells in reader:
                ended = above + reader.line_num
                bad = Unread(BAD_CSV, words_of("".join(lines).strip())) if len(cells) != len(columns) else None
                lines.clear()
                if cells:
                    yield ended, bad or dict(zip(columns, cells, strict=True))
        except csv.Error as error:
            rest = sum(_size(piece) for piece in iter(lambda: file.read(PIECE_LETTERS), ""))
            raise _bad_quote(path, ended + 1, "".join(lines), rest, delimiter, error) from None


def _delimiter(path: Path, header: str) -> str:
    """What stands between cells: as the name says, else what the header has in its place. Where a comma is the decimal
    point, Excel writes semicolons.
    """
    named = DELIMITERS[kind_of(path).suffix]
    found = next((letter for letter in (named, *OTHERS) if letter in header), named)
    if found != named:
        say(f"{path.name}: its cells are separated by {OTHERS[found]}")
    return found


def refuse_twice(path: Path, columns: Sequence[str]) -> None:
    """Raise DataError if two columns have one name: only one would be read. Those of no name are read by nobody."""
    for name in columns:
        if name.strip() and columns.count(name) > 1:
            raise DataError(f"{path} has the column {name} twice", fix="rename one or remove it", where=path.name)


def _noted(path: Path, file: TextIO, noted: list[str]) -> Iterator[str]:
    """The lines, noted until a row is whole. Raises DataError where that takes more than a row may."""
    held = number = 0
    while line := file.readline(ROW_BYTES):
        held = len(line) + (held if noted else 0)
        if held >= ROW_BYTES:
            raise DataError(
                f"{path} holds {TOO_LONG} that starts in line {number + 1 - len(noted)}, and nothing from there on "
                "can be read",
                fix="close the quote that opens in it, if one does; else end its lines",
                where=f"{path.name}, line {number + 1 - len(noted)}",
            )
        noted.append(line)
        number += 1
        yield line


def _size(text: str) -> int:
    return len(text.encode(errors="surrogateescape"))


def _bad_quote(path: Path, first_line: int, text: str, rest: int, delimiter: str, error: csv.Error) -> DataError:
    """The error for a row that starts in `first_line` and cannot be read; `text` is from there on, then `rest`."""
    # a cell of RFC 4180, and what ends it
    cell = re.compile(rf'(?:"[^"]*(?:""[^"]*)*"|[^"{delimiter}\r\n][^{delimiter}\r\n]*|)(?:{delimiter}|\r\n|\r|\n)')
    place = 0
    while found := cell.match(text, place):
        place = found.end()
    line = first_line + len(LINE_END.findall(text, 0, place))
    return DataError(
        f"{path}: the quote that opens a cell in line {line} is not closed where the cell ends ({error}), so that "
        f"nobody can know where this row ends, and {_size(text) + rest:,} bytes, from line {first_line} on, cannot be "
        "read",
        fix='close it; a quote inside a cell is written twice, as in "say ""hi"" to her"',
        where=f"{path.name}, line {line}",
    )
