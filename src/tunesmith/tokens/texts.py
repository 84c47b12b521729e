"""The conversations that a data folder's token rows were made of: rows.parquet, which may not be there."""

from collections.abc import Iterator
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
