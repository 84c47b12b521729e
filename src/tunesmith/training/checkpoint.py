"""Checkpoints: safetensors and JSON, complete or absent, digested; the newest good one is found on start.

Only the files that digests.json lists count; what other programs leave in a checkpoint or beside it changes nothing.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from tunesmith.console import say, warn
from tunesmith.errors import ResumeError
from tunesmith.files import aside, commit_folder, discard
from tunesmith.model.adapter import tensors_digest
from tunesmith.recipe import Keep
from tunesmith.runs import checkpoint_folders, checkpoint_name, step_of, sweep_checkpoints
from tunesmith.training.saved import (
    ADAPTER,
    OPTIMIZER,
    changes,
    is_own,
    needs_bits,
    read_state,
    refuse_others,
    to_keep,
    why_unfit,
)
from tunesmith.training.saved import (
    best_step as best_by,
)
from tunesmith.training.snapshot import Snapshot
from tunesmith.training.state import TrainState

Passed = list[tuple[Path, str]]
"""Checkpoints that were passed over, and why."""


def save_checkpoint(folder: Path, snapshot: Snapshot) -> Path:
    """Write folder/step-NNNNNN, complete or not at all."""
    target = folder / checkpoint_name(snapshot.step)
    commit_folder(target, snapshot.write, _refuse_foreign)
    return target


def prune(folder: Path, keep: Keep, best_step: int) -> None:
    """Delete the checkpoints that `keep` does not name; what is not ours is never deleted."""
    kept = to_keep(folder, keep, best_step)
    for old in checkpoint_folders(folder):
        if old.name not in kept and is_own(old):
            discard(old, old)


def make_room(folder: Path, best_step: int) -> str:
    """Delete the oldest checkpoint that a resume does not need: neither the newest, nor the best by now or by then.

    Returns its name.
    """
    saved = [path for path in checkpoint_folders(folder) if is_own(path)]
    best = {best_step, *map(best_by, saved[-1:])}
    spare = [path for path in saved[:-1] if step_of(path.name) not in best]
    if not spare:
        return ""
    discard(spare[0], spare[0])
    return spare[0].name


def is_as_trained(checkpoint: Path, kept: Mapping[int, str]) -> bool:
    """Whether its adapter is the one that the trainer had after that step; so it is where no digest of it was `kept`.

    `kept`: as metrics.kept_digests has it.
    """
    digest = kept.get(step_of(checkpoint.name))
    return not digest or tensors_digest(load_file(checkpoint / ADAPTER)) == digest


def resume(folder: Path, state: TrainState, decides: dict[str, Any], machine: dict[str, Any]) -> None:
    """Load the newest good checkpoint into `state`, if there is one.

    One that is damaged, of a later version or of another run is passed over, and kept under another name. Raises
    ResumeError for other settings than those of all that can be read, naming each of them; if there are checkpoints and
    none of them is good; and, where bits are required, if the machine does not give the same: then nothing is changed,
    and nothing begins anew.
    """
    sweep_checkpoints(folder)
    _name_strangers(folder)
    passed, others = Passed(), list[tuple[Path, dict[str, Any]]]()
    for checkpoint in reversed(checkpoint_folders(folder)):
        if reason := why_unfit(checkpoint):
            passed.append((checkpoint, reason))
            continue
        numbers = read_state(checkpoint)
        if why := refuse_others(checkpoint, numbers["decides"], decides):
            passed.append((checkpoint, f"it is of another run: {'; '.join(why)}"))
            others.append((checkpoint, numbers["decides"]))
            continue
        changed = changes(numbers["machine"], machine)
        if changed and needs_bits():
            raise ResumeError(
                "the resumed run would not have the same bits:\n  - " + "\n  - ".join(changed),
                fix="go on under the conditions that it began with, or without --require-bits",
                where=str(checkpoint),
            )
        _put_aside(passed)
        state.load(load_file(checkpoint / ADAPTER), load_file(checkpoint / OPTIMIZER), numbers)
        state.progress.interruptions += 1
        say(f"train: going on from {checkpoint.name}")
        if changed:
            state.progress.notes.append("state-exact, not bit-exact: " + "; ".join(changed))
            warn(f"the resumed run is {state.progress.notes[-1]}")
        return
    if others:
        checkpoint, was = others[0]
        refuse_others(checkpoint, was, decides, raises=True)
    if passed:
        raise ResumeError(
            "no checkpoint of this run is whole, so training would begin anew:\n  - "
            + "\n  - ".join(f"{checkpoint.name}: {reason}" for checkpoint, reason in passed),
            fix="put back what is missing, from a copy; or, to begin anew, delete these folders",
            where=str(folder),
        )


def _put_aside(passed: Passed) -> None:
    """Give what was passed over a hidden name, so that training can save those steps again; it is never deleted."""
    for checkpoint, reason in passed:
        kept_as = aside(checkpoint)
        say_of = f"{checkpoint.name} is passed over: {reason}"
        try:
            checkpoint.rename(kept_as)
            warn(f"{say_of}; it is kept as {kept_as.name}")
        except OSError as error:
            warn(f"{say_of}; it stays where it is ({error.strerror})")


def _name_strangers(folder: Path) -> None:
    """Say which names look like checkpoints and are none, as drives that synchronise make them."""
    none = sorted({path.name for path in folder.glob("step-*")} - {path.name for path in checkpoint_folders(folder)})
    if none:
        warn(f"no checkpoints, and left alone: {', '.join(none)} (a checkpoint is a folder such as step-000040)")


def _refuse_foreign(target: Path) -> None:
    """Raise ResumeError if something else than a checkpoint of ours has the name of one."""
    if os.path.lexists(target) and not is_own(target):
        raise ResumeError(f"{target} is in the way: tunesmith did not make it", fix="move it elsewhere, and go on")
