"""How far prepare is, how fast, and so how long it will take: by the bytes of the files, as nobody knows their rows."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tunesmith.console import progress
from tunesmith.data.opened import counted
from tunesmith.decides import source_files
from tunesmith.recipe import Source

SHORTEST_S = 1e-3  # a clock may stand between two batches
MB = 10**6


@contextmanager
def paced(sources: Sequence[Source]) -> Iterator[Callable[[int], None]]:
    """Shows progress; the block calls what it is given with the rows that were made since."""
    size = _bytes_of(sources)
    total, unit = (None, "rows") if size is None else (max(size // MB, 1), "MB")
    read_bytes = rows = shown = 0
    started_s = time.monotonic()

    def count(size: int) -> None:
        nonlocal read_bytes
        read_bytes += size

    with counted(count), progress("prepare", total, unit=unit) as advance:

        def made(more: int) -> None:
            nonlocal rows, shown
            rows += more
            pace = f"{rows / max(time.monotonic() - started_s, SHORTEST_S):,.0f} rows/s"
            if total is None:
                advance(more, pace)
                return
            before, shown = shown, min(read_bytes // MB, total)
            advance(shown - before, f"{rows:,} rows, {pace}")

        yield made


def _bytes_of(sources: Sequence[Source]) -> int | None:
    """The bytes that will be read; None where nobody knows: of the Hub, or of some of the rows."""
    files = [source_files(source) for source in sources]
    if not all(files) or any(source.limit is not None for source in sources):
        return None
    return sum(path.stat().st_size for paths in files for path in paths)
