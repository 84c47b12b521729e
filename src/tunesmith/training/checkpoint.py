"""Checkpoints: safetensors and JSON, complete or absent, digested; the newest good one is found on start."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save

from tunesmith.console import say, warn
from tunesmith.errors import ResumeError
from tunesmith.files import DIGESTS, commit_folder, digest_folder, sweep
from tunesmith.model.adapter import adapter_tensors
from tunesmith.recipe import Keep
from tunesmith.training.state import TrainState

ADAPTER, OPTIMIZER, STATE = "adapter.safetensors", "optimizer.safetensors", "state.json"


def save_checkpoint(
    folder: Path, state: TrainState, decides: dict[str, Any], machine: dict[str, Any], keep: Keep
) -> Path:
    """Write folder/step-NNNNNN and delete what `keep` does not name.

    `decides` is what must be the same on resume, `machine` what must be the same for the same bits.
    """
    target = folder / f"step-{state.progress.step:06d}"

    def write(draft: Path) -> None:
        adapter = {name: tensor.contiguous().cpu() for name, tensor in adapter_tensors(state.model).items()}
        (draft / ADAPTER).write_bytes(save(adapter))  # save_file hides a full disk in an error of its own
        (draft / OPTIMIZER).write_bytes(save({n: t.cpu() for n, t in state.optimizer_tensors().items()}))
        numbers = {**state.numbers(), "decides": decides, "machine": machine}
        (draft / STATE).write_text(json.dumps(numbers, indent=1) + "\n")
        (draft / DIGESTS).write_text(json.dumps(digest_folder(draft), indent=1) + "\n")

    commit_folder(target, write)
    kept = {*checkpoints(folder)[-keep.last :], folder / f"step-{state.progress.best_step:06d}"}
    for old in set(checkpoints(folder)) - kept:
        shutil.rmtree(old)
    return target


def checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first. Drafts start with a dot, so they are never listed."""
    return sorted(folder.glob("step-*"))


def resume(folder: Path, state: TrainState, decides: dict[str, Any], machine: dict[str, Any]) -> None:
    """Load the newest good checkpoint into `state`, if there is one.

    A torn checkpoint is passed over. One of other settings is refused: raises ResumeError naming each of them.
    """
    sweep(folder)
    for checkpoint in reversed(checkpoints(folder)):
        if not is_whole(checkpoint):
            warn(f"{checkpoint.name} is damaged and is passed over")
            checkpoint.rename(folder / f".damaged-{checkpoint.name}-{time.time_ns()}")
            continue
        numbers = json.loads((checkpoint / STATE).read_text())
        _refuse_others(checkpoint, numbers["decides"], decides)
        state.load(load_file(checkpoint / ADAPTER), load_file(checkpoint / OPTIMIZER), numbers)
        state.progress.interruptions += 1
        say(f"train: going on from {checkpoint.name}")
        if changed := changes(numbers["machine"], machine):
            state.progress.notes.append("state-exact, not bit-exact: " + "; ".join(changed))
            warn(f"the resumed run is {state.progress.notes[-1]}")
        return


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


def is_whole(checkpoint: Path) -> bool:
    """Whether every file of a checkpoint has the bytes that were written. A disk that cannot be read is an OSError."""
    try:
        digests = json.loads((checkpoint / DIGESTS).read_text())
    except (FileNotFoundError, ValueError):
        return False
    return bool(digests == digest_folder(checkpoint))


def _refuse_others(checkpoint: Path, was: dict[str, Any], now: dict[str, Any]) -> None:
    if changed := changes(was, now):
        raise ResumeError(
            "this run was trained with other settings:\n  - " + "\n  - ".join(changed),
            fix="set them back, give the recipe another name, or delete the run's checkpoints to start again",
            where=str(checkpoint),
        )
