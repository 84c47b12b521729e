"""Where the time of a job with many steps goes: the seconds of a processor that each takes, of all processes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Laps = dict[str, float]
"""Step -> seconds."""
CURRENT: ContextVar[Laps] = ContextVar("laps")


@contextmanager
def timed() -> Iterator[Laps]:
    """The laps of what is done within."""
    laps: Laps = {}
    token = CURRENT.set(laps)
    try:
        yield laps
    finally:
        CURRENT.reset(token)


@contextmanager
def lap(step: str) -> Iterator[None]:
    """Count the seconds of what is done within as the step's, where laps are timed."""
    started_s = time.process_time()
    try:
        yield
    finally:
        add_laps({step: time.process_time() - started_s})


def add_laps(more: Laps) -> None:
    """Count what another process, or a part of the job with laps of its own, has taken."""
    laps = CURRENT.get(None)
    if laps is not None:
        for step, seconds in more.items():
            laps[step] = laps.get(step, 0) + seconds
