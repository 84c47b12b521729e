"""What is on disk of checkpoints, without torch: whole or not, ours or not, and made with which settings."""

from pathlib import Path
from typing import Any

from tunesmith.errors import ResumeError
from tunesmith.files import DIGESTS, digest_file, strangers
from tunesmith.json_file import OTHER_JSON, json_object
from tunesmith.runs import CHECKPOINT, checkpoint_folders
from tunesmith.stale import WAYS_OUT, needs_differ

ADAPTER, OPTIMIZER, STATE = "adapter.safetensors", "optimizer.safetensors", "state.json"


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
    for name, written in digests.items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if (found := file.stat().st_size) != written["bytes"]:
            return f"{name} has {found:,} bytes, not {written['bytes']:,}"
        if digest_file(file) != written["sha256"]:
            return f"{name} has other bytes than were written"
    return ""


def is_whole(checkpoint: Path) -> bool:
    """Whether nothing is wrong with a checkpoint."""
    return not damage(checkpoint)


def is_own(checkpoint: Path) -> bool:
    """Whether we made this folder, by its name and its files, and nothing of the user's is in it."""
    digests = _listed(checkpoint)
    named = CHECKPOINT.fullmatch(checkpoint.name) and (checkpoint / STATE).is_file()
    return bool(named and digests is not None and not strangers(checkpoint, digests))


def _listed(checkpoint: Path) -> dict[str, dict[str, Any]] | None:
    """Digest and size of each file of a checkpoint, as written; None where that cannot be read."""
    try:
        digests = json_object((checkpoint / DIGESTS).read_bytes())
        entries = {name: {"sha256": entry["sha256"], "bytes": int(entry["bytes"])} for name, entry in digests.items()}
    except (FileNotFoundError, *OTHER_JSON):
        return None
    return entries if {ADAPTER, OPTIMIZER, STATE} <= entries.keys() else None


def refuse_other_settings(folder: Path, decides: dict[str, Any]) -> None:
    """Raise ResumeError if the newest checkpoint in `folder` that can be read began with others than `decides` now.

    Asked before torch is loaded: an `auto` that is not decided yet is looked at, and named, when training begins, and
    so is what cannot be read here.
    """
    for checkpoint in reversed(checkpoint_folders(folder)):
        try:
            was = json_object((checkpoint / STATE).read_bytes())["decides"]
            train = was["settings"]["train"]
            undecided = {name: train[name] for name, said in decides["settings"]["train"].items() if said == "auto"}
        except (OSError, *OTHER_JSON):
            continue
        settings = decides["settings"] | {"train": decides["settings"]["train"] | undecided}
        refuse_others(checkpoint, was, decides | {"settings": settings})
        return


def refuse_others(checkpoint: Path, was: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise ResumeError that names each setting that is not what a checkpoint was made with, and the ways out."""
    if changed := needs_differ((was["settings"], was["inputs"]), (now["settings"], now["inputs"])):
        what = "this run was trained with other settings:\n  - " + "\n  - ".join(changed)
        raise ResumeError(what, fix=WAYS_OUT, where=str(checkpoint))
