"""What is on disk of checkpoints, without torch: whole or not, ours or not, and made with which settings."""

import contextlib
import math
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from tunesmith.errors import ResumeError
from tunesmith.files import DIGESTS, digest_file, strangers
from tunesmith.json_file import OTHER_JSON, json_object
from tunesmith.past import state_as_now
from tunesmith.recipe import Keep
from tunesmith.runs import CHECKPOINT, checkpoint_folders, checkpoint_name, step_of
from tunesmith.stale import WAYS_OUT, needs_differ
from tunesmith.values import cadence

ADAPTER, OPTIMIZER, STATE = "adapter.safetensors", "optimizer.safetensors", "state.json"
FORMAT = 1
"""Of a checkpoint: one with a higher number was written by a later version, and is not understood."""
WHOLE_NUMBERS = (
    "step", "tokens", "supervised_tokens", "evaluated_step", "best_step", "without_gain", "interruptions", "skipped",
    "skipped_in_all",
)  # fmt: skip
"""Of the progress in a state.json."""

_bits = ContextVar("bits_required", default=False)


@contextlib.contextmanager
def bits_required(is_so: bool) -> Iterator[None]:
    """While this is entered, a resume that would not have the same bits is, where it `is_so`, refused."""
    token = _bits.set(is_so)
    try:
        yield
    finally:
        _bits.reset(token)


def needs_bits() -> bool:
    """Whether a resume that would not have the same bits is refused now."""
    return _bits.get()


