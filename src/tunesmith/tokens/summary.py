"""What the data of a run are in numbers, from its record and its token rows: for the report and the terminal."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.page import share
from tunesmith.recipe import Recipe
from tunesmith.tokens.order import rows_of_epoch
from tunesmith.tokens.pack import pack
from tunesmith.tokens.rows import TokenRows

MOST_BARS = 40
"""Bars of the histogram: as many as a phone shows side by side."""
MOST_REASONS = 25
"""Reasons that are named; a set of strange roles has one for each role."""
STEPS = (1, 2, 5)
ONE_OF = {"steps": "step", "forward passes": "forward pass"}
"""Kind of bin -> what one of them is called."""


@dataclass(frozen=True)
class Packing:
    """How the training rows fill bins of so many tokens."""

    what: str
    capacity: int
    bins: int
    tokens: int

    @property
    def counted(self) -> str:
        """How many bins there are of what, in words."""
        return f"{self.bins:,} {ONE_OF[self.what] if self.bins == 1 else self.what}"

    @property
    def full(self) -> str:
        """The share of the bins that is tokens of rows, in percent."""
        return share(self.tokens, self.bins * self.capacity)


@dataclass(frozen=True)
class Summary:
    """Rows, tokens, reasons."""

    read: int
    train: int
    held_out: int
    tokens: int
    supervised: int
    longest: int
    dropped: Mapping[str, int]
    """Reason -> rows, the most frequent first."""
    changed: Mapping[str, int]
    unused: Mapping[str, int]
    """Column, with its source where there are several -> rows that have it."""
    formats: Mapping[str, str]
    """Source -> as what it was read."""
    examples: Mapping[str, Sequence[str]]
    """Reason -> where the first rows were read."""
    packing: Sequence[Packing]
    """Steps first; none where a row is longer than a step."""
    lookahead: int
    """How many places a row may come before its own in the shuffled order, to fill a step."""

    @property
    def kept(self) -> int:
        """Rows to train on and held out."""
        return self.train + self.held_out

    def reasons(self) -> list[tuple[str, int]]:
        """Why rows were dropped, and how many; the rarest in one line where there are many."""
        found = list(self.dropped.items())
        rest = found[MOST_REASONS:]
        more = [(f"{len(rest)} further reasons", sum(rows for _, rows in rest))] if rest else []
        return found[:MOST_REASONS] + more

    def lines(self) -> Iterator[str]:
        """The same in the terminal."""
        yield (
            f"{self.read:,} rows read, {self.train:,} to train on, {self.held_out:,} held out; {self.tokens:,} tokens, "
            f"{self.supervised:,} supervised, longest {self.longest:,}"
        )
        yield from _aligned("dropped", self.reasons(), self.read)
        yield from _aligned("changed", list(self.changed.items()), self.read)
        yield from _aligned("not used", list(self.unused.items())[:MOST_REASONS], self.read)
        steps = "".join(f"; {p.counted} of {p.capacity:,} tokens, {p.full} full" for p in self.packing)
        yield f"  {share(self.supervised, self.tokens)} of the tokens are supervised{steps}"


def _aligned(title: str, counts: Sequence[tuple[str, int]], whole: int) -> Iterator[str]:
    """What, how many and which share, in columns; a long text runs on after its numbers."""
    for number, (what, rows) in enumerate(counts):
        yield f"  {title if not number else '':<9}{rows:>11,}  {share(rows, whole):>6}  {what}"


def summary_of(counts: Mapping[str, Any], train: TokenRows, held_out: TokenRows, recipe: Recipe) -> Summary:
    """Of a data folder with this record; what an older one does not count is counted in its rows."""
    lengths = [int(length) for length in train.lengths_N]
    both = (train, held_out)
    dropped = dict(sorted(counts.get("dropped", {}).items(), key=lambda item: -item[1]))
    kept = len(train) + len(held_out)
    return Summary(
        read=counts.get("read", kept + sum(dropped.values())),
        train=len(train),
        held_out=len(held_out),
        tokens=sum(int(rows.lengths_N.sum()) for rows in both),
        supervised=int(np.count_nonzero(train.supervised_T)),
        longest=max((int(rows.lengths_N.max()) for rows in both if len(rows)), default=0),
        dropped=dropped,
        changed=counts.get("changed", {}),
        unused=_unused(counts.get("unused", {}), len(counts.get("formats", {})) > 1),
        formats={path: _formats(rows) for path, rows in counts.get("formats", {}).items()},
        examples=counts.get("examples", {}),
        packing=_packing(lengths, recipe),
        lookahead=recipe.train.packing_lookahead,
    )


def _unused(columns: Mapping[str, Mapping[str, int]], many: bool) -> dict[str, int]:
    """Source -> column -> rows, in one list."""
    return {
        f"{Path(path).name}: {column}" if many else column: rows
        for path, of_source in columns.items()
        for column, rows in of_source.items()
    }


def _formats(rows: Mapping[str, int]) -> str:
    """What the rows of a source were read as."""
    return ", ".join(f"{form} ({count:,})" if len(rows) > 1 else form for form, count in rows.items()) or "nothing"


def _packing(lengths: Sequence[int], recipe: Recipe) -> list[Packing]:
    """Of the first epoch; none where a row is longer than a step, which training refuses. Forward passes where it is
    known how many tokens they have, and a step takes several.
    """
    size, batch = recipe.train.tokens_per_step, recipe.train.micro_batch_tokens
    longest = max(lengths, default=size + 1)
    if longest > size:
        return []
    steps = rows_of_epoch(lengths, recipe.train, recipe.seed, 0)
    found = [Packing("steps", size, len(steps), sum(lengths))]
    if isinstance(batch, int) and (capacity := max(batch, longest)) < size:  # the longest row is trained on whole
        passes = sum(len(pack([lengths[row] for row in step], capacity)) for step in steps)
        found.append(Packing("forward passes", capacity, passes, sum(lengths)))
    return found


@dataclass(frozen=True)
class Histogram:
    """How many rows have how many tokens."""

    width: int
    """Tokens of a bar: bar n has rows of n * width + 1 to (n + 1) * width tokens."""
    bars: Sequence[int]
    """Rows of each bar."""

    @property
    def end(self) -> int:
        """Tokens at the end of the last bar."""
        return self.width * len(self.bars)


def histogram(lengths: Sequence[int], limit: int) -> Histogram:
    """Bars of a round width, up to the longest row, and to `limit` where that is not far beyond it."""
    longest = max(lengths, default=1)
    end = limit if longest <= limit <= 2 * longest else longest
    width = next(
        step * 10**power for power in range(12) for step in STEPS if step * 10**power * MOST_BARS >= end
    )  # a round number: 1, 2, 5, 10, 20, ...
    bars = np.bincount((np.asarray(lengths, np.int64) - 1) // width, minlength=-(-end // width))
    return Histogram(width, bars.tolist())
