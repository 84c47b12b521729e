"""What becomes of each row once every signature is known: training, held out, or dropped as a duplicate."""

import hashlib
import math
from collections.abc import Iterable, Sequence

from tunesmith.errors import DataError

TRAIN, HELD_OUT = "train", "held_out"
DUPLICATE, LEAK = "duplicate", "duplicate of a held-out row"


def fates(signatures: Sequence[str], first_held: int, share: float | None, seed: int, *, dedup: bool) -> list[str]:
    """TRAIN, HELD_OUT, or the reason to drop the row, for each signature ("" for a row that is dropped already).

    The rows from `first_held` on are a held-out source of its own; with `share` it is a share of the clusters instead.
    With `dedup` the first row of each cluster is kept. Held-out and training rows never share a cluster.
    """
    held = set(signatures[first_held:]) if share is None else held_out_clusters(filter(None, signatures), share, seed)
    seen: set[str] = set()
    found = []
    for row, signature in enumerate(signatures):
        if share is None and row < first_held and signature in held:
            found.append(LEAK)
        elif dedup and signature in seen:
            found.append(DUPLICATE)
        else:
            seen.add(signature)
            found.append(HELD_OUT if signature in held else TRAIN)
    return [fate if signature else "" for fate, signature in zip(found, signatures, strict=True)]


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
