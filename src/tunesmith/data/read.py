"""Files and Hub data sets in, conversations out; every row is used or named with the reason."""

import csv
import json
import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from tunesmith.data.conversation import Conversation, Dropped
from tunesmith.data.formats import Row, column_names, format_of, to_turns
from tunesmith.data.hub import hub_rows
from tunesmith.decides import source_files
from tunesmith.errors import DataError
from tunesmith.recipe import Source

BAD_JSON, BAD_TEXT, BAD_CSV = "not valid JSON", "not valid UTF-8", "not as many cells as the header"
BETWEEN = re.compile(r"[\s,]*")  # two items of a JSON array
BOM = b"\xef\xbb\xbf"  # some editors start UTF-8 files with it
csv.field_size_limit(2**31 - 1)  # conversations are longer than csv's 128 KiB

Numbered = Iterator[tuple[int, Row | str]]
"""Line, item or row number, counted from 1, and the row or what is wrong with it."""


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
        _refuse_missing(source.path)
        for number, row in enumerate(hub_rows(source), 1):
            yield f"{source.path} row {number}", row
    for path in files:
        if path.suffix not in READERS:
            raise DataError(f"{path} is of no known kind", fix=f"write the conversations as {', '.join(READERS)}")
        number = 0
        for number, row in READERS[path.suffix](path):
            yield f"{path.name}:{number}", row
        if not number:
            raise DataError(f"{path} holds no rows", fix="name another file in data.sources", where=str(path))


def _refuse_missing(path: str) -> None:
    """Raise DataError for what is meant as a file; the id of a data set on the Hub passes."""
    if Path(path).is_dir():
        raise DataError(f"{path} is a folder", fix=f"name its files, such as {path.rstrip('/')}/*.jsonl")
    if Path(path).suffix in READERS or path.startswith((".", "/", "~")) or path.count("/") > 1 or "*" in path:
        raise DataError(
            f"there is no file {path}", fix="correct data.sources[].path; it is taken from the recipe's folder"
        )


def _json(path: Path) -> Numbered:
    """A JSON array, item by item; or one object a line."""
    content = path.read_bytes().removeprefix(BOM)
    if not content.lstrip().startswith(b"["):
        yield from _json_lines(path)
        return
    text = content.decode(errors="surrogateescape")
    decoder = json.JSONDecoder()
    place, number = text.index("[") + 1, 0
    while (place := BETWEEN.match(text, place).end()) < len(text) and text[place] != "]":  # type: ignore[union-attr]
        number += 1
        try:
            item, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            yield number, BAD_JSON  # where the next item starts cannot be known
            return
        yield number, _checked(item)


def _json_lines(path: Path) -> Numbered:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield number, _checked(json.loads(line.removeprefix(BOM).decode()))
            except UnicodeDecodeError:
                yield number, BAD_TEXT
            except (ValueError, RecursionError):
                yield number, BAD_JSON


def _checked(item: Any) -> Row | str:
    return item if isinstance(item, dict) else "not a JSON object"


def _csv(path: Path) -> Numbered:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file)
        for row in reader:
            whole = None not in row and None not in row.values()
            yield reader.line_num, row if whole else BAD_CSV


def _parquet(path: Path) -> Numbered:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1000):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is not a whole Parquet file: {error}", fix="fetch or write it again") from error


READERS: dict[str, Callable[[Path], Numbered]] = {
    ".json": _json,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
    ".csv": _csv,
}
