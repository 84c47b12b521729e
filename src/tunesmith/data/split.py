"""What becomes of each row once every signature is known: training, held out, or dropped as a duplicate."""

import hashlib
import math
from collections.abc import Iterable, Sequence

from tunesmith.data.dedup import Signature
from tunesmith.errors import DataError

TRAIN, HELD_OUT = "train", "held_out"
DUPLICATE, LEAK = "duplicate", "duplicate of a held-out row"

Signed = tuple[Signature, Signature]
"""Of a row as it was read, and of what is left of it after the cut to max_length."""


def fates(signed: Sequence[Signed], first_held: int, share: float | None, seed: int, *, dedup: bool) -> list[str]:
    """TRAIN, HELD_OUT, or the reason to drop the row, for each row that can be used.

    The rows from `first_held` on are a held-out source of its own; with `share` it is a share of what is said instead.
    With `dedup` the first of the rows that are the same, before or after the cut, is kept. What is left in a held-out
    row is left in no training row.
    """
    if share is not None:
        found = _without_duplicates(signed, dedup)
        left = [after.said for (_, after), fate in zip(signed, found, strict=True) if fate != DUPLICATE]
        held = held_out_clusters(left, share, seed)
        return [
            fate or (HELD_OUT if after.said in held else TRAIN) for fate, (_, after) in zip(found, signed, strict=True)
        ]
    held_rows = signed[first_held:]
    both = [{pair[when].said for pair in held_rows} for when in (0, 1)]
    leaks = [before.said in both[0] or after.said in both[1] for before, after in signed[:first_held]]
    others = iter(_without_duplicates([row for row, leak in zip(signed, leaks, strict=False) if not leak], dedup))
    train = [LEAK if leak else next(others) or TRAIN for leak in leaks]
    return train + [fate or HELD_OUT for fate in _without_duplicates(held_rows, dedup)]


def _without_duplicates(signed: Sequence[Signed], dedup: bool) -> list[str]:
    """DUPLICATE for each row that is the same as one before it that is kept, else ""."""
    seen: tuple[set[str], set[str]] = set(), set()
    found = []
    for before, after in signed:
        is_new = not dedup or (before.whole not in seen[0] and after.whole not in seen[1])
        if is_new:
            seen[0].add(before.whole)
            seen[1].add(after.whole)
        found.append("" if is_new else DUPLICATE)
    return found


def held_out_clusters(signatures: Iterable[str], share: float, seed: int) -> set[str]:
    """The signatures of the clusters that are held out: those with the lowest hash of (seed, signature).

    A new row moves no other row but one at the border. Raises DataError if none would be held out.
    """
    different = set(signatures)
    number = math.floor(share * len(different) + 1e-9)  # 0.29 * 100 is 28.999999999999996
    if not number and different:
        raise DataError(
            f"data.held_out is {share:g} of {len(different)} different conversations, so none would be held out",
            fix=f"write {_rounded_up(1 / len(different))} or more" if len(different) > 1 else "add conversations",
        )
    return set(sorted(different, key=lambda found: hashlib.sha256(f"{seed}:{found}".encode()).digest())[:number])


def _rounded_up(share: float) -> str:
    """A share with two digits, not below `share`."""
    digits = 1 - math.floor(math.log10(share))
    return f"{math.ceil(share * 10**digits) / 10**digits:.{digits}f}"
