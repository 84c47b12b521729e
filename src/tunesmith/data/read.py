"""Files and Hub data sets in, conversations out; every row is used or named with the reason."""

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import pyarrow.parquet

from tunesmith.data.conversation import Conversation, Dropped
from tunesmith.data.formats import Row, column_names, format_of, to_turns
from tunesmith.data.hub import hub_tables
from tunesmith.data.json_rows import Numbered, json_rows
from tunesmith.data.not_text import refuse_no_text
from tunesmith.data.tables import BATCH_ROWS, damage_named, table_rows
from tunesmith.decides import refuse_missing, source_files
from tunesmith.errors import DataError
from tunesmith.recipe import Source

AGAIN, FETCH = "fetch or write it again", "delete it from the cache of `datasets`, so that it is fetched again"
BAD_CSV = "not as many cells as the header"
PACKED = (".gz", ".zst", ".xz", ".bz2", ".lz4", ".zip", ".7z", ".rar", ".tar", ".tgz")
CELL = re.compile(r'(?:"[^"]*(?:""[^"]*)*"|[^",\r\n][^,\r\n]*|)(?:,|\r\n|\r|\n)')  # of RFC 4180, and what ends it
LINE_END = re.compile(r"\r\n|\r|\n")
csv.field_size_limit(2**31 - 1)  # conversations are longer than csv's 128 KiB


def conversations(source: Source) -> Iterator[Conversation | Dropped]:
    """Every row of a source, in order. Raises DataError if the source is missing, empty or of no known format."""
    names, form = column_names(source), ""
    for where, row in islice(_rows(source), source.limit):
        if isinstance(row, str):
            yield Dropped(where, row)
            continue
        form = form or format_of(row, source, where)
        turns = to_turns(row, form, names)
        yield Dropped(where, turns) if isinstance(turns, str) else Conversation(turns, where)


def _rows(source: Source) -> Iterator[tuple[str, Row | str]]:
    files = source_files(source)
    if not files:
        refuse_missing(source.path)
        for number, row in table_rows(f"the data set {source.path}", hub_tables(source), FETCH):
            yield f"{source.path} row {number}", row
    for path in files:
        suffix = path.suffix.lower()
        if suffix not in READERS:
            raise _of_no_kind(path)
        number = 0
        for number, row in READERS[suffix](path):
            yield f"{path.name}:{number}", row
        if not number:
            raise DataError(f"{path} holds no rows", fix="name another file", where=str(path))


def _of_no_kind(path: Path) -> DataError:
    if path.suffix.lower() in PACKED:
        return DataError(f"{path} is compressed", fix="unpack it, and name the file that comes out of it")
    fix = f"rename it if it is one of {', '.join(READERS)}, by what it holds; else write the conversations as one"
    return DataError(f"{path} is of no known kind", fix=fix)


def _csv(path: Path) -> Numbered:
    """The rows below the header. Raises DataError where a quote is not closed: it would make one cell of many rows."""
    refuse_no_text(path)
    lines: list[str] = []  # read since the last whole row
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader, ended = csv.DictReader(_noted(file, lines), strict=True), 0
        try:
            _refuse_twice(path, reader.fieldnames or [])
            for row in reader:
                ended = reader.line_num
                lines.clear()
                yield ended, row if None not in row and None not in row.values() else BAD_CSV
        except csv.Error as error:
            raise _bad_quote(path, ended + 1, "".join(lines), error) from None


def _refuse_twice(path: Path, columns: Sequence[str]) -> None:
    """Raise DataError if two columns have one name: only one would be read. Those of no name are read by nobody."""
    for name in columns:
        if name.strip() and columns.count(name) > 1:
            raise DataError(f"{path} has the column {name} twice", fix="rename one or remove it", where=path.name)


def _noted(lines: Iterable[str], noted: list[str]) -> Iterator[str]:
    for line in lines:
        noted.append(line)
        yield line


def _bad_quote(path: Path, first_line: int, text: str, error: csv.Error) -> DataError:
    """The error for a row that starts in `first_line` and cannot be read; `text` is from there on."""
    place = 0
    while cell := CELL.match(text, place):
        place = cell.end()
    line = first_line + len(LINE_END.findall(text, 0, place))
    return DataError(
        f"{path}: the quote that opens a cell in line {line} is not closed where the cell ends ({error}), so that "
        "nobody can know where this row ends, and nothing from there on can be read",
        fix='close it; a quote inside a cell is written twice, as in "say ""hi"" to her"',
        where=f"{path.name}, line {line}",
    )


def _parquet(path: Path) -> Numbered:
    with damage_named(str(path), "is not a whole Parquet file", AGAIN):
        file = pyarrow.parquet.ParquetFile(path)
        columns = file.schema_arrow.names
    with file:
        _refuse_twice(path, columns)
        yield from table_rows(str(path), file.iter_batches(BATCH_ROWS), AGAIN)


READERS: dict[str, Callable[[Path], Numbered]] = {
    ".json": json_rows,
    ".jsonl": json_rows,
    ".parquet": _parquet,
    ".csv": _csv,
}
