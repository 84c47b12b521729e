"""Token rows on disk in the order read, until it is known what becomes of each; then the files of the data folder.

What is left of a conversation after the cut to `max_length` decides whose duplicate it is, so that every row is made
into tokens before the split is known. Memory holds one batch of rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.parquet

from tunesmith.data.conversation import Conversation, Turn
from tunesmith.data.split import HELD_OUT, TRAIN
from tunesmith.tokens.mask import CUT, Encoded
from tunesmith.tokens.rows import Array, RowWriter, map_rows
from tunesmith.tokens.texts import ROWS, conversation_of

BATCH_ROWS = 256  # rows of a row group
TEXT, NUMBER = pyarrow.string(), pyarrow.int64()
MESSAGES = pyarrow.list_(
    pyarrow.struct({"role": TEXT, "content": TEXT, "trained": pyarrow.bool_(), "reasoning": TEXT, "calls": TEXT})
)
"""`trained` is null for all but answers, and so are the others where there are none; `calls` is JSON."""
WORDS, SOURCE = {"where": TEXT, "messages": MESSAGES, "tools": TEXT}, {"source": pyarrow.int32()}
"""`source` is its number among those of the recipe."""
MADE = pyarrow.schema(WORDS | {"tokens": NUMBER, "supervised": NUMBER, "cut": pyarrow.bool_()})
SPOOLED = pyarrow.schema([*MADE, *pyarrow.schema(SOURCE)])
SCHEMA = pyarrow.schema(WORDS | SOURCE | {"split": TEXT} | dict.fromkeys(("tokens", "supervised", "cluster"), NUMBER))


class Packed(NamedTuple):
    """A batch of N rows, T tokens together. Can be sent to another process."""

    tokens_T: Array
    supervised_T: Array
    lengths_N: Array
    answer_bytes_N: Array
    table: pyarrow.Table
    """Of MADE."""


class Spool:
    """Writes rows to a folder of its own. Use as a context manager."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._tokens = RowWriter(folder)
        self._table = pyarrow.parquet.ParquetWriter(folder / ROWS, SPOOLED)

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *error: object) -> None:
        self._table.close()
        self._tokens.__exit__(*error)

    def add(self, batch: Packed, source: int) -> None:
        """Append a batch of one source."""
        self._tokens.add_all(batch.tokens_T, batch.supervised_T, batch.lengths_N, batch.answer_bytes_N)
        numbers = pyarrow.array([source] * len(batch.table), SPOOLED.field("source").type)
        self._table.write_table(batch.table.append_column(SPOOLED.field("source"), numbers))


def packed(rows: Sequence[tuple[Conversation, Encoded]]) -> Packed:
    """A batch as a spool takes it; of a conversation that was cut only what is left is kept."""
    written = []
    for row, item in rows:
        messages = [_cells(turn) for turn in item.turns]
        cells = (row.where, messages, row.tools or None, len(item.ids), sum(item.supervised), CUT in item.changes)
        written.append(dict(zip(MADE.names, cells, strict=True)))
    return Packed(
        np.fromiter(chain.from_iterable(item.ids for _, item in rows), np.int32),
        np.fromiter(chain.from_iterable(item.supervised for _, item in rows), np.bool_),
        np.array([len(item.ids) for _, item in rows], np.int64),
        np.array([item.answer_bytes for _, item in rows], np.int64),
        pyarrow.Table.from_pylist(written, MADE),
    )


def _cells(turn: Turn) -> dict[str, Any]:
    """A turn as rows.parquet holds it."""
    trained = turn.trained if turn.role == "assistant" else None
    return {
        "role": turn.role, "content": turn.text, "trained": trained, "reasoning": turn.reasoning or None,
        "calls": turn.calls or None,
    }  # fmt: skip


@dataclass
class Written:
    """What is in the files of a data folder."""

    rows: dict[str, int] = field(default_factory=lambda: {TRAIN: 0, HELD_OUT: 0})
    tokens: int = 0
    supervised: int = 0
    longest: int = 0
    cut: int = 0

    def count(self, split: str, rows: pyarrow.Table) -> None:
        """Add rows of the spool that were written as `split`."""
        tokens = rows["tokens"].to_pylist()
        self.rows[split] += len(rows)
        self.tokens += sum(tokens)
        self.supervised += sum(rows["supervised"].to_pylist())
        self.longest = max([self.longest, *tokens])
        self.cut += sum(rows["cut"].to_pylist())


def write_split(spool: Path, folder: Path, fates: Sequence[str], clusters: Sequence[int]) -> Written:
    """The spool's rows into `folder`, without those whose fate is neither: training rows in the order read, then the
    held-out ones, so that the two are slices of the same files.
    """
    found, read = Written(), map_rows(spool)
    with RowWriter(folder) as writer, pyarrow.parquet.ParquetWriter(folder / ROWS, SCHEMA) as table:
        for split in (TRAIN, HELD_OUT):
            waiting: list[pyarrow.Table] = []
            for first, batch in _batches(spool):
                chosen = [row for row in range(first, first + len(batch)) if fates[row] == split]
                for row in chosen:
                    part = slice(read.offsets_N1[row], read.offsets_N1[row + 1])
                    writer.add(read.tokens_T[part], read.supervised_T[part], int(read.answer_bytes_N[row]))
                rows = batch.take(pyarrow.array([row - first for row in chosen], NUMBER))
                found.count(split, rows)
                waiting.append(_with_fate(rows, split, [clusters[row] for row in chosen]))
                if sum(map(len, waiting)) >= BATCH_ROWS:  # held-out rows are few: no row group for each batch
                    table.write_table(pyarrow.concat_tables(waiting))
                    waiting = []
            if any(map(len, waiting)):
                table.write_table(pyarrow.concat_tables(waiting))
    return found


def neither(spool: Path, fates: Sequence[str]) -> Iterator[tuple[int, Conversation]]:
    """The rows of the spool that are neither trained on nor held out, each with its number."""
    for first, batch in _batches(spool, ["where", "messages"]):
        numbers = [row for row in range(first, first + len(batch)) if fates[row] not in (TRAIN, HELD_OUT)]
        rows = batch.take(pyarrow.array([row - first for row in numbers], NUMBER)).to_pylist()
        yield from zip(numbers, map(conversation_of, rows), strict=True)


def _batches(spool: Path, columns: Sequence[str] | None = None) -> Iterator[tuple[int, pyarrow.Table]]:
    """Number of the first row, and the rows, batch by batch."""
    first = 0
    with pyarrow.parquet.ParquetFile(spool / ROWS) as file:
        for batch in file.iter_batches(BATCH_ROWS, columns=columns):
            yield first, pyarrow.Table.from_batches([batch])
            first += batch.num_rows


def _with_fate(rows: pyarrow.Table, split: str, clusters: list[int]) -> pyarrow.Table:
    """Rows of the spool as rows.parquet holds them."""
    added = {"split": pyarrow.array([split] * len(rows), TEXT), "cluster": pyarrow.array(clusters, NUMBER)}
    return pyarrow.table([added[name] if name in added else rows[name] for name in SCHEMA.names], schema=SCHEMA)
