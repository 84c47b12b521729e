"""Arrow tables in, rows out: damage is an error that says from which row on, a cell that is no text a bad row."""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet

from tunesmith.data.columns import Row
from tunesmith.data.csv_rows import refuse_twice
from tunesmith.data.opened import READ, opened_whole
from tunesmith.data.unread import BAD_TEXT, Numbered, Unread
from tunesmith.errors import DataError, ResourceError

BATCH_ROWS = 1000
BATCH_BYTES = 16 << 20  # as Python's objects they take some times that; rows of 16 KiB come a thousand at once
PAGE_BYTES = 1 << 20  # read of a column at once; without it Parquet holds whole columns of a group of rows
ABSURD = re.compile(r"of size \d{14}")  # 10 TB of memory are asked for by a damaged length
ARROW_FILE = b"ARROW1"
AGAIN = "fetch or write it again"
BAD_CELL = "a cell that cannot be read"
Table = Any
"""A pyarrow.Table or a RecordBatch, which can do the same."""


def parquet_rows(path: Path) -> Numbered:
    """Every row of a Parquet file. Raises DataError where it is damaged."""
    with opened_whole(path) as whole:
        with damage_named(str(path), "is not a whole Parquet file", AGAIN):
            file = pyarrow.parquet.ParquetFile(whole, buffer_size=PAGE_BYTES)
            columns = file.schema_arrow.names
        with file:
            refuse_twice(path, columns)
            groups = map(file.metadata.row_group, range(file.num_row_groups))
            row_bytes = max((group.total_byte_size // group.num_rows for group in groups if group.num_rows), default=0)
            batches = file.iter_batches(_rows_of(row_bytes))
            of_a_row = os.path.getsize(path) / max(file.metadata.num_rows, 1)
            yield from table_rows(str(path), _told(batches, lambda batch: of_a_row * batch.num_rows), AGAIN)


def arrow_rows(path: Path) -> Numbered:
    """Every row of an Arrow file (or Feather) or stream (of `datasets`). Raises DataError where it is damaged."""
    with opened_whole(path) as file:
        with damage_named(str(path), "is not a whole Arrow file", AGAIN):
            magic, _ = file.read(len(ARROW_FILE)), file.seek(0)
            is_file = magic == ARROW_FILE
            reader = pyarrow.ipc.open_file(file) if is_file else pyarrow.ipc.open_stream(file)
            columns = reader.schema.names
        refuse_twice(path, columns)
        batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
        size = os.path.getsize(path)  # about that of the batches; of a compressed one no more than they are is told
        yield from table_rows(str(path), _told(batches, lambda batch: min(size, batch.nbytes)), AGAIN)


def _told(batches: Iterable[Table], size_of: Callable[[Table], float]) -> Iterator[Table]:
    """The batches; each is told of by its size in the file, in bytes."""
    for batch in batches:
        yield batch
        READ.get()(int(size_of(batch)))


def _parts(batches: Iterable[Table]) -> Iterator[Table]:
    """The batches in parts of few rows and bytes: some writers make one batch of all."""
    for batch in batches:
        batch.validate()
        rows = _rows_of(batch.nbytes // max(batch.num_rows, 1))
        for start in range(0, batch.num_rows, rows):
            yield batch.slice(start, rows)


def _rows_of(row_bytes: int) -> int:
    """How many rows of this mean size are read at once."""
    return min(BATCH_ROWS, max(1, BATCH_BYTES // max(row_bytes, 1)))


def table_rows(name: str, tables: Iterable[Table], fix: str) -> Numbered:
    """Every row of the tables in turn. Raises DataError, with `fix`, where the next table is damaged."""
    number, left = 0, _parts(tables)
    while True:
        with damage_named(name, f"is damaged: from row {number + 1} on it cannot be read", fix):
            table = next(left, None)
            if table is None:
                return
            rows = _values(_times_as_numbers(table))
        for row in rows:
            number += 1
            yield number, row


@contextmanager
def damage_named(name: str, what: str, fix: str) -> Iterator[None]:
    """Turn what pyarrow raises for damaged bytes into a DataError; that a disk or network fails is no damage.

    Raises ResourceError where memory or threads are missing.
    """
    try:
        yield
    except (pyarrow.ArrowException, MemoryError, OSError, ValueError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        if (isinstance(error, MemoryError) and not ABSURD.search(reason)) or "thread" in reason:
            raise ResourceError(f"{name} cannot be read: {reason}", fix="free some memory") from error
        if isinstance(error, NotImplementedError):
            newer = "write it again with another compression or encoding, or update pyarrow"
            raise DataError(f"{name} cannot be read by this pyarrow: {reason}", fix=newer) from error
        raise DataError(f"{name} {what} ({reason})", fix=fix) from error


def _times_as_numbers(table: Table) -> Table:
    """Dates and times as the numbers that they are kept as: none is a text, and Python has none past the year 9999."""
    columns = [_as_number(table.column(place), field.type) for place, field in enumerate(table.schema)]
    return pyarrow.Table.from_arrays(columns, names=table.schema.names)


def _as_number(column: Any, kind: pyarrow.DataType) -> Any:
    if not pyarrow.types.is_temporal(kind):
        return column
    if kind.bit_width > 64:  # an interval of months, days and nanoseconds
        return pyarrow.nulls(len(column))
    return column.cast(pyarrow.int32() if kind.bit_width == 32 else pyarrow.int64())


def _values(table: Table) -> list[Row | Unread]:
    """The rows; where one cannot be read, what is wrong with it."""
    try:
        table.validate(full=True)  # damaged places of texts would be read beyond the memory that is ours
        rows: list[Row | Unread] = table.to_pylist()
    except (ValueError, OverflowError) as error:
        if table.num_rows == 1:
            return [Unread(BAD_TEXT if "UTF8" in str(error) or isinstance(error, UnicodeDecodeError) else BAD_CELL)]
    else:
        return rows
    return [row for place in range(table.num_rows) for row in _values(table.slice(place, 1))]
