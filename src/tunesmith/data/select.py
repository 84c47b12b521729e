"""Which training rows are trained on: one pure function a kind, from a number for each row to the rows kept.

Row numbers come back in order. The same numbers and seed keep the same rows with every version of every library: chance
is a hash of (seed, what for, row), and of two rows that are level the first is kept.

Shapes: N training rows, K of them kept.
"""

import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
BUCKETS = 10_000  # Xie et al. 2023, section 3: hashed n-grams of this many buckets
WORD = re.compile(r"\w+|[^\w\s]")  # words and signs, as NLTK's WordPunctTokenizer that the paper uses nearly does
LEAST_HELP = 1.0
"""Of the difficulty: the instruction makes the answer less likely, so the two do not belong together (Li et al.)."""
SHARE, GUMBEL, PART = 1, 2, 3  # what chance decides: three independent streams of one seed


def kept_count(keep: float | int, rows: int) -> int:
    """How many of `rows` are kept: a share of them, a whole number at most all; one at least."""
    return min(rows, max(1, keep if isinstance(keep, int) else int(keep * rows + 1e-9)))  # 0.29 * 100 is 28.999...


def random_rows(rows: int, count: int, seed: int) -> Array:
    """`count` of `rows` by chance."""
    return _highest(_chance(rows, seed, SHARE), count)


def longest_rows(lengths_N: Array, count: int) -> Array:
    """The `count` rows with the longest answers."""
    return _highest(lengths_N, count)


def difficult_rows(difficulty_N: Array, count: int) -> Array:
    """The `count` rows of the highest difficulty below LEAST_HELP; fewer where fewer are below it.

    Instruction-following difficulty (Li et al. 2023, arXiv 2308.12032): loss of an answer with its instruction over
    that without it. High: the instruction helps the base little, so there is something to learn.
    """
    below = np.flatnonzero(difficulty_N < LEAST_HELP)  # also leaves out what is no number
    return np.asarray(below[_highest(difficulty_N[below], count)])


def alike_rows(log_weights_N: Array, count: int, seed: int) -> Array:
    """`count` rows drawn without replacement in proportion to their weights: Gumbel top-k (Xie et al. 2023)."""
    gumbel_N = -np.log(-np.log(_chance(len(log_weights_N), seed, GUMBEL)))
    return _highest(log_weights_N + gumbel_N, count)


def repeated(rows_K: Array, times_N: Array, seed: int) -> Array:
    """Each of `rows_K` as often as `times_N` says of it: 2 is twice, 0.5 a random half of all that have this number."""
    whole_K = np.floor(times_N[rows_K]).astype(np.int64)
    part_K, chance_K = times_N[rows_K] - whole_K, _chance(len(times_N), seed, PART)[rows_K]
    for part in np.unique(part_K[part_K > 0]):
        here = np.flatnonzero(part_K == part)
        whole_K[here[_highest(chance_K[here], round(part * len(here)))]] += 1
    return np.asarray(np.repeat(rows_K, whole_K))


def log_weights(texts: Callable[[], Iterable[str]], examples: Iterable[str]) -> Array:
    """How much more likely each of `texts` is among the `examples` than among the texts: a log ratio in nats [N].

    Hashed n-gram importance (DSIR, Xie et al. 2023, arXiv 2302.03169): words and pairs of words in BUCKETS buckets, two
    bags of them. The paper has millions of examples, a user twenty: so what the examples have is mixed half and half
    with what the texts have, and an n-gram that is in no example costs a row ln 2 instead of ruling it out.
    `texts` is called twice, so that memory holds one text at a time.
    """
    known: dict[str, int] = {}
    raw, target = (_counts(some, known) for some in (texts(), examples))
    raw_share = (raw + 1) / (raw.sum() + BUCKETS)  # add-one: the logarithm of an empty bucket would be none
    ratio = np.log((target / target.sum() + raw_share) / 2 / raw_share)
    return np.array([ratio[found].sum() for found in _ngrams(texts(), known)])


def _counts(texts: Iterable[str], known: dict[str, int]) -> Array:
    counts = np.zeros(BUCKETS)
    for found in _ngrams(texts, known):
        counts += np.bincount(found, minlength=BUCKETS)
    return counts


def _ngrams(texts: Iterable[str], known: dict[str, int]) -> Iterator[Array]:
    """The bucket of every word and pair of neighbouring words of each text. `known`: hashes of words seen before."""
    for text in texts:
        words = WORD.findall(text.lower())
        for word in words:
            if word not in known:
                known[word] = zlib.crc32(word.encode("utf-8", "surrogatepass"))
        hashes = np.array([known[word] for word in words], np.uint64)
        pairs = _mixed(hashes[:-1] * np.uint64(0x1_0000_0000) + hashes[1:])
        yield (np.concatenate([_mixed(hashes), pairs]) % np.uint64(BUCKETS)).astype(np.int64)


def _highest(numbers_N: Array, count: int) -> Array:
    """The rows of the `count` highest numbers, in order; of those that are level the first."""
    return np.sort(np.argsort(-numbers_N.astype(np.float64), kind="stable")[:count])


def _chance(rows: int, seed: int, stream: int) -> Array:
    """A number above 0 and below 1 for each row: a hash of (seed, stream, row)."""
    start = _mixed(np.array([seed * 4 + stream], np.uint64))
    bits_N = _mixed(start + np.arange(rows, dtype=np.uint64)) >> np.uint64(12)
    return np.asarray((bits_N.astype(np.float64) + 0.5) / 2**52)


def _mixed(numbers: Array) -> Array:
    """A hash of each: splitmix64 (Steele et al. 2014), whose sums wrap."""
    x = numbers + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))
