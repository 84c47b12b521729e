"""Training rows that give away what the model is measured by: held-out rows and evaluation prompts."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.clusters import ALIKE, Texts
from tunesmith.data.conversation import Turn
from tunesmith.data.dedup import exact
from tunesmith.data.near import ODD, Hashes, different, hashed_words, sequence_hashes, shingles_of

GRAM_WORDS = 13  # of a run of words that tells a text (Brown et al. 2020, appendix C)
PARTS = (0, 3, 6, 9, 10)  # shingles that cover 13 words, each three
CONTAINED = 0.5  # share of a held-out row's runs that a training row may not hold
COMMON_SHARE, COMMON_ROWS, COMMON_HELD = 0.01, 10, 8
"""A run in more training rows than 1 % and 10, or in more than 8 held-out rows, is a task's wording, and tells none."""
CHUNK_SHINGLES = 1 << 17
TABLE_BITS = 22
TABLE_SHIFT = np.uint64(64 - TABLE_BITS)
IS_PROMPT, NEARLY_PROMPT = "is an evaluation prompt", "is nearly an evaluation prompt"


class _Grams(NamedTuple):
    """The different runs of GRAM_WORDS words of the held-out rows: G runs, P pairs of a run and a row."""

    hashes_G: Hashes
    """Sorted."""
    starts_G1: NDArray[np.int64]
    """Where the pairs of each run start, and the number of all."""
    rows_P: NDArray[np.int64]
    sizes_H: NDArray[np.int64]
    """Runs of each held-out row."""
    table: NDArray[np.bool_]
    """First bits of a hash -> whether a run may have it."""


def repeats(texts: Texts, left_N: NDArray[np.int64], train: Sequence[int], held: Sequence[int]) -> dict[int, int]:
    """Training rows that hold CONTAINED of the runs of 13 words of a held-out row -> that row; by what is left of them.

    Two passes over the file of shingles: the first counts in how many training rows a run is.
    """
    of_train, of_held = (_in_order(left_N, rows) for rows in (train, held))
    grams = _held_grams(texts, left_N, of_held)
    if not len(grams.hashes_G):
        return {}
    rows_G = np.zeros(len(grams.hashes_G), np.int64)
    for _, found in _found(texts, left_N, of_train, grams):
        np.add.at(rows_G, found, 1)
    is_common = (rows_G > max(COMMON_ROWS, COMMON_SHARE * len(train))) | (np.diff(grams.starts_G1) > COMMON_HELD)
    smallest_G = np.minimum.reduceat(grams.sizes_H[grams.rows_P], grams.starts_G1[:-1])
    hits: dict[int, tuple[float, int]] = {}
    for places, found in _found(texts, left_N, of_train, grams):
        telling = ~is_common[found]
        nearby = places - places[:1]  # they are in order
        runs_R = np.bincount(nearby, weights=telling)
        telling &= runs_R[nearby] >= CONTAINED * smallest_G[found]  # else it cannot hold half of any
        for place, which, share in _shares(places[telling], found[telling], grams):
            row = int(of_train[place])
            if share > hits.get(row, (0.0, 0))[0]:
                hits[row] = share, int(of_held[which])
    return {row: by for row, (_, by) in sorted(hits.items())}


def _in_order(left_N: NDArray[np.int64], rows: Sequence[int]) -> NDArray[np.int64]:
    """Rows in the order in which their texts are in the file."""
    chosen = np.array(rows, np.int64)
    return chosen[np.argsort(left_N[chosen], kind="stable")]


def _grams(texts: Texts, chosen: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], Hashes]]:
    """Place in `chosen`, texts in the order of the file, and hash of each run of 13 words of theirs, chunk by chunk."""
    starts, ends, first = texts.starts()[chosen], texts.ends_T[chosen], 0
    while first < len(chosen):
        last = max(int(np.searchsorted(ends, starts[first] + CHUNK_SHINGLES, side="right")), first + 1)
        shingles = texts.shingles(int(starts[first]), int(ends[last - 1])).astype(np.uint64)
        runs = np.maximum(ends[first:last] - starts[first:last] - GRAM_WORDS + 1, 0)
        places = np.repeat(np.arange(first, last), runs)
        begins = np.arange(len(places)) + np.repeat(starts[first:last] - starts[first] - (np.cumsum(runs) - runs), runs)
        joined = shingles * ODD[0]
        for part, factor in zip(PARTS[1:], ODD[1:], strict=False):
            joined[:-part] += shingles[part:] * factor
        yield places, joined[begins]
        first = last


def _held_grams(texts: Texts, left_N: NDArray[np.int64], held: NDArray[np.int64]) -> _Grams:
    parts = list(_grams(texts, left_N[held]))
    rows = np.concatenate([np.zeros(0, np.int64), *(places for places, _ in parts)])
    hashes = np.concatenate([np.zeros(0, np.uint64), *(found for _, found in parts)])
    order = np.lexsort((rows, hashes))
    rows, hashes = rows[order], hashes[order]
    is_new = np.ones(len(rows), bool)
    is_new[1:] = (rows[1:] != rows[:-1]) | (hashes[1:] != hashes[:-1])
    rows, hashes = rows[is_new], hashes[is_new]
    hashes_G, starts_G = np.unique(hashes, return_index=True)
    table = np.zeros(1 << TABLE_BITS, bool)
    table[hashes_G >> TABLE_SHIFT] = True
    sizes_H = np.bincount(rows, minlength=len(held))
    return _Grams(hashes_G, np.append(starts_G, len(rows)), rows, sizes_H, table)


