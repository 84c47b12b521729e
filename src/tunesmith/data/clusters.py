"""Which texts are nearly the same: MinHash LSH finds who may be, true Jaccard decides, union-find joins.

Shapes: T texts, B bands.
"""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.near import Sketches, different, sketches

ALIKE = 0.8  # Jaccard of the shingles from which on two texts are nearly the same (Lee et al. 2022, arXiv 2107.06499)
MOST_LEADERS = 16  # texts of a bucket that each other one is compared with, so that time is linear
CACHED_TEXTS = 4096
Shingles = NDArray[np.uint32]


class Texts(NamedTuple):
    """The sketches of T texts; their shingles, of which few are ever looked at, are in a file."""

    guards_T: NDArray[np.uint64]
    bands_TB: NDArray[np.uint32]
    words_T: NDArray[np.int64]
    ends_T: NDArray[np.int64]
    """Where the shingles of each text end, in the file."""
    file: Path

    def starts(self) -> NDArray[np.int64]:
        """Where the shingles of each text begin."""
        return np.concatenate([[0], self.ends_T[:-1]]) if len(self.ends_T) else self.ends_T

    def shingles(self, first: int, last: int) -> Shingles:
        """Those at the places from `first` to before `last`."""
        size = np.dtype(np.uint32).itemsize
        return np.fromfile(self.file, np.uint32, last - first, offset=first * size)


class TextWriter:
    """Takes sketches batch by batch; writes their shingles to a file. Use as a context manager."""

    def __init__(self, file: Path) -> None:
        self._path, self._file, self._batches = file, file.open("wb"), [sketches([])]

    def __enter__(self) -> "TextWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(self, batch: Sketches) -> None:
        """Append a batch."""
        self._file.write(batch.shingles_S.tobytes())
        self._batches.append(batch._replace(shingles_S=np.zeros(0, np.uint32)))  # a slice would keep them all

    def texts(self) -> Texts:
        """All that were added."""
        self._file.flush()
        guards_T, bands_TB, words_T, _, counts_T = (
            np.concatenate(column) for column in zip(*self._batches, strict=True)
        )
        return Texts(guards_T, bands_TB, words_T, np.cumsum(counts_T), self._path)


def near_clusters(texts: Texts, same_T: NDArray[np.int64]) -> NDArray[np.int64]:
    """Cluster of each text: the first text of it. `same_T`: for each text the first one that says exactly the same.

    Two texts are joined where their guards are equal and the Jaccard of their shingles is ALIKE or more. As equal
    guards are an equivalence, no chain of alike texts joins two whose numbers, negations or operators differ.
    """
    parents: dict[int, int] = {}

    def root(text: int) -> int:
        while (parent := parents.get(text, text)) != text:
            parents[text] = text = parents.get(parent, parent)
        return text

    @lru_cache(CACHED_TEXTS)
    def shingles(text: int) -> Shingles:
        return different(texts.shingles(int(starts_T[text]), int(texts.ends_T[text])))

    starts_T = texts.starts()
    firsts = np.flatnonzero((same_T == np.arange(len(same_T))) & (texts.ends_T > starts_T))
    for bucket in _buckets(texts, firsts):
        leaders: list[int] = []
        for text in bucket:
            if any(root(leader) == root(text) for leader in leaders):
                continue
            joined = False
            for leader in leaders:
                if (
                    texts.guards_T[text] == texts.guards_T[leader]
                    and jaccard(shingles(text), shingles(leader)) >= ALIKE
                ):
                    one, other = sorted((root(text), root(leader)))
                    parents[other], joined = one, True
            if not joined and len(leaders) < MOST_LEADERS:
                leaders.append(text)
    found_T = same_T.copy()
    for text in list(parents):
        found_T[text] = root(text)
    return found_T[same_T]


def jaccard(one: Shingles, other: Shingles) -> float:
    """Share of what two sorted sets have in common."""
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / (len(one) + len(other) - common)


def _buckets(texts: Texts, chosen: NDArray[np.int64]) -> Iterator[list[int]]:
    """Texts of one guard that meet in a band, in their order; only where two or more do."""
    for band_T in texts.bands_TB.T:
        keys = texts.guards_T[chosen] * np.uint64(0x9E3779B97F4A7C15) ^ band_T[chosen].astype(np.uint64)
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        is_met = ordered[1:] == ordered[:-1]
        edges = np.flatnonzero(np.diff(np.concatenate([[False], is_met, [False]]).astype(np.int8)))
        for first, last in zip(edges[::2], edges[1::2], strict=True):
            yield chosen[order[first : last + 1]].tolist()
