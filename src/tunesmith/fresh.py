"""A clean new start of a run's training: what was trained, and all that was made from it, is deleted; rows are kept."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from tunesmith.console import say
from tunesmith.decides import AUTOS, kept_recipe
from tunesmith.errors import ResumeError
from tunesmith.files import bytes_of, discard, is_clutter, remove
from tunesmith.recipe import Recipe
from tunesmith.runs import Run, checkpoint_folders, refuse_to_replace, write_manifest
from tunesmith.training.saved import is_own

Sure = Callable[[str], bool]
"""Asks the user, and says whether they want it."""


def begin_anew(run: Run, yes: bool, ask: Sure, recipe: Recipe) -> None:
    """Delete what was trained, once `yes` or the user says so; nothing where nothing was. Only under the run's lock.

    Each folder goes whole, what was made last first: a kill leaves a run that opens, and the same command goes on. What
    the `auto` of `recipe` means is decided anew. Raises ResumeError if the user does not want it, cannot be asked, or
    has put something of their own there.
    """
    found = _trained(run)
    if not found:
        return
    lines = [f"{bytes_of(path) / 1e6:9.1f} MB  {path}" for path in found]
    say("\n".join([f"--fresh deletes what was trained in {run.path}:", *lines]))
    if not yes and not sys.stdin.isatty():
        what = f"--fresh would delete {len(found)} folders and files of {run.path}, and nobody can be asked"
        raise ResumeError(what, fix="add --yes")
    if not yes and not ask("Delete these?"):
        raise ResumeError("nothing was deleted, and nothing is begun anew", fix="leave out --fresh to go on")
    for path in found:
        if path.is_dir():
            discard(path, path)
        else:
            remove(path)
    if run.recipe.exists():
        run.keep_recipe(_undecided(kept_recipe(run), recipe))
    write_manifest(run)
    say("begun anew; from here on leave out --fresh: the run goes on where it was stopped")


def _undecided(kept: Recipe, asked: Recipe) -> Recipe:
    """The run's recipe with each `auto` that is asked for as it was before a machine that trained decided it."""
    autos = {name: "auto" for name in AUTOS if getattr(asked.train, name) == "auto"}
    return kept.model_copy(update={"train": kept.train.model_copy(update=autos)})


def _trained(run: Run) -> list[Path]:
    """The folders and files of training and of all stages after it, the last stage's first.

    Raises ResumeError if one of them is, or holds, what tunesmith did not make.
    """
    found = []
    for folder in reversed([folder for folder in run.stage_folders if folder != run.data]):
        if os.path.lexists(folder):
            refuse_to_replace(folder)
            found.append(folder)
    saved = checkpoint_folders(run.checkpoints)
    for checkpoint in saved:
        if not is_own(checkpoint):
            what = f"{checkpoint} is damaged, or holds what tunesmith did not make"
            raise ResumeError(what, fix="move it elsewhere and type the same again")
    others = [path for path in run.checkpoints.glob("*") if path not in saved and not is_clutter(path.name)]
    found += [*reversed(saved)] if others else [run.checkpoints] if saved else []
    return [*found, *(file for file in (run.metrics, run.samples, run.loss_plot) if file.is_file())]