def changes(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """One text for each value that differs, such as "train.lr: 0.0002 -> 0.0001"."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        was, now = old.get(key), new.get(key)
        if isinstance(was, dict) and isinstance(now, dict):
            found += changes(was, now, f"{prefix}{key}.")
        elif was != now:
            found.append(f"{prefix}{key}: {was} -> {now}")
    return found


def damage(checkpoint: Path) -> str:
    """What is wrong with a checkpoint; nothing if each listed file has the bytes that were written.

    A disk that cannot be read is an OSError.
    """
    digests = _listed(checkpoint)
    if digests is None:
        return f"{DIGESTS} is {'damaged' if (checkpoint / DIGESTS).exists() else 'missing'}"
    return next((why for name, written in digests.items() if (why := file_damage(checkpoint / name, written))), "")


def file_damage(file: Path, written: Mapping[str, Any]) -> str:
    """What is wrong with a file, by its digest and size as they were written; empty if nothing is."""
    if not file.is_file():
        return f"{file.name} is missing"
    if (found := file.stat().st_size) != written["bytes"]:
        return f"{file.name} has {found:,} bytes, not {written['bytes']:,}"
    return "" if digest_file(file) == written["sha256"] else f"{file.name} has other bytes than were written"


def is_whole(checkpoint: Path) -> bool:
    """Whether nothing is wrong with a checkpoint."""
    return not damage(checkpoint)


def is_own(checkpoint: Path) -> bool:
    """Whether we made this folder, by its name and its files, and nothing of the user's is in it."""
    digests = _listed(checkpoint)
    named = CHECKPOINT.fullmatch(checkpoint.name) and (checkpoint / STATE).is_file()
    return bool(named and digests is not None and not strangers(checkpoint, digests))


def digests_in(content: bytes) -> dict[str, dict[str, Any]]:
    """File -> its digest and size, as a digests.json says. Raises one of OTHER_JSON for what is none."""
    found = json_object(content)
    return {name: {"sha256": entry["sha256"], "bytes": int(entry["bytes"])} for name, entry in found.items()}


def _listed(checkpoint: Path) -> dict[str, dict[str, Any]] | None:
    """Digest and size of each file of a checkpoint, as written; None where that cannot be read."""
    try:
        entries = digests_in((checkpoint / DIGESTS).read_bytes())
    except (FileNotFoundError, *OTHER_JSON):
        return None
    return entries if {ADAPTER, OPTIMIZER, STATE} <= entries.keys() else None


def read_state(checkpoint: Path) -> dict[str, Any]:
    """What state.json says. Raises OSError, and one of OTHER_JSON where it cannot be read."""
    return state_as_now(json_object((checkpoint / STATE).read_bytes()))


def best_step(checkpoint: Path) -> int:
    """The step that was the best when a checkpoint was saved; 0 where none was measured, or that cannot be read."""
    try:
        return int(read_state(checkpoint)["progress"]["best_step"])
    except (OSError, *OTHER_JSON):
        return 0


def what_is_left(folder: Path) -> str:
    """What a run goes on from, in words, where its state cannot be saved."""
    whole = [path.name for path in checkpoint_folders(folder) if is_whole(path)]
    return f"the run goes on from {whole[-1]}" if whole else "nothing of this run's training is on disk"


def why_unfit(checkpoint: Path) -> str:
    """Why nothing can go on from a checkpoint, as it is damaged or of a later version; empty if it can."""
    try:
        if reason := damage(checkpoint):
            return f"it is damaged, {reason}"
        state = read_state(checkpoint)
    except OSError as error:
        return f"{Path(error.filename or STATE).name} cannot be read: {error.strerror}"
    except OTHER_JSON:
        return f"{STATE} is no JSON object"
    written = state.get("format", 1)
    if not isinstance(written, int) or written > FORMAT:
        return f"a later version of tunesmith wrote it (format {written}, this one knows {FORMAT})"
    odd = _odd(state, step_of(checkpoint.name))
    return f"{STATE} is not as training writes it: {odd}" if odd else ""


def _odd(state: Mapping[str, Any], step: int) -> str:
    """What training could not go on from, though its bytes are those that were written; empty if nothing is."""
    decides = state.get("decides")
    parts = [(state, name) for name in ("progress", "scaler", "decides", "machine")]
    for part, name in [*parts, (decides, "settings"), (decides, "inputs")]:
        if not isinstance(part, Mapping) or not isinstance(part.get(name), Mapping):
            return f"there is no {name}"
    progress = state["progress"]
    for name in ("step", "best_step", "evaluated_step", *progress):
        value = progress.get(name)
        if (name in WHOLE_NUMBERS and type(value) is not int) or (isinstance(value, float) and math.isnan(value)):
            return f"{name} is {value}"
    return "" if progress["step"] == step else f"step is {progress['step']}"


def to_keep(folder: Path, keep: Keep, best_step: int) -> set[str]:
    """Names of the checkpoints in `folder` that `keep` wants: the newest, the best, and one for each `keep.every`."""
    saved = [path for path in checkpoint_folders(folder) if is_own(path)]
    kept = {path.name for path in saved[-keep.last :]} | {checkpoint_name(best_step)}
    if keep.every:
        span, last = cadence(keep.every), -math.inf
        for path in saved:
            at = step_of(path.name) if span.steps else _seconds_of(path)
            if at - last >= (span.steps or span.seconds or 0):
                kept, last = kept | {path.name}, at
    return kept


def _seconds_of(checkpoint: Path) -> float:
    """Time spent training up to a checkpoint; without end where it cannot be read, so that it is kept."""
    try:
        return float(read_state(checkpoint)["progress"]["seconds"])
    except (OSError, *OTHER_JSON):
        return math.inf


def refuse_other_settings(folder: Path, decides: dict[str, Any]) -> None:
    """Raise ResumeError if no checkpoint in `folder` that can be read began with what `decides` now, naming each
    difference to the newest.

    Without "inputs" in `decides` they are not looked at. Asked before torch is loaded: an `auto` that is not decided
    yet is looked at, and named, when training begins, and so is what cannot be read here.
    """
    newest: tuple[Path, dict[str, Any], dict[str, Any]] | None = None
    for checkpoint in reversed(checkpoint_folders(folder)):
        try:
            was = read_state(checkpoint)["decides"]
            train = was["settings"]["train"]
            undecided = {name: train[name] for name, said in decides["settings"]["train"].items() if said == "auto"}
        except (OSError, *OTHER_JSON):
            continue
        settings = decides["settings"] | {"train": decides["settings"]["train"] | undecided}
        now = {"inputs": was["inputs"]} | decides | {"settings": settings}
        if not refuse_others(checkpoint, was, now):
            return
        newest = newest or (checkpoint, was, now)
    if newest:
        refuse_others(*newest, raises=True)


def refuse_others(checkpoint: Path, was: dict[str, Any], now: dict[str, Any], raises: bool = False) -> list[str]:
    """Each setting that is not what a checkpoint was made with, in words; none where it fits.

    `raises`: a ResumeError that names them, and the ways out, instead.
    """
    changed = needs_differ((was["settings"], was["inputs"]), (now["settings"], now["inputs"]))
    if changed and raises:
        what = "this run was trained with other settings:\n  - " + "\n  - ".join(changed)
        raise ResumeError(what, fix=WAYS_OUT, where=str(checkpoint))
    return changed
