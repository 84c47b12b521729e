"""VERB run: the stages in order; what stands is skipped without importing what would do it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tunesmith.console import say
from tunesmith.data.hub import resolve_commit
from tunesmith.decides import (
    as_begun,
    at_commits,
    data_needs_now,
    gone_base_digest,
    gone_sources,
    prompts_kept,
    read_prompts,
    sources_of,
    stands,
    trained_settings,
)
from tunesmith.ending import ending
from tunesmith.errors import BaseError, RecipeError
from tunesmith.files import DRAFT, beside, remove
from tunesmith.fresh import NewStart
from tunesmith.gguf.read import convert
from tunesmith.gguf.supported import supported
from tunesmith.lock import locked
from tunesmith.recipe import Recipe
from tunesmith.record import Record, is_to_prove, read_record
from tunesmith.room import make_sure
from tunesmith.runs import Run, write_manifest
from tunesmith.stages import STAGES, Stage
from tunesmith.stale import keep_rows_of_checkpoints, may_be_kept
from tunesmith.training.mirror import Mirror
from tunesmith.training.saved import refuse_other_settings
from tunesmith.training.stop import Paused, begun_anew
from tunesmith.weights.locate import LocatedBase, locate_base

Work = Callable[[Recipe, Run, LocatedBase], tuple[Record, bool]]
"""What a stage does: commits its folder, and returns its record."""
ASK_BEFORE = ("prepare", "train", "merge")
"""Stages before which a base is asked whether it can go the whole way; the later ones look at what they are given."""


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    run: Run
    recipe: Recipe
    """As resolved."""
    paused: Paused | None = None
    """Where training stopped before its end; later stages wait for the next call. None: all is done."""
    anew: bool = False
    """Whether this call began anew: the next one must not."""

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
            without = ", without fresh" if self.anew else ""
            return f"{self.recipe.name} is paused at step {self.paused.step}; the same call goes on{without}"
        return ending(self.recipe, self.run)


def run_stages(
    recipe: Recipe, run: Run, stages: Sequence[Stage] = STAGES, load: Callable[[Stage], Work] = Stage.load_work,
    anew: NewStart | None = None,
) -> Result:  # fmt: skip
    """Do the stages that do not stand, in order.

    `load` imports and returns what does a stage; it is called only for a stage with work to do. `anew`: without what
    was trained, which is deleted once the rows stand and it is known that training can begin.
    Raises ResumeError if another process works in the run folder, if that is a folder of the user's, or if the run was
    made with another recipe.
    """
    run.refuse_strangers()
    asked, begun = recipe, as_begun(recipe, run)
    made = () if anew else stages
    mirror = mirror_of(asked, run)
    recipe, base = _with_base(asked, begun, run, made)
    with locked(run):
        if mirror and not anew:
            mirror.fetch()
        if (now := as_begun(asked, run)) != begun:  # another process began it while the base was fetched
            recipe, base = _with_base(asked, now, run, made)
        _refuse_unwanted(stages, recipe)
        if _wanted(stages, recipe)[-1].folder == run.evaluation.name and not prompts_kept(recipe, run):
            read_prompts(recipe)  # what is wrong with them is said now, not after hours of training
        if anew:
            _look_ahead(stages[0], recipe, run, base)
            anew.agree(mirror)
        for index, stage in enumerate(stages):
            if not stage.is_wanted(recipe):
                if stage.gguf:
                    say(f"{stage.verb:<9} left out: no GGUF was asked for")
                continue
            if anew and stage.folder == run.adapter.name:
                recipe = _without_training(anew, stages[index:], recipe, asked, run, base)
            is_made = stands(stage, recipe, run, base.digest)
            if is_made and not is_to_prove(run.path / stage.folder):
                say(f"{stage.verb:<9} already done{_gone(stage, recipe, run)}")
                remove(beside(run.path / stage.folder, DRAFT))  # begun with other settings, and of no use now
                continue
            recipe = _ready(stage, recipe, run, base)
            _refuse_other_training(stage, recipe, run, base, anew)
            if not is_made:
                make_sure(_wanted(stages[index:], recipe), recipe, run, base, anew.frees if anew else 0)
            try:
                with begun_anew(anew is not None):
                    recipe = _done(stage, load, recipe, run, base)
            except Paused as paused:
                return Result(run, recipe, paused, anew is not None)
        if read_record(run.data) and may_be_kept(recipe, run, stages[-1]):
            run.keep_recipe(recipe)  # cadence and the like, which remake nothing
        write_manifest(run)  # again where a run was killed between a stage and its manifest
    return Result(run, recipe)


def mirror_of(recipe: Recipe, run: Run, forks: bool = False) -> Mirror | None:
    """The mirror that the recipe asks for, which holds nothing or this run. Raises ResumeError for another one's."""
    if not recipe.checkpoint.mirror:
        return None
    mirror = Mirror(recipe.checkpoint.mirror, run, recipe.name)
    mirror.refuse_other_run(recipe, forks)
    return mirror


