"""Checkpoints: safetensors and JSON, complete or absent, digested; the newest good one is found on start.

Only the files that digests.json lists count; what other programs leave in a checkpoint or beside it changes nothing.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save

from tunesmith.console import say, warn
from tunesmith.errors import ResumeError
from tunesmith.files import DIGESTS, aside, commit_folder, digest_folder, discard
from tunesmith.model.adapter import adapter_tensors
from tunesmith.recipe import Keep
from tunesmith.runs import checkpoint_folders, sweep_checkpoints
from tunesmith.training.saved import ADAPTER, OPTIMIZER, STATE, changes, damage, is_own, refuse_others
from tunesmith.training.state import TrainState


def save_checkpoint(
    folder: Path, state: TrainState, decides: dict[str, Any], machine: dict[str, Any], keep: Keep, planned: int = 0
) -> Path:
    """Write folder/step-NNNNNN and delete what `keep` does not name.

    `decides` is what must be the same on resume, `machine` what must be the same for the same bits;
    `planned`: steps of the whole training, for who looks at the run.
    """
    target = folder / f"step-{state.progress.step:06d}"

    def write(draft: Path) -> None:
        adapter = {name: tensor.contiguous().cpu() for name, tensor in adapter_tensors(state.model).items()}
        (draft / ADAPTER).write_bytes(save(adapter))  # save_file hides a full disk in an error of its own
        (draft / OPTIMIZER).write_bytes(save({n: t.cpu() for n, t in state.optimizer_tensors().items()}))
        numbers = {**state.numbers(), "decides": decides, "machine": machine, "planned_steps": planned}
        (draft / STATE).write_text(json.dumps(numbers, indent=1) + "\n")
        (draft / DIGESTS).write_text(json.dumps(digest_folder(draft), indent=1) + "\n")

    commit_folder(target, write, _refuse_foreign)
    saved = checkpoint_folders(folder)
    kept = {*saved[-keep.last :], folder / f"step-{state.progress.best_step:06d}"}
    for old in saved:
        if old not in kept and is_own(old):
            discard(old, old)
    return target


def resume(folder: Path, state: TrainState, decides: dict[str, Any], machine: dict[str, Any]) -> None:
    """Load the newest good checkpoint into `state`, if there is one.

    A damaged one is passed over, and kept under another name. Raises ResumeError for one of other settings, naming each
    of them, and if there are checkpoints and none of them is good: then nothing is changed, and nothing begins anew.
    """
    sweep_checkpoints(folder)
    _name_strangers(folder)
    damaged: list[tuple[Path, str]] = []
    for checkpoint in reversed(checkpoint_folders(folder)):
        if reason := damage(checkpoint):
            damaged.append((checkpoint, reason))
            continue
        numbers = json.loads((checkpoint / STATE).read_text())
        refuse_others(checkpoint, numbers["decides"], decides)
        _put_aside(damaged)
        state.load(load_file(checkpoint / ADAPTER), load_file(checkpoint / OPTIMIZER), numbers)
        state.progress.interruptions += 1
        say(f"train: going on from {checkpoint.name}")
        if changed := changes(numbers["machine"], machine):
            state.progress.notes.append("state-exact, not bit-exact: " + "; ".join(changed))
            warn(f"the resumed run is {state.progress.notes[-1]}")
        return
    if damaged:
        raise ResumeError(
            "no checkpoint of this run is whole, so training would begin anew:\n  - "
            + "\n  - ".join(f"{checkpoint.name}: {reason}" for checkpoint, reason in damaged),
            fix="put back what is missing, from a copy; or, to begin anew, delete these folders",
            where=str(folder),
        )


def _put_aside(damaged: Sequence[tuple[Path, str]]) -> None:
    """Give damaged checkpoints a hidden name, so that training can save those steps again; they are never deleted."""
    for checkpoint, reason in damaged:
        kept_as = aside(checkpoint)
        warn(f"{checkpoint.name} is damaged ({reason}) and is passed over; it is kept as {kept_as.name}")
        checkpoint.rename(kept_as)


def _name_strangers(folder: Path) -> None:
    """Say which names look like checkpoints and are none, as drives that synchronise make them."""
    none = sorted({path.name for path in folder.glob("step-*")} - {path.name for path in checkpoint_folders(folder)})
    if none:
        warn(f"no checkpoints, and left alone: {', '.join(none)} (a checkpoint is a folder such as step-000040)")


def _refuse_foreign(target: Path) -> None:
    """Raise ResumeError if something else than a checkpoint of ours has the name of one."""
    if os.path.lexists(target) and not is_own(target):
        raise ResumeError(f"{target} is in the way: tunesmith did not make it", fix="move it elsewhere, and go on")
