"""The Python API, four functions for notebooks and scripts: load_recipe, run, chat, compare. Each loads what it needs.

They raise TunesmithErrors, never end the interpreter, and leave its signals alone: Ctrl+C is a KeyboardInterrupt.
A recipe or a run may be named by its path, or by what an earlier call returned.
"""

import contextlib
import os
import re
import shlex
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from tunesmith.command import to_type
from tunesmith.errors import RecipeError, ResumeError, TunesmithError

if TYPE_CHECKING:
    from tunesmith.pipeline import Result
    from tunesmith.recipe import Recipe
    from tunesmith.release.space.verb import Wanted
    from tunesmith.runs import Run
    from tunesmith.server.handle import Chat, Served

Named = str | os.PathLike[str]
"""A file or folder. What `run` returns is one too: its run folder."""
MAX_PORT = 65535
EXAMPLES = ("Explain why the sky is blue.", "Write a short poem about the sea.", "How do I boil an egg?")
"""Questions to begin with, where nobody knows what the model was made for."""
LONGEST_EXAMPLE = 90  # letters: two lines of a phone
RUN_OR_GGUF = (
    "name the folder of a run, such as runs/NAME, or a GGUF file, or a Hub repository of such (USER/NAME-GGUF)"
)


def load_recipe(path: Named, changes: Sequence[str] = ()) -> "Recipe":
    """The recipe in a file, or of a run folder, with changes such as "train.lr=1e-4". Raises RecipeError."""
    return opened(path, changes)[0]


def run(
    recipe: "Recipe | Named", run_dir: Named | None = None, changes: Sequence[str] = (), *, fresh: bool = False,
    fork: Named | None = None,
) -> "Result":  # fmt: skip
    """Do all stages that do not stand, in `run_dir` (default: runs/NAME, or the run folder that is named).

    The result says whether all is done or training has paused; the same call goes on. A change of what holds for one
    call (train.stop_after, checkpoint, chat slots) is forgotten after it. `fresh` deletes what was trained, once the
    rows stand, and trains anew. `fork`: a run with whose adapter this one, which is new, begins. What is done is
    published where the recipe says publish.to. Raises TunesmithError.
    """
    from tunesmith.console import say
    from tunesmith.fresh import NewStart
    from tunesmith.pipeline import run_stages

    asked, place = opened(recipe, changes, run_dir)
    refuse_early(asked)
    if fork:
        forked(asked, place, fork)
    result = run_stages(asked, place, anew=NewStart(place, True, lambda _: True) if fresh else None)
    if said := published_as_asked(result):
        say(said)
    return result


def forked(recipe: "Recipe", run: "Run", source: Named) -> None:
    """Give a run in which nothing was trained yet the adapter of another one; nothing where it has it already."""
    from tunesmith.fork import fork
    from tunesmith.runs import Run

    fork(recipe, run, Run(Path(source)))


def chat(
    model: Named, port: int | None = None, *, gguf: str | None = None, threads: int = 2, changes: Sequence[str] = (),
    origins: Sequence[str] = (),
) -> "Chat":  # fmt: skip
    """Serve a run, a GGUF file, or one of the Hub (USER/NAME), on the CPU until the handle is closed, or Python ends.

    `port`: of 127.0.0.1, None takes any free one. `gguf`: a type of export.gguf instead of the recipe's evaluate.gguf.
    `changes`: to the recipe's chat section. `origins`: of web pages that may use it beside its own, such as
    https://hub.example. Raises TunesmithError.
    """
    from tunesmith.server.door import checked_door
    from tunesmith.server.handle import Chat

    if threads < 1:
        raise RecipeError(f"threads is {threads}, the chat needs at least 1", fix="leave it out, or say threads=2")
    if port is not None and not 0 <= port <= MAX_PORT:
        raise RecipeError(f"port is {port}, ports are 0 to {MAX_PORT}", fix="leave it out: any free one is taken")
    door = checked_door(port=port, origins=origins)
    return Chat(to_serve(Path(model), gguf, changes), threads=threads, door=door)


