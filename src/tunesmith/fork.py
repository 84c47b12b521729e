"""A new run from the adapter of another: --fork. Its ancestor/ keeps the weights it began with, and says whose.

With other settings or data a run is refused, since what comes out would be of neither; a fork is a run of its own,
and its record names the one before it.
"""

import shutil
from pathlib import Path
from typing import Any

from tunesmith.console import say
from tunesmith.decides import kept_recipe
from tunesmith.errors import ResumeError
from tunesmith.files import digest_file
from tunesmith.lock import locked
from tunesmith.pipeline import mirror_of
from tunesmith.recipe import LoraConfig, Recipe
from tunesmith.record import made_from, read_record, refuse_damaged
from tunesmith.runs import Run, checkpoint_folders, commit_stage, step_of
from tunesmith.training.saved import ADAPTER, read_state, why_unfit
from tunesmith.weights.peft_files import WEIGHTS

SHAPE = ("rank", "alpha", "targets")
"""Fields of `lora` without which the weights are not the same update."""


def fork(recipe: Recipe, run: Run, source: Run) -> None:
    """Give `run`, in which nothing was trained yet, the adapter that `source` has: of its end, or its best so far.

    Nothing where it has it already. Raises ResumeError where the source has none, where its LoRA is of another shape,
    and where `run` has begun from something else.
    """
    if source.path.resolve() == run.path.resolve():
        what = f"--fork {source.path} is the run itself"
        raise ResumeError(what, fix="give the new run another place with --run-dir, or another name in the recipe")
    gone = bool(source.why_none())
    if not read_record(run.ancestor) and (mirror := mirror_of(recipe, run, forks=True)):
        with locked(run):  # it may have begun on another machine
            mirror.fetch()
    if (begun := read_record(run.ancestor)) and _is_of(Path(begun.counts["run"]), source.path, gone):
        return  # that run may have got on since
    source.refuse_none()
    file, about = _adapter_of(source)
    _refuse_other_shape(recipe.lora, kept_recipe(source).lora)
    inputs = {"adapter": digest_file(file), "base": about.pop("base")}
    with locked(run):
        before = read_record(run.ancestor)
        if made_from(before, {}, inputs):
            return
        if before or checkpoint_folders(run.checkpoints) or read_record(run.adapter):
            raise ResumeError(
                f"{run.path} has begun already, {'from other weights' if before else 'without --fork'}",
                fix="leave out --fork to go on; or give the new run another place with --run-dir",
            )

        def copy(draft: Path) -> dict[str, Any]:
            shutil.copyfile(file, draft / ADAPTER)
            return about

        commit_stage(run.ancestor, {}, inputs, copy)
    say(f"fork: begins with the adapter of {source.path} after step {about['step']}")


def _is_of(began_with: Path, source: Path, gone: bool) -> bool:
    """Whether a fork began with this run's adapter; of one that is gone, by its name: another machine had it."""
    return began_with == source.resolve() or (gone and began_with.name == source.name)


def _adapter_of(source: Run) -> tuple[Path, dict[str, Any]]:
    """The file of a run's adapter, and what is said of it: its run, step, loss and base."""
    if record := read_record(source.adapter):
        refuse_damaged(source.adapter)
        counts = record.counts
        about = {"step": counts.get("best_step"), "held_out_loss": counts.get("held_out_loss")}
        return source.adapter / WEIGHTS, {"run": str(source.path.resolve()), **about, "base": record.inputs["base"]}
    whole = [path for path in checkpoint_folders(source.checkpoints) if not why_unfit(path)]
    if not whole:
        raise ResumeError(f"{source.path} has no adapter and no whole checkpoint", fix="name a run that was trained")
    state = read_state(whole[-1])
    best = state["progress"]["best_step"]
    taken = next((path for path in whole if step_of(path.name) == best), whole[-1])
    loss = state["progress"]["best_loss"] if step_of(taken.name) == best and best else None
    about = {"step": step_of(taken.name), "held_out_loss": loss, "base": state["decides"]["inputs"]["base"]}
    return taken / ADAPTER, {"run": str(source.path.resolve()), **about}


def _refuse_other_shape(now: LoraConfig, was: LoraConfig) -> None:
    changed = [f"lora.{n}: {getattr(was, n)} -> {getattr(now, n)}" for n in SHAPE if getattr(was, n) != getattr(now, n)]
    if changed:
        what = "an adapter of another shape cannot be gone on with:\n  - " + "\n  - ".join(changed)
        raise ResumeError(what, fix="set it as it was in the run that is forked; or begin without --fork")