def _done(stage: Stage, load: Callable[[Stage], Work], recipe: Recipe, run: Run, base: LocatedBase) -> Recipe:
    """Do one stage; the recipe as it is then, which the run keeps. Raises Paused."""
    started = time.monotonic()
    say(f"{stage.verb}: starting")  # what it imports takes seconds
    try:
        _, now = load(stage)(recipe, run, base)
    finally:
        write_manifest(run)
    recipe = as_begun(recipe, run)  # train has decided each auto
    if may_be_kept(recipe, run, stage):
        run.keep_recipe(recipe)
    how = "done" if now else "already done, its proof was tried again"
    say(f"{stage.verb:<9} {how} in {time.monotonic() - started:.1f} s")
    return recipe


def _gone(stage: Stage, recipe: Recipe, run: Run) -> str:
    """What the rows were made from and is no longer here: the run goes on without."""
    gone = gone_sources(recipe, run) if stage.folder == run.data.name else []
    return f" (without {', '.join(source.path for source in gone)}, not on this machine)" if gone else ""


def _with_base(
    asked: Recipe, begun: Recipe, run: Run, stages: Sequence[Stage] = ()
) -> tuple[Recipe, LocatedBase]:  # fmt: skip
    """The base, and the recipe with its commit: a push to the Hub between two calls changes nothing in a run.

    A base that cannot go the whole way is refused before its weights are fetched. One that is no longer there is
    needed for nothing where all `stages` stand.
    """
    try:
        base = locate_base(begun.base, convert, None if read_record(run.data) else partial(supported, recipe=begun))
    except BaseError:
        digest = gone_base_digest(begun, run)
        if not digest or not stages or not _all_stand(_wanted(stages, begun), begun, run, digest):
            raise
        say(f"base {begun.base} is not on this machine, and nothing is to be made from it")
        return begun, LocatedBase(begun.base, Path(begun.base), digest, None, None)
    if base.revision is None:
        return begun, base
    if "@" in asked.base and asked.base != begun.base:
        say(f"base {asked.base}: this run began with commit {base.revision} and goes on with it")
    return begun.model_copy(update={"base": f"{base.name}@{base.revision}"}), base


def _all_stand(stages: Sequence[Stage], recipe: Recipe, run: Run, base_digest: str) -> bool:
    """Whether nothing of these stages is to be done, not even a proof."""
    return all(
        read_record(folder := run.path / stage.folder) is not None
        and not is_to_prove(folder)
        and stands(stage, recipe, run, base_digest)
        for stage in stages
    )


def _wanted(stages: Sequence[Stage], recipe: Recipe) -> list[Stage]:
    """The stages that this recipe asks for."""
    return [stage for stage in stages if stage.is_wanted(recipe)]


def _refuse_unwanted(stages: Sequence[Stage], recipe: Recipe) -> None:
    """A verb that makes or needs GGUF files has nothing to do where the recipe asks for none, nor has `score`."""
    if not _wanted(stages, recipe):
        if stages[0].scores:
            fix = "write `data: {select: {by: difficulty}}` in the recipe, or likeness"
            raise RecipeError("data.select asks for no scores, so there is nothing to score", fix=fix)
        fix = "name types in the recipe, as in `export: {gguf: [F16, Q8_0, Q4_K_M]}`"
        raise RecipeError(f"no GGUF was asked for, which {stages[0].verb} needs: export.gguf is empty", fix=fix)


def _ready(stage: Stage, recipe: Recipe, run: Run, base: LocatedBase) -> Recipe:
    """The recipe with the commits of its Hub data sets, once it is known that the base can go the whole way."""
    first = stage.folder == run.data.name
    if stage.verb in ASK_BEFORE:
        rows = None if first else read_record(run.data)
        supported(base.folder, recipe, rows.counts.get("longest") if rows else None)
    return at_commits(recipe, resolve_commit) if first else recipe


def _refuse_other_training(
    stage: Stage, recipe: Recipe, run: Run, base: LocatedBase, anew: NewStart | None
) -> None:  # fmt: skip
    """Raise ResumeError, before torch is loaded, if the run's checkpoints began with other rows or settings.

    A new start does without these checkpoints.
    """
    if anew:
        return
    if stage.folder == run.data.name and not stands(stage, recipe, run, base.digest):
        keep_rows_of_checkpoints(run, data_needs_now(recipe, base.digest), sources_of(recipe))
    if stage.folder == run.scores.name:  # which would be made for nothing
        refuse_other_settings(run.checkpoints, {"settings": trained_settings(recipe)})
    if stage.folder == run.adapter.name:
        settings, inputs = stage.load_decides()(recipe, run, base.digest)
        refuse_other_settings(run.checkpoints, {"settings": settings, "inputs": inputs})


def _without_training(
    anew: NewStart, stages: Sequence[Stage], recipe: Recipe, asked: Recipe, run: Run, base: LocatedBase
) -> Recipe:  # fmt: skip
    """Delete what was trained, now that the rows stand and `stages`, from train on, can begin; the recipe for them.

    What is deleted is room for what is to be made.
    """
    _look_ahead(stages[0], recipe, run, base)
    if anew.frees:
        make_sure(_wanted(stages, recipe), recipe, run, base, anew.frees)
    return anew.delete(recipe, asked)


def _look_ahead(stage: Stage, recipe: Recipe, run: Run, base: LocatedBase) -> None:
    """What would end a stage before its work is said before anything is deleted for it."""
    is_made = stands(stage, recipe, run, base.digest)  # of train: the rows are there
    recipe = _ready(stage, recipe, run, base)
    if stage.folder == run.data.name and not is_made:
        data_needs_now(recipe, base.digest)
