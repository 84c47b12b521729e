"""Arrow tables in, rows out: damage is an error that says from which row on, a cell that is no text a bad row."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow

from tunesmith.data.formats import Row
from tunesmith.data.json_rows import BAD_TEXT, Numbered
from tunesmith.errors import DataError

BATCH_ROWS = 1000
BAD_CELL = "a cell that cannot be read"
Table = Any
"""A pyarrow.Table or a RecordBatch, which can do the same."""


def table_rows(name: str, tables: Iterable[Table], fix: str) -> Numbered:
    """Every row of the tables in turn. Raises DataError, with `fix`, where the next table is damaged."""
    number, left = 0, iter(tables)
    while True:
        with damage_named(f"{name} is damaged: from row {number + 1} on it cannot be read", fix):
            table = next(left, None)
            if table is None:
                return
            rows = _values(_without_times(table))
        for row in rows:
            number += 1
            yield number, row


@contextmanager
def damage_named(what: str, fix: str) -> Iterator[None]:
    """Turn what pyarrow raises for damaged bytes into a DataError; that a disk or network fails is no damage."""
    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DataError(f"{what} ({next(iter(str(error).splitlines()), type(error).__name__)})", fix=fix) from error


def _without_times(table: Table) -> Table:
    """The table without columns of dates and times: these say nothing, and Python has none beyond the year 9999."""
    return table.select(
        [place for place, field in enumerate(table.schema) if not pyarrow.types.is_temporal(field.type)]
    )


def _values(table: Table) -> list[Row | str]:
    """The rows; where one cannot be read, what is wrong with it."""
    try:
        rows: list[Row | str] = table.to_pylist()
    except (ValueError, OverflowError) as error:
        if table.num_rows == 1:
            return [BAD_TEXT if isinstance(error, UnicodeDecodeError) else BAD_CELL]
    else:
        return rows
    return [row for place in range(table.num_rows) for row in _values(table.slice(place, 1))]
