"""The conversations that a data folder's token rows were made of: rows.parquet, which may not be there."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet

ROWS = "rows.parquet"


def texts_of(data: Path, split: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Where each row of a split was read, and its messages, in the order of the token rows; nothing without texts.

    Memory holds a row group. `read_table` with a filter would import pyarrow.dataset, and that pandas: 0.5 s.
    """
    if not (data / ROWS).is_file():
        return
    with pyarrow.parquet.ParquetFile(data / ROWS) as table:
        for group in range(table.num_row_groups):
            splits = table.read_row_group(group, ["split"])["split"].to_pylist()
            if split not in splits:
                continue
            rows = table.read_row_group(group, ["where", "messages"]).to_pylist()
            yield from ((row["where"], row["messages"]) for row, of in zip(rows, splits, strict=True) if of == split)
