"""Files, folders and Hub data sets in, conversations out; every row is used or named with the reason."""

import os
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from tunesmith.console import say
from tunesmith.data.columns import Row, column_names, format_of
from tunesmith.data.conversation import Conversation, Dropped
from tunesmith.data.csv_rows import csv_rows
from tunesmith.data.hub import hub_tables
from tunesmith.data.json_rows import NO_OBJECT, json_rows
from tunesmith.data.judged import judged
from tunesmith.data.noted import Noted
from tunesmith.data.opened import Damaged
from tunesmith.data.speakers import Roles
from tunesmith.data.tables import arrow_rows, parquet_rows, table_rows
from tunesmith.data.unread import Numbered, Unread, words_of
from tunesmith.data.whatsapp import whatsapp_rows
from tunesmith.data_files import CHAT, PACKED, folder_files, kind_of, said
from tunesmith.decides import refuse_missing, source_files
from tunesmith.errors import DataError
from tunesmith.recipe import Source

FETCH = "delete it from the cache of `datasets`, so that it is fetched again"
OTHER_PACKED = (".xz", ".bz2", ".lz4", ".zip", ".7z", ".rar", ".tar", ".tgz")


def conversations(
    source: Source, roles: Roles | None = None, noted: Noted | None = None
) -> Iterator[Conversation | Dropped]:
    """Every row of a source, in order. Raises DataError if the source is missing, empty or of no known format.

    `roles`: the recipe's data.roles; `noted` gets what is seen on the way and is no reason to drop a row.
    """
    return judged(rows_of(source), source, roles or {}, noted or Noted())


def rows_of(source: Source) -> Iterator[tuple[str, Row | Unread]]:
    """Where each row stands, and what it holds or why it cannot be read; as many as the source's limit.

    Raises DataError if the source is missing or empty, and where reading cannot go on.
    """
    return islice(_rows(source), source.limit)


def _rows(source: Source) -> Iterator[tuple[str, Row | Unread]]:
    files = source_files(source)
    if not files:
        refuse_missing(source.path)
        for number, row in table_rows(f"the data set {source.path}", hub_tables(source), FETCH):
            yield f"{source.path} row {number}", row
    is_folder = os.path.isdir(source.path)
    if is_folder and (left := folder_files(Path(source.path), source.split, source.config).left):
        say(f"{source.path}: not read are files {said(left)}")
    for path in files:
        name = os.path.relpath(path, source.path) if is_folder else path.name
        for number, row in _file_rows(path, source):
            yield f"{name}:{number}", row


def _file_rows(path: Path, source: Source) -> Numbered:
    """The rows of a file. Raises DataError if there are none, or where it is damaged."""
    suffix, packed = kind_of(path)
    if not suffix:
        raise _of_no_kind(path)
    rows, number = READERS[suffix](path), 0
    try:
        for number, row in _unwrapped(path, rows, source) if READERS[suffix] is json_rows else rows:
            yield number, row
    except Damaged as error:
        after = f"after line {number:,}" if number else "in it"
        fix = f"fetch or make it again; if it is no {packed} file, take {path.suffix} off its name"
        where = f"{path.name}:{number}"
        raise DataError(
            f"{path} is damaged or cut: nothing {after} can be read ({error})", fix=fix, where=where
        ) from error
    if not number:
        raise DataError(f"{path} holds no rows", fix="name another file", where=str(path))


def _unwrapped(path: Path, rows: Numbered, source: Source) -> Numbered:
    """The rows; where the file's first object holds a list of them, those in the list, numbered from 1, and so on in
    what follows it.
    """
    first = next(rows, None)
    if first is None:
        return
    rows, wrapper = chain([first], rows), first[1]
    key = "" if isinstance(wrapper, Unread) else _list_of_rows(wrapper, source)
    if isinstance(wrapper, Unread) or not key:
        yield from rows
        return
    beside = ", ".join(str(other) for other in wrapper if other != key)
    say(f'{path.name}: the rows are those in its list "{key}"' + (f"; not used is {beside}" if beside else ""))
    inner = chain.from_iterable(_inner(row, key, source) for _, row in rows)
    for number, item in enumerate(inner, 1):
        yield number, item if isinstance(item, dict | Unread) else Unread(NO_OBJECT, words_of(item))


def _inner(row: Row | Unread, key: str, source: Source) -> list[Any]:
    """What is in the list of an object that is no row itself; else the row."""
    if isinstance(row, Unread) or format_of(row, source, column_names(source)):
        return [row]
    items = row.get(key)
    return items if isinstance(items, list) else [row]


def _list_of_rows(wrapper: Row, source: Source) -> str:
    """The key whose list holds rows, where the object itself is none and one list does; "" otherwise."""
    names = column_names(source)
    if format_of(wrapper, source, names):
        return ""
    lists = [key for key, value in wrapper.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    found = [key for key in lists if format_of(wrapper[key][0], source, names)]
    return found[0] if len(found) == 1 else ""


def _of_no_kind(path: Path) -> DataError:
    if path.suffix.lower() in OTHER_PACKED:
        return DataError(f"{path} is compressed", fix="unpack it, and name the file that comes out of it")
    if path.suffix.lower() in PACKED:
        what = f"the name of {path} does not say what is compressed in it"
        return DataError(what, fix=f"rename it by what it holds, such as {path.stem}.jsonl{path.suffix}")
    fix = f"rename it if it is one of {', '.join(READERS)}, by what it holds; else write the conversations as one"
    return DataError(f"{path} is of no known kind", fix=fix)


READERS: dict[str, Callable[[Path], Numbered]] = {
    **dict.fromkeys((".json", ".jsonl", ".ndjson"), json_rows),
    **dict.fromkeys((".csv", ".tsv"), csv_rows),
    ".parquet": parquet_rows,
    **dict.fromkeys((".arrow", ".feather"), arrow_rows),
    CHAT: whatsapp_rows,
}
"""Suffix -> the reader of its kind; those of data_files.KINDS."""