def compare(runs: Sequence[Named] | Named, report: Named | None = None, *, measure: bool = False) -> Path:
    """Write one page on the runs (`"base"`: the untouched base of the first) and print its table; returns its path.

    `report`: default report.html in the first run. `measure`: measure the speed of all anew, in turn, so that it can
    be compared. Raises TunesmithError.
    """
    from tunesmith.machine import need_utf8
    from tunesmith.runs import Run, write_manifest
    from tunesmith.study.compare import compare as write_report
    from tunesmith.study.named import first_run
    from tunesmith.study.report_file import refuse_other_file, report_file

    names = [os.fspath(name) for name in ([runs] if isinstance(runs, str | os.PathLike) else runs)]
    for name in names:
        need_utf8(Path(name).absolute())
        if Path(name).is_file():
            raise RecipeError(f"{name} is a file, and runs are compared", fix="name folders of runs, such as runs/NAME")
    first = Run(Path(first_run(names)))
    page = report_file(os.fspath(report)) if report else first.report
    speeds = None
    if measure:
        from tunesmith.study.measure import measure_speeds
        from tunesmith.study.models import read_models

        refuse_other_file(page)  # before minutes of measuring
        read_models(names, None)
        speeds = measure_speeds(names)
    path = write_report(names, page, speeds)
    if path.resolve() == first.report.resolve():
        write_manifest(first)
    return path


def data(
    target: "Recipe | Named", changes: Sequence[str] = (), run_dir: Named | None = None, *, rows: int | None = None,
    tell: Callable[[str], None] = print,
) -> None:  # fmt: skip
    """Write the page on a recipe's data and `tell` of it, once they stand: what is missing is prepared first.

    `rows`: print so many conversations. While another process works in the run, of the data that stand. Raises
    TunesmithError.
    """
    from tunesmith.decides import as_begun
    from tunesmith.gguf.read import convert
    from tunesmith.lock import process_in
    from tunesmith.pipeline import run_stages
    from tunesmith.record import read_record
    from tunesmith.runs import write_manifest
    from tunesmith.stages import STAGES
    from tunesmith.tokens.report import report, show
    from tunesmith.tokens.tokenizer import load_tokenizer
    from tunesmith.weights.locate import small_files

    recipe, run = opened(target, changes, run_dir)
    before = read_record(run.data)
    process = process_in(run) if before else None
    if process:
        tell(f"process {process} works in {run.path}; this is of the rows that it has")
    recipe = as_begun(recipe, run) if process else run_stages(recipe, run, STAGES[:1]).recipe
    folder = None
    with contextlib.suppress(TunesmithError):  # the base of an old run may be gone; its rows are not
        folder = small_files(recipe.base, convert)
    if read_record(run.data) == before:
        report(recipe, run, partial(load_tokenizer, folder) if folder else None, tell)
    else:  # prepare has told of them
        tell(f"report: {run.data_report}")
    if not process:
        write_manifest(run)
    if rows:
        show(run, folder, rows)


def publish(
    run: Named, changes: Sequence[str] = (), *, send: bool = False, overwrite: bool = False, cards: Named | None = None,
    typed: Sequence[str] = (),
) -> str:  # fmt: skip
    """What publishing a run on the Hub would do, as its recipe and `changes` (publish.to=USER/NAME) say; with `send` it
    is done, and the text says where it is.

    `overwrite`: also into repositories that this run did not make, or that have moved on. `cards`: a new folder for the
    cards, to be read before. `typed`: the changes as the command line has them. Raises TunesmithError.
    """
    from tunesmith.console import say
    from tunesmith.lock import locked
    from tunesmith.release.publish import make_plan, write_drafts
    from tunesmith.release.upload import upload

    recipe, place = opened(run, changes)
    place.refuse_none()
    with locked(place):
        plan = make_plan(recipe, place, changes)
        if cards:
            write_drafts(plan, Path(cards))
        lines = list(plan.lines())
        if send:
            say("\n".join(lines))
            return "\n".join(upload(plan, overwrite))
    read = f"cards: {cards}" if cards else "to read the cards first: --cards FOLDER"
    sets = [word for change in changes for word in ("--set", change)]
    command = to_type("publish", place.path, *(typed or sets), "--yes")
    return "\n".join(["nothing is sent; this would be published:", *lines, read, f"to do it: {command}"])


def examine(
    recipe: Path | None, changes: Sequence[str], run_dir: Path | None, as_json: bool, show: Callable[[str], None]
) -> int:
    """Show what works on this machine, and what a recipe needs of it; the exit code. Raises RecipeError."""
    from tunesmith.doctor import Asked, doctor

    if recipe is None and (changes or run_dir):
        option = "--set changes a recipe" if changes else "--run-dir is where a recipe runs"
        fix = f"name it: `tunesmith doctor RECIPE {'--set' if changes else '--run-dir'} ...`"
        raise RecipeError(f"{option}, and none is named", fix=fix)
    asked = Asked(*opened(recipe, changes, run_dir)) if recipe else None
    return doctor(asked, as_json, show, shutil.get_terminal_size().columns)