def _found(
    texts: Texts, left_N: NDArray[np.int64], rows: NDArray[np.int64], grams: _Grams
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Place in `rows` and number of the run, once for each row and run that it shares with the held-out rows."""
    for all_places, all_hashes in _grams(texts, left_N[rows]):
        may_be = grams.table[all_hashes >> TABLE_SHIFT]
        places, hashes = all_places[may_be], all_hashes[may_be]
        found = np.searchsorted(grams.hashes_G, hashes)
        found[found == len(grams.hashes_G)] = 0
        is_one = grams.hashes_G[found] == hashes
        pairs = different(places[is_one] * len(grams.hashes_G) + found[is_one])
        yield pairs // len(grams.hashes_G), pairs % len(grams.hashes_G)


def _shares(places: NDArray[np.int64], found: NDArray[np.int64], grams: _Grams) -> Iterator[tuple[int, int, float]]:
    """Training row, held-out row and the share of the latter's runs that the former holds: CONTAINED or more."""
    counts = np.diff(grams.starts_G1)[found]
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    held = grams.rows_P[np.repeat(grams.starts_G1[found], counts) + within]
    all_pairs = np.sort(np.repeat(places, counts) * len(grams.sizes_H) + held)
    pairs = different(all_pairs)
    shared = np.diff(np.append(np.searchsorted(all_pairs, pairs), len(all_pairs)))
    shares = shared / grams.sizes_H[pairs % len(grams.sizes_H)]
    for pair in np.flatnonzero(shares >= CONTAINED):
        place, which = divmod(int(pairs[pair]), len(grams.sizes_H))
        yield place, which, float(shares[pair])


class Prompts:
    """The evaluation prompts, in the forms in which user turns are compared with them. Can be sent to another process.

    A turn is one if its text is the same; with `nearly` also if its words are, or if the Jaccard of the shingles is
    ALIKE or more. A prompt that is a part of a longer turn is none.
    """

    def __init__(self, prompts: Sequence[str], *, nearly: bool) -> None:
        self.prompts, self.nearly = tuple(prompts), nearly
        self._exact = {exact(prompt): prompt for prompt in reversed(prompts)}
        words = hashed_words(prompts)
        hashes_N = sequence_hashes(words.hashes_W, words.counts_N)
        self._words = dict(zip(hashes_N[::-1].tolist(), reversed(prompts), strict=True))
        self._words.pop(0, None)  # of a prompt without a word
        self._shingles = dict(zip(prompts, _sets(*shingles_of(words.hashes_W, words.counts_N)), strict=True))
        self._all = np.array(sorted(set().union(*self._shingles.values())), np.uint32)

    def hits(self, rows: Sequence[Sequence[Turn]]) -> list[tuple[str, str] | None]:
        """For each conversation the reason to drop it and the prompt that it holds, if it holds one."""
        asked = [(place, turn.text) for place, turns in enumerate(rows) for turn in turns if turn.role == "user"]
        found: list[tuple[str, str] | None] = [None] * len(rows)
        if not self.prompts or not asked:
            return found
        nearly = self._nearly([text for _, text in asked]) if self.nearly else [None] * len(asked)
        for (place, text), near in zip(asked, nearly, strict=True):
            prompt = self._exact.get(exact(text))
            found[place] = found[place] or ((IS_PROMPT, prompt) if prompt is not None else near)
        return found

    def _nearly(self, texts: Sequence[str]) -> list[tuple[str, str] | None]:
        words = hashed_words(texts)
        same = [self._words.get(key) for key in sequence_hashes(words.hashes_W, words.counts_N).tolist()]
        shingles_S, counts_N = shingles_of(words.hashes_W, words.counts_N)
        shared = np.concatenate([[0], np.cumsum(np.isin(shingles_S, self._all))])
        ends = np.cumsum(counts_N)
        # a text of Jaccard 0.8 shares 80 % of its different shingles; of all of them, which may repeat, perhaps fewer
        may_be = (shared[ends] - shared[ends - counts_N]) * 2 >= np.maximum(counts_N, 1)
        for text in np.flatnonzero(may_be):
            ours = set(shingles_S[ends[text] - counts_N[text] : ends[text]].tolist())
            like = (p for p, theirs in self._shingles.items() if len(ours & theirs) >= ALIKE * len(ours | theirs) > 0)
            same[text] = same[text] or next(like, None)
        return [(NEARLY_PROMPT, prompt) if prompt is not None else None for prompt in same]


def _sets(shingles_S: NDArray[np.uint32], counts_N: NDArray[np.int64]) -> list[set[int]]:
    """The different shingles of each text."""
    ends = np.cumsum(counts_N)
    return [set(shingles_S[end - count : end].tolist()) for end, count in zip(ends, counts_N, strict=True)]
