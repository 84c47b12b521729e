"""VERB run: the stages in order; what stands is skipped without importing what would do it."""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence

from tunesmith.console import say
from tunesmith.errors import ResumeError
from tunesmith.recipe import Recipe
from tunesmith.recipe_file import dump_recipe
from tunesmith.runs import Record, Run, write_file, write_manifest
from tunesmith.stages import NEEDS, keep_autos, stands
from tunesmith.weights.locate import LocatedBase, locate_base

Work = Callable[[Recipe, Run, LocatedBase], tuple[Record, bool]]
"""What a verb does: commits its folder, and returns its record."""
VERBS = tuple(NEEDS)


def run_stages(recipe: Recipe, run: Run, verbs: Sequence[str], load: Callable[[str], Work]) -> None:
    """Do the stages of `verbs` that do not stand.

    `load` imports and returns what does a stage; it is called only for a stage with work to do.
    Raises ResumeError if another process works in the run folder or the run was made with another recipe, and
    SystemExit where training pauses: later stages wait for the next call.
    """
    base = locate_base(recipe.base)
    with locked(run), recipe_written(keep_autos(recipe, run), run):
        for verb in verbs:
            recipe = keep_autos(recipe, run)  # train decides them
            if stands(verb, recipe, run, base.digest):
                say(f"{verb:<9} stands")
                continue
            started = time.monotonic()
            try:
                load(verb)(recipe, run, base)
            finally:
                write_manifest(run)
            say(f"{verb:<9} done in {time.monotonic() - started:.1f} s")
        write_manifest(run)  # again where a run was killed between a stage and its manifest


@contextlib.contextmanager
def recipe_written(recipe: Recipe, run: Run) -> Iterator[None]:
    """recipe.yaml of the run says `recipe`; a recipe that is refused does not replace the one the run was made with."""
    before = run.recipe.read_text() if run.recipe.exists() else None
    wanted = dump_recipe(recipe)
    if before != wanted:
        write_file(run.recipe, wanted)
    try:
        yield
    except ResumeError:
        if before is not None and run.recipe.read_text() == wanted:  # else train has decided its `auto` fields
            write_file(run.recipe, before)
        raise


@contextlib.contextmanager
def locked(run: Run) -> Iterator[None]:
    """One process at a time in a run folder; the lock dies with its process. Raises ResumeError naming the other."""
    run.path.mkdir(parents=True, exist_ok=True)
    with (run.path / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise ResumeError(
                f"process {file.read().strip()} is already working in this run folder",
                fix="wait for it or stop it, or put this run elsewhere with --run-dir",
                where=str(run.path),
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def ending(recipe: Recipe, run: Run) -> str:
    """Where everything is, and what to type next."""
    files = ", ".join(run.gguf_file(recipe.name, kind).name for kind in recipe.export.gguf)
    rows = {
        "adapter": f"{run.adapter} (PEFT format)",
        "model": f"{run.model} (merged, Hugging Face format)",
        "GGUF": f"{run.gguf} ({files}, proof.json)",
        "answers": f"{run.evaluation}",
        "losses": f"{run.loss_plot}, {run.metrics}",
    }
    lines = [f"{recipe.name} is ready:", *(f"  {name:<8} {where}" for name, where in rows.items())]
    lines += [f"next: tunesmith chat {run.path}", f"      tunesmith compare {run.path} base"]
    return "\n".join(lines)
