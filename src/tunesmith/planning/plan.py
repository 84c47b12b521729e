"""What a recipe will do: rows, tokens, steps, minutes and disk, from the first rows of its data."""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.decides import sources_of
from tunesmith.errors import BaseError, DataError
from tunesmith.planning.look import MOST_ROWS, Look, look_at
from tunesmith.planning.speed import Speed, known_speed
from tunesmith.planning.steps import all_lengths, steps_of, tokens_in
from tunesmith.planning.tokens import Tokens
from tunesmith.recipe import Recipe, SelectConfig, Source
from tunesmith.room import fullest_bytes
from tunesmith.runs import Run


@dataclass(frozen=True)
class Plan:
    """What a recipe will do to its data."""

    looks: tuple[Look, ...]
    """Of the sources to train on."""
    held_out: Look | None
    """Of a held-out source of its own."""
    guessed_because: str
    """Why tokens are guessed from letters; empty where they are counted."""
    train_rows: int
    held_out_rows: int
    tokens: int
    """Tokens of one epoch, of the rows that data.select leaves."""
    steps: int
    cut: int
    """Rows of those looked at that are longer than train.max_length."""
    speed: Speed | None
    disk_bytes: int | None

    @property
    def exact(self) -> bool:
        """Whether every row was looked at."""
        return all(look.exact and look.read == look.rows for look in self.looks)

    @property
    def longest(self) -> int:
        """Tokens of the longest row that was looked at."""
        return max(max(look.lengths) for look in self.looks if look.lengths)


def look_at_data(recipe: Recipe, tokens: Tokens, most: int = MOST_ROWS) -> tuple[tuple[Look, ...], Look | None]:
    """A look at the sources to train on, and at the held-out one where it has its own.

    Raises DataError if a source is missing, or no row that was looked at can be used.
    """
    seen: set[str] = set()
    each = max(1, most // len(recipe.data.sources))
    looks = [look_at(source, tokens.count, recipe.data, seen, each) for source in sources_of(recipe)]
    own = isinstance(recipe.data.held_out, Source)
    training, held_out = (looks[:-1], looks[-1]) if own else (looks, None)
    if not any(look.lengths for look in training):
        reasons = "; ".join(f"{reason}: {len(where)} ({where[0]})" for reason, where in dropped(training).items())
        raise DataError(
            f"none of the {sum(look.read for look in training):,} rows looked at can be used. {reasons}",
            fix="correct the rows named; `data.sources[].format` and `columns` say how a row holds its conversation",
            where=", ".join(look.path for look in training),
        )
    return tuple(training), held_out


def plan_of(recipe: Recipe, run: Run, tokens: Tokens, looks: tuple[Look, ...], held_out: Look | None) -> Plan:
    """The plan of a recipe whose data was looked at."""
    share = recipe.data.held_out if isinstance(recipe.data.held_out, float) else 0.0
    usable = sum(look.rows * look.kept for look in looks)
    held_rows = round(held_out.rows * held_out.kept) if held_out else math.floor(usable * share + 1e-9)
    if not held_rows:
        named = f"data.held_out is {share:g} of" if not held_out else f"{held_out.path} has none of its"
        what = f"{named} {round(held_out.rows if held_out else usable):,} rows"
        enough = f"write {math.ceil(100 / usable) / 100:g} or more" if usable >= 2 else "add conversations"
        raise DataError(f"{what}, so none would be held out", fix=enough)
    left = max(usable - (0 if held_out else held_rows), 1) / max(usable, 1)
    longest = recipe.train.max_length
    counted = [min(n, longest) for n in all_lengths(looks)]
    weights = [source.weight for source in recipe.data.sources]
    in_all = sum(tokens_in(look, longest) * weight for look, weight in zip(looks, weights, strict=True))
    in_all *= share_selected(recipe.data.select, usable * left)
    base = tokens.base
    disk = None
    if base:
        with contextlib.suppress(BaseError):
            disk = fullest_bytes(recipe, run, base)
    return Plan(
        looks, held_out, tokens.guessed_because, round(usable * left), held_rows, round(in_all * left),
        steps_of(recipe.train, in_all * left, counted, recipe.seed),
        sum(n > longest for n in all_lengths(looks)), known_speed(base, run) if base else None, disk,
    )  # fmt: skip


def share_selected(select: SelectConfig | None, rows: float) -> float:
    """The share of the tokens that is left to train on: that of the rows, as nobody knows yet which ones they are."""
    if select is None:
        return 1.0
    least = 1 / max(rows, 1)  # one row is always kept
    return min(1.0, max(select.keep * least if isinstance(select.keep, int) else select.keep, least))


def dropped(looks: Sequence[Look]) -> dict[str, list[str]]:
    """Why rows would be dropped, the most common reason first, and where these rows are."""
    found: dict[str, list[str]] = {}
    for look in looks:
        for reason, where in look.dropped.items():
            found.setdefault(reason, []).extend(where)
    return dict(sorted(found.items(), key=lambda one: -len(one[1])))
