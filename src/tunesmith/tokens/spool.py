"""Token rows on disk in the order read, until it is known what becomes of each; then the files of the data folder.

What is left of a conversation after the cut to `max_length` decides whose duplicate it is, so that every row is made
into tokens before the split is known. Memory holds one batch of rows.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow
import pyarrow.ipc
import pyarrow.parquet

from tunesmith.data.conversation import Conversation, Turn
from tunesmith.data.split import HELD_OUT, TRAIN
from tunesmith.tokens.columns import flags, lists, numbers, structs, texts
from tunesmith.tokens.mask import CUT, Encoded
from tunesmith.tokens.rows import Array, RowWriter, map_rows
from tunesmith.tokens.texts import ROWS, conversation_of, wheres_at

BATCH_ROWS = 256  # rows of a row group
SPOOL, QUICK = "rows.arrow", pyarrow.ipc.IpcWriteOptions(compression="lz4")  # Parquet takes five times as long to read
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
        self._table = pyarrow.ipc.new_file(str(folder / SPOOL), SPOOLED, options=QUICK)

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._table.close()
        finally:
            self._tokens.__exit__(*error)

    def add(self, batch: Packed, source: int) -> None:
        """Append a batch of one source."""
        self._tokens.add_all(batch.tokens_T, batch.supervised_T, batch.lengths_N, batch.answer_bytes_N)
        sources = numbers([source] * len(batch.table), SPOOLED.field("source").type)
        self._table.write_table(batch.table.append_column(SPOOLED.field("source"), sources))


def packed(rows: Sequence[tuple[Conversation, Encoded]]) -> Packed:
    """A batch as a spool takes it; of a conversation that was cut only what is left is kept."""
    lengths_N = np.array([len(item.ids) for _, item in rows], np.int64)
    tokens_T = np.concatenate([np.zeros(0, np.int32), *(np.array(item.ids, np.int32) for _, item in rows)])
    supervised_T = np.zeros(len(tokens_T), np.bool_)
    for (_, item), end in zip(rows, np.cumsum(lengths_N).tolist(), strict=True):
        for first, stop in item.supervised_spans:
            supervised_T[end - len(item.ids) :][first:stop] = True
    columns = {
        "where": texts([row.where for row, _ in rows]),
        "messages": _messages([item.turns for _, item in rows]),
        "tools": texts([row.tools or None for row, _ in rows]),
        "tokens": numbers(lengths_N, NUMBER),
        "supervised": numbers([sum(stop - first for first, stop in item.supervised_spans) for _, item in rows], NUMBER),
        "cut": flags([CUT in item.changes for _, item in rows]),
    }
    answer_bytes_N = np.array([item.answer_bytes for _, item in rows], np.int64)
    table = pyarrow.table([columns[name] for name in MADE.names], schema=MADE)
    return Packed(tokens_T, supervised_T, lengths_N, answer_bytes_N, table)


def _messages(rows: Sequence[Sequence[Turn]]) -> pyarrow.Array:
    """The turns of each row as rows.parquet holds them; from_pylist would take ten times as long."""
    turns = [turn for row in rows for turn in row]
    columns = {
        "role": texts([turn.role for turn in turns]),
        "content": texts([turn.text for turn in turns]),
        "trained": flags([turn.trained if turn.role == "assistant" else None for turn in turns]),
        "reasoning": texts([turn.reasoning or None for turn in turns]),
        "calls": texts([turn.calls or None for turn in turns]),
    }
    kind = MESSAGES.value_type
    cells = structs(kind, [columns[kind.field(place).name] for place in range(kind.num_fields)])
    return lists(MESSAGES, [len(row) for row in rows], cells)


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
            for first, rows in _runs(spool, [fate == split for fate in fates]):
                writer.add_run(read, first, first + len(rows))
                found.count(split, rows)
                waiting.append(_with_fate(rows, split, clusters[first : first + len(rows)]))
                if sum(map(len, waiting)) >= BATCH_ROWS:  # held-out rows are few: no row group for each run
                    table.write_table(pyarrow.concat_tables(waiting))
                    waiting = []
            if waiting:
                table.write_table(pyarrow.concat_tables(waiting))
    return found


def neither(spool: Path, fates: Sequence[str]) -> Iterator[tuple[int, Conversation]]:
    """The rows of the spool that are neither trained on nor held out, each with its number."""
    for first, rows in _runs(spool, [fate not in (TRAIN, HELD_OUT) for fate in fates], ["where", "messages"]):
        yield from enumerate(map(conversation_of, rows.to_pylist()), first)


def _runs(
    spool: Path, wanted: Sequence[bool], columns: Sequence[str] | None = None
) -> Iterator[tuple[int, pyarrow.Table]]:
    """The rows that are wanted, as many at a time as stand side by side in a row group, and the number of the first."""
    for first, rows in _batches(spool, columns):
        place = 0
        for is_wanted, run in groupby(wanted[first : first + len(rows)]):
            length = len(list(run))
            if is_wanted:
                yield first + place, rows.slice(place, length)
            place += length


def spooled_wheres(spool: Path, rows: Iterable[int]) -> dict[int, str]:
    """Number of a row -> where it was read."""
    parts = ((len(batch), partial(batch.column, "where")) for _, batch in _batches(spool, ["where"]))
    return wheres_at(parts, rows)


def _batches(spool: Path, columns: Sequence[str] | None) -> Iterator[tuple[int, pyarrow.Table]]:
    """Number of the first row, and the rows, batch by batch."""
    first, fields = 0, [SPOOLED.get_field_index(name) for name in columns or SPOOLED.names]
    with pyarrow.OSFile(str(spool / SPOOL)) as file:
        reader = pyarrow.ipc.open_file(file, options=pyarrow.ipc.IpcReadOptions(included_fields=fields))
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            yield first, pyarrow.Table.from_batches([batch])
            first += len(batch)


def _with_fate(rows: pyarrow.Table, split: str, clusters: Sequence[int]) -> pyarrow.Table:
    """Rows of the spool as rows.parquet holds them."""
    added = {"split": texts([split] * len(rows)), "cluster": numbers(clusters, NUMBER)}
    return pyarrow.table([added[name] if name in added else rows[name] for name in SCHEMA.names], schema=SCHEMA)
