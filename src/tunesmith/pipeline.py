"""VERB run: the stages in order; what stands is skipped without importing what would do it."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import filelock

from tunesmith.console import say
from tunesmith.decides import as_begun, stands
from tunesmith.errors import ResumeError
from tunesmith.gguf.read import convert
from tunesmith.recipe import Recipe
from tunesmith.runs import Record, Run, read_record, write_manifest
from tunesmith.stages import STAGES, Stage
from tunesmith.stale import may_be_kept
from tunesmith.training.stop import Paused
from tunesmith.weights.locate import LocatedBase, locate_base

Work = Callable[[Recipe, Run, LocatedBase], tuple[Record, bool]]
"""What a stage does: commits its folder, and returns its record."""


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    run: Run
    recipe: Recipe
    """As resolved."""
    paused: Paused | None = None
    """Where training stopped before its end; later stages wait for the next call. None: all is done."""

    @property
    def done(self) -> bool:
        """Whether every stage that was asked for stands."""
        return self.paused is None

    def __fspath__(self) -> str:
        return str(self.run.path)

    def __repr__(self) -> str:  # what a notebook shows
        return str(self)

    def __str__(self) -> str:
        if self.paused:
            return f"{self.recipe.name} is paused at step {self.paused.step}; the same call goes on"
        return ending(self.recipe, self.run)


def run_stages(
    recipe: Recipe, run: Run, stages: Sequence[Stage] = STAGES, load: Callable[[Stage], Work] = Stage.load_work
) -> Result:
    """Do the stages that do not stand, in order.

    `load` imports and returns what does a stage; it is called only for a stage with work to do.
    Raises ResumeError if another process works in the run folder or the run was made with another recipe.
    """
    base = locate_base(recipe.base, convert)
    with locked(run):
        recipe = as_begun(recipe, run)
        for stage in stages:
            record = read_record(run.path / stage.folder)
            if stands(stage, recipe, run, base.digest) and not (record and record.unproved):
                say(f"{stage.verb:<9} stands")
                continue
            started = time.monotonic()
            try:
                _, done = load(stage)(recipe, run, base)
            except Paused as paused:
                return Result(run, recipe, paused)
            finally:
                write_manifest(run)
            recipe = as_begun(recipe, run)  # train has decided each auto
            if may_be_kept(recipe, run, stage):
                run.keep_recipe(recipe)
            say(
                f"{stage.verb:<9} {'done' if done else 'stands, looked at again'} in {time.monotonic() - started:.1f} s"
            )
        if read_record(run.data) and may_be_kept(recipe, run, stages[-1]):
            run.keep_recipe(recipe)  # cadence and the like, which remake nothing
        write_manifest(run)  # again where a run was killed between a stage and its manifest
    return Result(run, recipe)


@contextlib.contextmanager
def locked(run: Run) -> Iterator[None]:
    """One process at a time in a run folder; the lock dies with its process. Raises ResumeError naming the other."""
    run.path.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(run.lock, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        other = run.lock.read_text().strip()
        raise ResumeError(
            f"process {other or 'unknown'} is already working in this run folder",
            fix="wait for it or stop it, or put this run elsewhere with --run-dir",
            where=str(run.path),
        ) from error
    try:
        run.lock.write_text(str(os.getpid()))
        yield
    finally:
        lock.release()


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
