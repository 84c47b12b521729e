"""The conversations that a data folder's token rows were made of: rows.parquet, which may not be there."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet

from tunesmith.data.conversation import Conversation, Turn

ROWS = "rows.parquet"


def texts_of(data: Path, split: str) -> Iterator[Conversation]:
    """The conversations of a split, in the order of the token rows; nothing without texts.

    Memory holds a row group. `read_table` with a filter would import pyarrow.dataset, and that pandas: 0.5 s.
    """
    if not (data / ROWS).is_file():
        return
    with pyarrow.parquet.ParquetFile(data / ROWS) as table:
        wanted = [name for name in ("where", "messages", "tools") if name in table.schema_arrow.names]  # 0.1: no tools
        for group in range(table.num_row_groups):
            splits = table.read_row_group(group, ["split"])["split"].to_pylist()
            if split not in splits:
                continue
            rows = table.read_row_group(group, wanted).to_pylist()
            yield from (conversation_of(row) for row, of in zip(rows, splits, strict=True) if of == split)


def conversation_of(row: dict[str, Any]) -> Conversation:
    """The conversation of a row of a table."""
    turns = tuple(
        Turn(one["role"], one["content"], one.get("trained") is not False, one.get("reasoning") or "",
             one.get("calls") or "")
        for one in row["messages"]
    )  # fmt: skip
    return Conversation(turns, row["where"], row.get("tools") or "")


def wheres_at(parts: Iterable[tuple[int, Callable[[], Any]]], rows: Iterable[int]) -> dict[int, str]:
    """Number of a row -> where it was read, of those that there are. `parts`: of each part of a table how many rows it
    has, and what reads their `where`, which is asked only where one of the rows is in it.
    """
    found, first, wanted = dict[int, str](), 0, sorted(set(rows))
    for length, read in parts:
        if inside := wanted[bisect_left(wanted, first) : bisect_left(wanted, first + length)]:
            places = read()
            found |= {row: places[row - first].as_py() for row in inside}
        first += length
    return found
