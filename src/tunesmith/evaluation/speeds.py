"""Speeds of a GGUF on this CPU: the median over the prompts, their spread, and where and when they were measured.

Two speeds can be compared only if they were measured in one session, in turn: on a machine that others use too, the
same file was found 13 times slower an hour later (docs/log.md).
"""

import datetime
import statistics
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.machine import processor, versions

SPEEDS = ("first_token_s", "prompt_per_s", "tokens_per_s")


def summary(answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The median of each speed, and under "spread" its quartiles [low, high]."""
    values = {name: [answer[name] for answer in answers] for name in SPEEDS}
    spread = {name: [_short(value) for value in quartiles(of)] for name, of in values.items()}
    return {name: _short(statistics.median(of)) for name, of in values.items()} | {"spread": spread}


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The middle half of some values; of one value, itself twice."""
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def session(threads: int) -> dict[str, Any]:
    """What a measurement is known by: a name of its own, the time, the processor, the threads and the engine."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {
        "session": uuid.uuid4().hex[:12],
        "measured_at": now,
        "processor": processor(),
        "threads": threads,
        "xllamacpp": versions()["xllamacpp"],
    }


def _short(value: float) -> float:
    return round(value, 3)
