"""How fast this machine trains a base: as an earlier run found, or one timed pass; never guessed."""

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

from tunesmith.errors import TunesmithError
from tunesmith.files import fingerprint, write_file
from tunesmith.inference.child import Child
from tunesmith.json_file import OTHER_JSON, json_object
from tunesmith.machine import TRAINING_SPINS, training_device, versions
from tunesmith.record import read_record
from tunesmith.runs import Run
from tunesmith.weights.cache import cache_folder
from tunesmith.weights.locate import LocatedBase

TIMED = "as one pass took on this machine"


@dataclass(frozen=True)
class Speed:
    """Tokens a second of training."""

    tokens_per_s: float
    source: str
    """How it is known, in words."""


def known_speed(base: LocatedBase, run: Run) -> Speed | None:
    """As the newest run of this base on this processor or GPU had it, else as it was timed before; None: not known.

    Runs are looked for beside `run`, wherever that is put.
    """
    device, found = training_device(), list[tuple[float, Speed]]()
    for file in run.path.parent.glob("*/adapter/record.json"):
        with contextlib.suppress(TunesmithError, OSError, KeyError, TypeError, ValueError):
            record = read_record(file.parent)
            if record and record.inputs["base"] == base.digest and record.counts["device"] == device:
                speed = Speed(float(record.counts["tokens_per_s"]), f"as {file.parent.parent} had on this machine")
                found.append((file.stat().st_mtime, speed))
    if found:
        return max(found, key=lambda one: one[0])[1]
    timed = _timed().get(_key(base))
    return Speed(float(timed), TIMED) if isinstance(timed, int | float) else None


def time_one_pass(base: LocatedBase, lengths: list[int]) -> Speed | None:
    """Time a forward and backward pass over conversations of these lengths, in a process of its own, and keep it.

    None where that cannot be done: torch is missing, or memory too small.
    """
    job = {"base": str(base.folder), "lengths": lengths}
    try:
        with contextlib.closing(
            Child("tunesmith.training.timed", job, f"the timed pass of {base.name}", TRAINING_SPINS)
        ) as child:
            tokens_per_s = next((float(line["tokens_per_s"]) for line in child), 0.0)
    except TunesmithError:
        return None
    if tokens_per_s <= 0:
        return None
    with contextlib.suppress(OSError, TunesmithError):  # it is timed again, then
        write_file(_kept(), json.dumps(_timed() | {_key(base): round(tokens_per_s, 1)}, indent=1) + "\n")
    return Speed(tokens_per_s, TIMED)


def _kept() -> Path:
    return cache_folder() / "speeds.json"


def _timed() -> dict[str, float]:
    with contextlib.suppress(OSError, *OTHER_JSON):
        return dict(json_object(_kept().read_bytes()))
    return {}


def _key(base: LocatedBase) -> str:
    found = versions()
    return fingerprint([base.digest, training_device(), found.get("torch"), found.get("transformers")])
