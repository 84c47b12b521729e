"""What becomes of each row once all are signed: training, held out, or dropped as a duplicate or a leak."""

import hashlib
import math
from collections.abc import Iterable, Sequence
from heapq import nsmallest
from typing import NamedTuple

import numpy as np

from tunesmith.data.clusters import near_clusters
from tunesmith.data.decontaminate import repeats
from tunesmith.data.signed import Places, SignedRows, first_of_each
from tunesmith.errors import DataError
from tunesmith.recipe import Dedup

TRAIN, HELD_OUT = "train", "held_out"
DUPLICATE, NEAR_DUPLICATE = "duplicate", "near-duplicate"
LEAK, NEAR_LEAK = "duplicate of a held-out row", "near-duplicate of a held-out row"
REPEATS = "repeats half of a held-out row"
NOBODY = -1


class Fates(NamedTuple):
    """What becomes of each of N rows."""

    what_N: list[str]
    """TRAIN, HELD_OUT, or the reason to drop the row."""
    by_N: Places
    """The row that it is dropped for: the duplicate that is kept, or the held-out row; else NOBODY."""
    clusters_N: Places
    """Rows of one number say the same, by what is left of them."""


class _Same(NamedTuple):
    """For each text the first one that says the same, and that is the same with all that stands beside it."""

    said_T: Places
    whole_T: Places


def fates(
    rows: SignedRows, first_held: int, share: float | None, seed: int, dedup: Dedup, decontaminate: bool
) -> Fates:
    """What becomes of each row that can be used.

    The rows from `first_held` on are a held-out source of its own; with `share` it is a share of what is said instead.
    Of rows that are the same, before or after the cut, the first is kept, with `near` the longest. What is left in a
    held-out row is left in no training row. With `decontaminate` training rows that are nearly a held-out row, or
    repeat half of one, are dropped, too.
    """
    letters = first_of_each(rows.said_T)
    alike = near_clusters(rows.texts, letters) if dedup == "near" or decontaminate else letters
    said_T = alike if dedup == "near" else letters
    same = _Same(said_T, first_of_each(said_T, rows.beside_T))
    what_N, by_N = [""] * len(rows.read_N), np.full(len(rows.read_N), NOBODY)
    found = Fates(what_N, by_N, _numbered(said_T[rows.left_N]))
    if share is not None:
        _drop_duplicates(found, rows, same, range(len(what_N)), dedup)
        kept = [row for row, what in enumerate(what_N) if not what]
        held = _held_out(rows, same, kept, share, seed)
    else:
        held = set(range(first_held, len(what_N)))
        _drop_leaks(found, rows, said_T, held, LEAK)
        _drop_duplicates(found, rows, same, range(first_held), dedup)
        _drop_duplicates(found, rows, same, range(first_held, len(what_N)), dedup)
    for row, what in enumerate(what_N):
        what_N[row] = what or (HELD_OUT if row in held else TRAIN)
    if decontaminate:
        held = {row for row in held if what_N[row] == HELD_OUT}
        _drop_leaks(found, rows, alike, held, NEAR_LEAK)
        train = [row for row, what in enumerate(what_N) if what == TRAIN]
        for row, by in repeats(rows.texts, rows.left_N, train, sorted(held)).items():
            what_N[row], by_N[row] = REPEATS, by
    return found


def _drop_duplicates(found: Fates, rows: SignedRows, same: _Same, among: range, dedup: Dedup) -> None:
    """Drop each row that is the same as one that is kept, before or after the cut."""
    if dedup == "off":
        return
    order = [row for row in among if not found.what_N[row]]
    if dedup == "near":
        words_N = rows.texts.words_T[rows.left_N]
        order.sort(key=lambda row: -words_N[row])  # stable: of two that are as long the first
    seen: tuple[dict[int, int], dict[int, int]] = {}, {}
    read_N, left_N = same.whole_T[rows.read_N].tolist(), same.whole_T[rows.left_N].tolist()
    for row in order:
        by = seen[0].get(read_N[row], seen[1].get(left_N[row], NOBODY))
        if by == NOBODY:
            seen[0][read_N[row]] = seen[1][left_N[row]] = row
        else:
            found.what_N[row], found.by_N[row] = _kind(rows, row, by), by


def _kind(rows: SignedRows, row: int, by: int) -> str:
    """Whether a row is the duplicate of another to the letter, or nearly."""
    both = (rows.said_T[rows.read_N[[row, by]]], rows.said_T[rows.left_N[[row, by]]])
    return DUPLICATE if any(one == other for one, other in both) else NEAR_DUPLICATE


def _drop_leaks(found: Fates, rows: SignedRows, said_T: Places, held: set[int], reason: str) -> None:
    """Drop each training row that says what a held-out row says, before or after the cut."""
    read_N, left_N = said_T[rows.read_N].tolist(), said_T[rows.left_N].tolist()
    firsts: tuple[dict[int, int], dict[int, int]] = {}, {}
    for row in sorted(held):
        firsts[0].setdefault(read_N[row], row)
        firsts[1].setdefault(left_N[row], row)
    for row, what in enumerate(found.what_N):
        by = firsts[0].get(read_N[row], firsts[1].get(left_N[row], NOBODY))
        if by != NOBODY and row not in held and what in ("", TRAIN):
            found.what_N[row], found.by_N[row] = reason, by


def _held_out(rows: SignedRows, same: _Same, kept: Sequence[int], share: float, seed: int) -> set[int]:
    """The rows that are held out: whole clusters, each by the lowest signature in it."""
    rows_K = np.array(kept, np.int64)
    clusters_K, said_K = same.said_T[rows.left_N[rows_K]], rows.said_T[rows.left_N[rows_K]]
    order = np.lexsort((said_K, clusters_K))
    lowest = order[np.diff(clusters_K[order], prepend=NOBODY) != 0]
    names = [digest.ljust(said_K.itemsize, b"\0").hex() for digest in said_K[lowest].tolist()]
    chosen = held_out_clusters(names, share, seed, len(rows.read_N))
    held = clusters_K[lowest[[name in chosen for name in names]]]
    return set(rows_K[np.isin(clusters_K, held)].tolist())


def held_out_clusters(signatures: Iterable[str], share: float, seed: int, rows: int | None = None) -> set[str]:
    """The signatures of the clusters that are held out: those with the lowest hash of (seed, signature).

    A new row moves no other row but one at the border. Raises DataError if none would be held out, with the number of
    `rows` that they are of.
    """
    different = set(signatures)
    number = math.floor(share * len(different) + 1e-9)  # 0.29 * 100 is 28.999999999999996
    if not number and different:
        held = f" that {rows:,} rows hold" if rows and rows > len(different) else ""
        raise DataError(
            f"data.held_out is {share:g} of {len(different)} different conversations{held}, so none would be held out",
            fix=f"write {_rounded_up(1 / len(different))} or more" if len(different) > 1 else "add conversations",
        )
    return set(nsmallest(number, different, lambda found: hashlib.sha256(f"{seed}:{found}".encode()).digest()))


def _numbered(clusters_N: Places) -> Places:
    """Clusters numbered by first appearance."""
    _, first, inverse = np.unique(clusters_N, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def _rounded_up(share: float) -> str:
    """A share with two digits, not below `share`."""
    digits = 1 - math.floor(math.log10(share))
    return f"{math.ceil(share * 10**digits) / 10**digits:.{digits}f}"
