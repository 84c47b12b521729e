"""dropped.jsonl read again: some rows of each reason, and the largest groups of rows that say the same."""

import heapq
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet

from tunesmith.data.split import DUPLICATE
from tunesmith.files import DROPPED
from tunesmith.json_file import OTHER_JSON, json_line, json_object
from tunesmith.tokens.tally import beginning, first_words
from tunesmith.tokens.texts import ROWS, conversation_of, wheres_at

SHOWN_ROWS = 12  # of a reason: what is wrong with them is seen by then, and the file has all
SHOWN_GROUPS = 10
SHOWN_TWINS = 3  # of a group


class Row(NamedTuple):
    """A row in a few words."""

    where: str
    words: str
    of: str = ""
    """Where the row was read that it is the same as."""


@dataclass
class Group:
    """A row that is kept, and those that say the same."""

    kept: Row
    size: int
    """How many are dropped for it."""
    twins: list[Row] = field(default_factory=list)
    """The first of these."""


@dataclass(frozen=True)
class Listed:
    """What a report shows of the rows that are dropped."""

    rows: dict[str, list[Row]]
    """Reason -> the first ones."""
    groups: list[Group]
    """The largest first."""


def read_listed(data: Path) -> Listed:
    """Of a data folder; empty for one of an earlier version, which has no list. Memory holds one place for each row
    that others are the same as.
    """
    rows, sizes = dict[str, list[Row]](), Counter[str]()
    for reason, row in _lines(data / DROPPED):
        found = rows.setdefault(reason, [])
        if len(found) < SHOWN_ROWS:
            found.append(row)
        if row.of and is_duplicate(reason):
            sizes[row.of] += 1
    largest = heapq.nsmallest(SHOWN_GROUPS, sizes.items(), key=lambda item: (-item[1], item[0]))
    return Listed(rows, _groups(data, dict(largest)))


def is_duplicate(reason: str) -> bool:
    """Whether rows of this reason say the same as a row that is kept on their side of the split."""
    return DUPLICATE in reason and not is_contamination(reason)


def is_contamination(reason: str) -> bool:
    """Whether rows of this reason would have given away what the model is measured with."""
    return "held-out" in reason or "evaluation prompt" in reason


def _groups(data: Path, sizes: dict[str, int]) -> list[Group]:
    if not sizes:
        return []
    words = beginnings(data, sizes.keys())
    groups = {where: Group(Row(where, words.get(where, "")), size) for where, size in sizes.items()}
    told = [json_line(where).strip().encode() for where in groups]
    for reason, row in _lines(data / DROPPED, told):
        if row.of in groups and is_duplicate(reason) and len(groups[row.of].twins) < SHOWN_TWINS:
            groups[row.of].twins.append(row)
    return list(groups.values())


def _lines(file: Path, telling: Collection[bytes] = (b"",)) -> Iterator[tuple[str, Row]]:
    """Reason and row of each line with one of the `telling` texts, so that few of a million are parsed twice; what a
    user has spoilt is passed over, as the counts are in record.json.
    """
    if not file.is_file():
        return
    with file.open("rb") as lines:
        for line in lines:
            if not any(text in line for text in telling):
                continue
            try:
                found = json_object(line)
                yield str(found["reason"]), Row(str(found["where"]), str(found["words"]), str(found.get("of", "")))
            except OTHER_JSON:
                continue


def beginnings(data: Path, wheres: Collection[str]) -> dict[str, str]:
    """Where kept rows were read -> how they begin, of those that are found. Memory holds a row group."""
    found: dict[str, str] = {}
    for table, group in _row_groups(data):
        if len(found) == len(wheres):
            break
        if not set(wheres).isdisjoint(table.read_row_group(group, ["where"])["where"].to_pylist()):
            for row in table.read_row_group(group, ["where", "messages"]).to_pylist():
                if row["where"] in wheres:
                    found.setdefault(row["where"], beginning(first_words(conversation_of(row).turns)))
    return found


def wheres_of(folder: Path, rows: Iterable[int]) -> dict[int, str]:
    """Number of a token row -> where it was read, of those that there are. Reads the row groups that hold them."""

    def read(table: Any, group: int) -> Any:
        return table.read_row_group(group, ["where"])["where"]

    groups = _row_groups(folder)
    parts = ((table.metadata.row_group(group).num_rows, partial(read, table, group)) for table, group in groups)
    return wheres_at(parts, rows)


def _row_groups(data: Path) -> Iterator[tuple[Any, int]]:
    if (data / ROWS).is_file():
        with pyarrow.parquet.ParquetFile(data / ROWS) as table:
            yield from ((table, group) for group in range(table.num_row_groups))