def refuse_early(recipe: "Recipe") -> None:
    """Raise TunesmithError, before hours of work, for what would keep a run from being published as publish.to says."""
    if recipe.publish.to:
        from tunesmith.release.hub_client import HubClient
        from tunesmith.release.publish import refuse_terms

        HubClient()
        refuse_terms(recipe)


def published_as_asked(result: "Result") -> str:
    """Publish a run that has ended where its recipe says publish.to; what is to be said, nothing where it does not."""
    if not (result.done and result.recipe.publish.to):
        return ""
    from tunesmith.lock import locked
    from tunesmith.release.publish import make_plan
    from tunesmith.release.upload import stands_published, upload

    with locked(result.run):
        plan = make_plan(result.recipe, result.run)
        done = [f"{each.id} is published already" for each in plan.repositories] if stands_published(plan) else []
        return "\n".join(done or upload(plan))


def opened(target: "Recipe | Named", changes: Sequence[str] = (), run_dir: Named | None = None) -> "tuple[Recipe, Run]":
    """The recipe and run folder that are named: by a recipe, its file, or a run folder with its recipe.yaml."""
    from tunesmith.decides import kept_recipe
    from tunesmith.machine import need_utf8
    from tunesmith.recipe import Recipe
    from tunesmith.recipe_file import read_recipe, with_changes
    from tunesmith.runs import Run

    changes = [changes] if isinstance(changes, str) else changes
    folder = None
    if isinstance(target, Recipe):
        recipe, file = with_changes(target, changes), target
    else:
        path = Path(target)
        need_utf8(path.absolute())
        if path.is_dir():
            folder, path = path, path / "recipe.yaml"
            if why := Run(folder).why_none():
                raise RecipeError(why, fix="name a recipe or a folder under runs/")
            file = kept_recipe(Run(folder))  # what is wrong with it is not the user's doing
            recipe = read_recipe(path, changes) if changes else file
        else:
            recipe = read_recipe(path, changes)
            file = read_recipe(path) if changes else recipe
    place = Path(run_dir or folder or Path("runs") / recipe.name)
    need_utf8(place.absolute())
    return recipe, Run(place, file if changes else None)


def to_serve(model: Path, gguf: str | None, changes: Sequence[str], *, alone: bool = True) -> "Served":
    """The GGUF file that `model` names, what it is called, and how it is spoken to; what of it is old is said.

    `alone`: this machine alone sees the page, so that it may show questions of the data.

    Raises RecipeError for what is neither a run nor a file, or no type; ResumeError for one that the run does not have.
    """
    from tunesmith.machine import need_utf8
    from tunesmith.recipe import ChatConfig, GgufType
    from tunesmith.server.handle import Served

    need_utf8(model)
    if file := _from_hub(model, gguf, changes):
        return Served(file, model.name.partition("@")[0], ChatConfig(), own_sampling=True, examples=EXAMPLES)
    if gguf is not None and gguf not in (types := get_args(GgufType)):
        raise RecipeError(f"{gguf or repr(gguf)} is no type of GGUF file", fix=f"choose one of {', '.join(types)}")
    if model.is_file() and model.suffix not in (".yaml", ".yml"):
        if changes or gguf:
            raise RecipeError("a GGUF file has no recipe to change or choose from", fix="leave out --set and --gguf")
        return Served(model, model.stem, ChatConfig(), own_sampling=True, examples=EXAMPLES)
    _refuse_no_run(model)
    recipe, run = opened(model, changes)
    if not (recipe.export.gguf or gguf):
        fix = f"name types in export.gguf in {run.recipe}, then type `tunesmith run {shlex.quote(str(model))}`"
        raise RecipeError("no GGUF was asked for, which the chat needs: export.gguf is empty", fix=fix)
    file = run.gguf_file(recipe.name, gguf or recipe.evaluate.gguf)
    if not file.is_file():
        lora = run.adapter_gguf(recipe.name)
        known = ", ".join(found.name for found in sorted(run.gguf.glob("*.gguf")) if found != lora)
        wanted = gguf or recipe.evaluate.gguf
        wider = ",".join([*recipe.export.gguf, wanted])
        more = "" if wanted in recipe.export.gguf else f" --set 'export.gguf=[{wider}]'"
        make = f"type `tunesmith run {shlex.quote(str(model))}{more}` to make"
        fix = f"choose one with --gguf, or {make} what is missing" if known else f"{make} it"
        raise ResumeError(f"there is no {file}; this run has {known or 'no GGUF file'}", fix=fix)
    _say_what_is_old(recipe, run, file, changes)
    return Served(file, recipe.name, recipe.chat, examples=_examples(recipe, run if alone else None))


