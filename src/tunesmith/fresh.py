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
from tunesmith.stages import STAGES
from tunesmith.stale import may_be_kept
from tunesmith.training.mirror import Mirror
from tunesmith.training.saved import is_own

Sure = Callable[[str], bool]
"""Asks the user, and says whether they want it."""


class NewStart:
    """What is to be deleted for a new start: the user is asked before anything is done, and it goes when training can
    begin, so that rows that cannot be made leave the run as it was.
    """

    def __init__(self, run: Run, yes: bool, ask: Sure) -> None:
        """`yes`: nobody is asked."""
        self.run = run
        self._yes, self._ask = yes, ask
        self._found: list[Path] = []
        self._mirror: Mirror | None = None

    @property
    def frees(self) -> int:
        """Bytes that it deletes, as the user was told."""
        return sum(map(bytes_of, self._found))

    def agree(self, mirror: Mirror | None = None) -> None:
        """List what will be deleted, here and in a mirror, and ask; nothing where nothing was trained. Only under the
        run's lock.

        Raises ResumeError if the user does not want it, cannot be asked, or has put something of their own there.
        """
        self._found, self._mirror = _trained(self.run), mirror
        if not self._found and not mirror:
            return
        elsewhere = [f"  and the checkpoints in {mirror.place}"] if mirror else []
        lines = [f"{bytes_of(path) / 1e6:9.1f} MB  {path}" for path in self._found]
        when = "once its rows are known to stand"
        say("\n".join([f"--fresh deletes what was trained in {self.run.path}, {when}:", *lines, *elsewhere]))
        if not self._yes and not sys.stdin.isatty():
            what = f"--fresh would delete {len(self._found)} folders and files of {self.run.path}"
            raise ResumeError(f"{what}, and nobody can be asked", fix="add --yes")
        if not self._yes and not self._ask("Delete these?"):
            raise ResumeError("nothing was deleted, and nothing is begun anew", fix="leave out --fresh to go on")

    def delete(self, recipe: Recipe, asked: Recipe) -> Recipe:
        """Delete what the user has agreed to; the recipe to train with: what `auto` means in `asked` is decided anew.

        Each folder goes whole, what was made last first: a kill leaves a run that opens, and the same command goes on.
        """
        if self._mirror:
            self._mirror.begin_anew()  # first: a new training would go on from these later
        for path in self._found:
            if path.is_dir():
                discard(path, path)
            else:
                remove(path)
        recipe = _undecided(recipe, asked)
        if self.run.recipe.exists():
            kept = recipe if may_be_kept(recipe, self.run, STAGES[0]) else _undecided(kept_recipe(self.run), asked)
            self.run.keep_recipe(kept)
        if self._found:
            write_manifest(self.run)
            say("begun anew; from here on leave out --fresh: the run goes on where it was stopped")
        self._found = []
        return recipe


def _undecided(recipe: Recipe, asked: Recipe) -> Recipe:
    """A recipe with each `auto` that is asked for as it was before a machine that trained decided it."""
    autos = {name: "auto" for name in AUTOS if getattr(asked.train, name) == "auto"}
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=autos)})


def _trained(run: Run) -> list[Path]:
    """The folders and files of training and of all stages after it, the last stage's first.

    Raises ResumeError if one of them is, or holds, what tunesmith did not make.
    """
    found = []
    for folder in reversed([folder for folder in run.stage_folders if folder not in (run.data, run.scores)]):
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
