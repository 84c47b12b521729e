"""What duplicates, twins across the split and leaks are found by: of every row, before and after the cut.

Shapes: N rows; T texts, which are the rows as read and what is left of those that were cut to max_length.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.clusters import Texts, TextWriter
from tunesmith.data.conversation import Conversation, Turn
from tunesmith.data.dedup import signature
from tunesmith.data.near import Sketches, sketches
from tunesmith.recipe import Dedup

DIGEST = np.dtype("S32")  # sha256; numpy takes bytes of 0 at the end off what it gives, and compares without them
Places = NDArray[np.int64]


class Signed(NamedTuple):
    """A batch of N rows as T texts: each row, and behind them what is left of those that were cut.

    Arrays alone, so that a worker process can hand it over.
    """

    left_N: Places
    """Which of the texts is left of each row."""
    said_T: NDArray[np.bytes_]
    beside_T: NDArray[np.bytes_]
    sketches: Sketches


class SignedRows(NamedTuple):
    """All rows: which texts they are, as read and as left, and all texts."""

    read_N: Places
    left_N: Places
    said_T: NDArray[np.bytes_]
    beside_T: NDArray[np.bytes_]
    texts: Texts


def sign(rows: Sequence[tuple[Conversation, Sequence[Turn]]], dedup: Dedup) -> Signed:
    """A batch of rows, each with the turns that are left of it. A function of these alone."""
    cut = [place for place, (row, left) in enumerate(rows) if len(left) < len(row.turns)]
    texts = [(row.turns, row.tools) for row, _ in rows]
    texts += [(tuple(left), row.tools) for row, left in (rows[place] for place in cut)]
    left_N = np.arange(len(rows))
    left_N[cut] = len(rows) + np.arange(len(cut))
    signatures = [signature(turns, dedup, tools) for turns, tools in texts]
    return Signed(
        left_N,
        np.array([bytes.fromhex(found.said) for found in signatures], DIGEST),
        np.array([bytes.fromhex(found.beside) for found in signatures], DIGEST),
        sketches([turns for turns, _ in texts]),
    )


class SignedWriter:
    """Takes signed rows batch by batch; their shingles go to a file. Use as a context manager."""

    def __init__(self, file: Path) -> None:
        self._texts, self._count_T = TextWriter(file), 0
        self._read, self._left = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        self._said, self._beside = [np.zeros(0, DIGEST)], [np.zeros(0, DIGEST)]

    def __enter__(self) -> "SignedWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self._texts.__exit__(*error)

    def __len__(self) -> int:
        return sum(map(len, self._read))

    def add(self, batch: Signed) -> None:
        """Append a batch."""
        self._texts.add(batch.sketches)
        self._read.append(self._count_T + np.arange(len(batch.left_N)))
        self._left.append(self._count_T + batch.left_N)
        self._count_T += len(batch.said_T)
        self._said.append(batch.said_T)
        self._beside.append(batch.beside_T)

    def rows(self) -> SignedRows:
        """All that were added."""
        read_N, left_N = np.concatenate(self._read), np.concatenate(self._left)
        return SignedRows(read_N, left_N, np.concatenate(self._said), np.concatenate(self._beside), self._texts.texts())


def first_of_each(*columns: NDArray[np.generic]) -> Places:
    """For each of T texts the first one that is the same in all columns."""
    numbers: Places = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        _, found = np.unique(column, return_inverse=True)
        numbers = numbers * (int(found.max(initial=0)) + 1) + found
    _, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
    return first[inverse]