def _examples(recipe: "Recipe", run: "Run | None") -> tuple[str, ...]:
    """Questions that the model was made for: its recipe's own prompts, or those of the held-out rows of a run."""
    from tunesmith.decides import read_prompts
    from tunesmith.evaluation.answered import held_out_answers

    prompts: Sequence[str] = ()
    if recipe.evaluate.prompts != "default":
        with contextlib.suppress(TunesmithError):  # the file is gone: it is not needed to chat
            prompts = read_prompts(recipe)
    elif run:
        prompts = [row["question"] for row in held_out_answers(run.evaluation)]
    short = dict.fromkeys(prompt for prompt in prompts if len(prompt) <= LONGEST_EXAMPLE)
    return tuple(short)[: len(EXAMPLES)] or EXAMPLES


def _from_hub(model: Path, gguf: str | None, changes: Sequence[str]) -> Path | None:
    """The GGUF file of a Hub repository; None for what is none, such as a run that is misspelt."""
    named = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", str(model), re.ASCII)
    if not named or model.exists() or model.parent.exists():
        return None
    try:
        from tunesmith.weights.hub_gguf import fetch_gguf
    except ImportError:  # huggingface_hub comes with the extra `train`
        return None
    if changes:
        raise RecipeError("a GGUF file has no recipe to change", fix="leave out --set")
    return fetch_gguf(named[1], named[2], gguf)


def space(model: Path, wanted: "Wanted", gguf: str | None = None) -> None:
    """Make a Space of a run, or a GGUF file, as `wanted` says. Raises as `to_serve`, and TunesmithErrors of its own."""
    from tunesmith.decides import prompts_of
    from tunesmith.recipe import EvaluateConfig
    from tunesmith.release.space.folder import Shipped
    from tunesmith.release.space.verb import space as make

    served = to_serve(model, gguf, ())
    wanted.check(model.is_dir())
    to_hub = None
    with contextlib.ExitStack() as held:
        if not model.is_dir():
            asked = EvaluateConfig()
            shipped = Shipped(served.gguf, served.alias, model, prompts_of(asked), asked.max_tokens)
        else:
            from tunesmith.release.space.origin import of_run

            recipe, run = opened(model)
            if wanted.send:
                from tunesmith.lock import locked

                held.enter_context(locked(run))
            shipped = of_run(recipe, run, served.gguf, gguf or "", strict=bool(wanted.to))
        if wanted.to:
            from tunesmith.release.publish import refuse_id
            from tunesmith.release.space.push import to_hub as send

            refuse_id(wanted.to)
            to_hub = partial(send, shipped, wanted)
        make(shipped, wanted, to_hub)


def _refuse_no_run(model: Path) -> None:
    from tunesmith.runs import Run
    from tunesmith.study.named import BASE

    if model.is_file():
        raise RecipeError(f"{model} is a recipe: its run is what can be chatted with", fix=RUN_OR_GGUF)
    if not model.is_dir():
        more = "; `base` is a word of compare" if str(model) == BASE else ""
        raise RecipeError(f"there is no run and no file {model}", fix=RUN_OR_GGUF + more)
    if why := Run(model).why_none():
        files = ", ".join(str(file) for file in sorted(model.glob("*.gguf"))[:3])
        fix = f"name one of its GGUF files: {files}" if files else RUN_OR_GGUF
        raise RecipeError(why, fix=fix)


def _say_what_is_old(recipe: "Recipe", run: "Run", file: Path, changes: Sequence[str]) -> None:
    from tunesmith.console import warn
    from tunesmith.runs import checkpoint_folders
    from tunesmith.stale import stale

    try:
        old = stale(recipe, run, "export", but=("chat.temperature", "chat.top_p"))  # the chat samples as it is told
        # a training that has begun goes on with what it began with, or not at all
        settled = bool(checkpoint_folders(run.checkpoints) and stale(recipe, run, "train"))
    except TunesmithError as error:  # a damaged record: the file can be chatted with all the same
        old, settled = [error.what], False
    if old:
        place = [str(run.recipe), "--run-dir", f"{run.path}-2"] if settled else [str(run.path)]
        sets = [part for change in changes for part in ("--set", change)]
        command = to_type("run", *place, *sets)
        how = "makes such a run" if settled else "makes it anew"
        warn("\n  - ".join([f"{file.name} is not what the recipe says; `{command}` {how}", *old]))
