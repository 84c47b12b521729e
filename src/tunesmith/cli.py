"""The command line: one short function per verb. Each imports what it needs itself, so that help comes at once."""

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from tunesmith import __version__
from tunesmith.boundary import STREAMS, explained
from tunesmith.command import as_typed
from tunesmith.errors import RecipeError
from tunesmith.machine import TRAINING_SPINS, spinning
from tunesmith.printable import printable
from tunesmith.stages import STAGES, Stage
from tunesmith.streams import flush_streams, have_streams, have_utf8

if TYPE_CHECKING:
    from tunesmith.pipeline import Result

app = typer.Typer(
    name="tunesmith",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["--help", "-h"]},
)  # plain help: loading rich for it costs more than everything else here
INTERRUPTED = 130
MOST = 2**31 - 1  # what a whole number of 32 bits holds
NO_READER = 141
"""What a shell says of a program whose output nobody reads any more, as of `... | head`: 128 + SIGPIPE."""
Target = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file, or the folder of a run.")]
Changes = Annotated[
    list[str] | None, typer.Option("--set", metavar="a.b=c", help="Change one value of the recipe; may be repeated.")
]
RunDir = Annotated[Path | None, typer.Option("--run-dir", metavar="PATH", help="Run folder; default: runs/NAME.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Train anew: delete what was trained here, after a question.")]
Yes = Annotated[bool, typer.Option("--yes", help="Ask nothing.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")]
Json = Annotated[bool, typer.Option("--json", help="For scripts.")]


def _number(name: str, most: int, says: str) -> Any:
    """A whole number from 1 to `most`; what is none is said as every other error is, with its fix."""

    def number(text: str) -> int:
        found = int(text) if re.fullmatch("[+-]?[0-9]{1,20}", str(text).strip()) else None
        if found is not None and 1 <= found <= most:
            return found
        need = f"from 1 to {most}" if most < MOST or (found or 0) > most else "from 1 on"
        what = f"{name} is {str(text)[:40]!r}, and must be a whole number {need}"
        raise RecipeError(what, fix=f"leave {name} out for its default, or give such a number")

    return typer.Option(name, parser=number, metavar="NUMBER", help=says)


Steps = Annotated[int, _number("--steps", MOST, "Most steps that are trained again.")]


class PausedExit(SystemExit):
    """The end of a command whose training paused, with a checkpoint."""


def main() -> None:
    """Entry point: every error ends with what, where and the fix, with its own exit code, and with no traceback."""
    os.environ.update(spinning(TRAINING_SPINS))
    have_utf8()
    have_streams()
    try:
        app()
    except Exception as error:
        _end(error)
    except KeyboardInterrupt:  # before or after what typer does
        _interrupted()
        sys.exit(INTERRUPTED)
    except SystemExit as end:
        if end.code == INTERRUPTED and not isinstance(end, PausedExit):  # train says itself where it paused
            _interrupted()
        if isinstance(end.__context__, BrokenPipeError):  # typer and rich end so, with 1
            sys.exit(NO_READER)
        raise
    finally:
        flush_streams()


def _end(error: Exception) -> NoReturn:
    """Say an error and end with its exit code."""
    said = explained(error)
    with contextlib.suppress(OSError):  # standard error may be what is full
        lines = [*getattr(error, "__notes__", ()), f"error: {as_typed(str(said))}"]
        print(printable("\n".join(lines)), file=sys.stderr)
    sys.exit(said.exit_code)


def _interrupted() -> None:
    without = ", without --fresh once it has begun anew" if "--fresh" in sys.argv else ""
    with contextlib.suppress(OSError):
        print(f"interrupted; the same command goes on from what is committed{without}", file=sys.stderr)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tunesmith {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Version.")] = False,
) -> None:
    """One recipe turns conversations into a fine-tuned open LLM, proven equal at every hand-over, served on a CPU."""


@app.command("run")
def run_all(
    recipe: Target, changes: Changes = None, run_dir: RunDir = None, fresh: Fresh = False, yes: Yes = False
) -> None:
    """All stages in order; finished ones are skipped."""
    result = _do(STAGES, recipe, changes, run_dir, fresh=fresh, yes=yes)
    _print(result)
    from tunesmith.api import published_as_asked

    if said := published_as_asked(result):
        _print(said)


def _add_stage(stage: Stage) -> None:
    """A command that does one stage."""

    def command(recipe: Target, changes: Changes = None, run_dir: RunDir = None) -> None:
        _do([stage], recipe, changes, run_dir)

    def train(
        recipe: Target, changes: Changes = None, run_dir: RunDir = None, fresh: Fresh = False, yes: Yes = False
    ) -> None:
        _do([stage], recipe, changes, run_dir, fresh=fresh, yes=yes)

    app.command(stage.verb, help=stage.says)(train if stage.verb == "train" else command)


for _stage in STAGES:
    _add_stage(_stage)


@app.command()
def chat(  # noqa: PLR0913, PLR0917 - one argument an option
    model: Annotated[
        Path, typer.Argument(metavar="RUN_OR_GGUF", help="A run's folder, a GGUF file, or a Hub repository of them.")
    ],
    port: Annotated[int, _number("--port", 65535, "Port to listen at.")] = 7860,
    cli: Annotated[bool, typer.Option("--cli", help="Chat in the terminal, without the page.")] = False,
    gguf: Annotated[str | None, typer.Option(metavar="TYPE", help="A type of export.gguf, as Q8_0.")] = None,
    threads: Annotated[int, _number("--threads", MOST, "CPU threads.")] = 2,
    host: Annotated[str, typer.Option(help="Address to listen at; others than this machine need a key.")] = "127.0.0.1",
    api_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File with the key that lets in; or TUNESMITH_API_KEY.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Let everybody in, without a key, within limits.")] = False,
    queue: Annotated[int | None, _number("--queue", MOST, "Requests that may wait; default 32.")] = None,
    rate: Annotated[int | None, _number("--rate", MOST, "Requests a minute of one address; 20 if --public.")] = None,
    max_tokens: Annotated[int | None, _number("--max-tokens", MOST, "Of an answer; 1024 if --public.")] = None,
    log_texts: Annotated[bool, typer.Option("--log-texts", help="Print what is asked and answered.")] = False,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="A web page's origin that may use it too, as https://hub.example."),
    ] = None,
    changes: Changes = None,
) -> None:
    """Chat page and OpenAI-compatible API on this machine's CPU."""
    _begin("chat", f"opening {model}")
    from tunesmith.api import to_serve
    from tunesmith.server.app import chat as serve
    from tunesmith.server.door import checked_door

    door = checked_door(
        host=host, port=port, public=public, key_file=api_key, origins=allow_origin or (), waiting=queue, rate=rate,
        answer=max_tokens, log_texts=log_texts,
    )  # fmt: skip
    served = to_serve(model, gguf, changes or (), alone=not (door.beyond or door.public))
    serve(served, door=door, threads=threads, cli=cli)


@app.command()
def space(  # noqa: PLR0913, PLR0917 - a command has the options that it has
    model: Annotated[Path, typer.Argument(metavar="RUN_OR_GGUF", help="The folder of a run, or a GGUF file.")],
    out: Annotated[Path | None, typer.Option("--out", metavar="FOLDER", help="Write the Space here.")] = None,
    to: Annotated[str, typer.Option("--to", metavar="USER/NAME", help="Send it to the Hub.")] = "",
    gguf: Annotated[str | None, typer.Option(metavar="TYPE", help="One that was exported.")] = None,
    attempt: Annotated[bool, typer.Option("--try", help="Do its steps here, and measure its speed.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Send it; without it nothing is sent.")] = False,
    public: Annotated[bool, typer.Option("--public", help="For everybody to see; private otherwise.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Also where others have written since, or made the Space.")
    ] = False,
) -> None:
    """A chatbot for a free Space of the Hub, on two CPUs; a dry run of --to unless --yes."""
    _begin("space", f"reading {model}")
    from tunesmith.api import space as make
    from tunesmith.release.space.verb import Wanted

    make(model, Wanted(out, to, attempt, send=yes, public=public, overwrite=overwrite), gguf)


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN", help="Folders of runs; `base` is the untouched base.")],
    report: Annotated[str | None, typer.Option(metavar="PATH", help="Default: report.html in the first run.")] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure the speed of all anew, in turn: only then can it be compared.")
    ] = False,
) -> None:
    """One page: answers side by side, losses, proofs, speed, size."""
    _begin("compare", f"reading {', '.join(runs)}")
    from tunesmith.api import compare as write_report

    _print(f"report: {write_report(runs, report, measure=measure)}")


@app.command()
def publish(  # noqa: PLR0913, PLR0917 - a command has the options that it has
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")],
    to: Annotated[str | None, typer.Option("--to", metavar="USER/NAME", help="Default: publish.to.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Publish; without it nothing is sent.")] = False,
    public: Annotated[bool, typer.Option("--public", help="For everybody to see; private otherwise.")] = False,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="PART", help="model, lora or gguf; may be repeated.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Also where others have written since, or made the repository.")
    ] = False,
    cards: Annotated[
        Path | None, typer.Option("--cards", metavar="FOLDER", help="Write the model cards there, to read them.")
    ] = None,
    changes: Changes = None,
) -> None:
    """Model, adapter and GGUF to the Hugging Face Hub, with a model card; a dry run unless --yes."""
    _begin("publish", f"reading {run}")
    if to is not None and to.count("/") != 1:
        raise RecipeError(f"--to {to} is no USER/NAME", fix="name your account and the model, as in me/chat")
    from tunesmith.api import publish as send

    said = {
        f"publish.to={to}": ["--to", to] if to else [],
        "publish.public=true": ["--public"] if public else [],
        f"publish.parts=[{','.join(only or ())}]": [word for part in only or () for word in ("--only", part)],
    } | {change: ["--set", change] for change in changes or ()}
    typed = [str(word) for words in said.values() for word in words]
    own = [change for change, words in said.items() if words]
    _print(send(run, own, send=yes, overwrite=overwrite, cards=cards, typed=typed))


@app.command()
def check(
    recipe: Annotated[Path | None, typer.Argument(metavar="RECIPE", help="A recipe file.")] = None,
    changes: Changes = None,
    full: Annotated[bool, typer.Option("--full", help="Print every setting, not only those that differ.")] = False,
    time: Annotated[bool, typer.Option("--time", help="Time one pass, to tell how long training will take.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema for editors instead.")] = False,
    fields: Annotated[bool, typer.Option("--fields", help="Print every field with its default instead.")] = False,
) -> None:
    """Validate a recipe, and say what it will do to its data."""
    from tunesmith.api import opened
    from tunesmith.fields import fields_text
    from tunesmith.recipe_file import dump_recipe, dump_short, schema_text

    if fields:
        _print(fields_text(), nl=False)
        return
    if schema:
        _print(schema_text(), nl=False)
        return
    if recipe is None:
        raise RecipeError("check needs a recipe", fix="type `tunesmith check RECIPE`; `tunesmith init` makes one")
    checked, run = opened(recipe, changes or ())
    _print("# yaml-language-server: $schema=./schema.json")
    _print((dump_recipe if full else dump_short)(checked), nl=False)
    sys.stdout.flush()

    from tunesmith.planning.check import check_plan

    for line in check_plan(checked, run, timed=time):
        _print(as_typed(f"# {line}"))


@app.command("list")
def list_runs(
    folders: Annotated[list[Path] | None, typer.Argument(metavar="FOLDER", help="Default: runs.")] = None,
    as_json: Json = False,
) -> None:
    """The runs, how each stands, its held-out loss and its size."""
    from tunesmith.inventory import as_json_text, as_table, runs_in

    found, foreign = runs_in(folders)
    columns = shutil.get_terminal_size().columns  # 80 where there is no terminal
    _print(as_json_text(found) if as_json else as_table(found, foreign, columns))


@app.command()
def clean(
    run: RunFolder,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it nothing is.")] = False,
    model: Annotated[bool, typer.Option("--model", help="The merged model too, where its GGUF files stand.")] = False,
) -> None:
    """Show, or delete, what a finished run can do without."""
    _begin("clean", f"reading {run}")
    from tunesmith.runs import Run
    from tunesmith.tidy import clean as delete
    from tunesmith.tidy import listed, spare

    _print(listed(Run(run), delete(Run(run), model) if yes else spare(Run(run), model), model, yes))


@app.command()
def verify(run: RunFolder, steps: Steps = 10, as_json: Json = False) -> None:
    """Look at all of a run again: files, checkpoints, resume, proofs."""
    _begin("verify", f"reading {run}")
    from tunesmith.verify import verify as look

    look(run, steps, as_json, _print)


@app.command()
def init(
    data: Annotated[
        str | None, typer.Argument(metavar="DATA", help="Conversations: a file, or a Hub data set.")
    ] = None,
    to: Annotated[Path, typer.Option("--to", metavar="FILE", help="The recipe to write.")] = Path("recipe.yaml"),
    base: Annotated[str | None, typer.Option(help="Base model: Hub id, folder or GGUF file.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing.")] = False,
) -> None:
    """Look at your data and write a recipe that fits it."""
    from tunesmith.planning.starter import answers_from, refuse_place

    if data and data.endswith((".yaml", ".yml")):  # the recipe, as in version 0.1
        to, data = Path(data), None
    refuse_place(to)  # before any question
    with _answered():
        answers = answers_from(data, base, name, ask=not yes)
    _print(f"looking at {answers.data}", err=True)

    from tunesmith.planning.start import start

    with _answered():
        start(to, answers, typed=not yes)


@contextlib.contextmanager
def _answered() -> Iterator[None]:
    """Raises RecipeError where standard input ends before the answers do; Ctrl+C is the user's wish."""
    try:
        yield
    except typer.Abort as end:
        if not isinstance(end.__context__, EOFError):
            raise typer.Exit(INTERRUPTED) from None
        fix = "answer them, or give what they ask for as arguments with --yes: --help names these"
        raise RecipeError("standard input ended before the questions did; nothing was written", fix=fix) from None


def _print(text: object, *, nl: bool = True, err: bool = False) -> None:
    """What names files, or says what is in them, and is read in a terminal."""
    try:
        typer.echo(printable(str(text)), nl=nl, err=err)
    except OSError as error:
        error.filename = STREAMS[err]  # the system knows no name for it
        raise


def _begin(verb: str, what: str) -> None:
    """Say what is about to happen before the imports, which take seconds on a small machine."""
    with contextlib.suppress(OSError, ValueError):  # a terminal that is gone does not end the work
        _print(f"{verb}: {what}", err=True)


def _do(
    stages: Sequence[Stage], target: Path, changes: Sequence[str] | None, run_dir: Path | None, *,
    fresh: bool = False, yes: bool = False,
) -> "Result":  # fmt: skip
    """Do some stages, `fresh`: without what was trained; a pause ends the process with its exit code."""
    _begin(stages[0].verb if len(stages) == 1 else "run", f"reading {target}")
    from tunesmith.api import opened, refuse_early
    from tunesmith.fresh import NewStart
    from tunesmith.pipeline import run_stages
    from tunesmith.training.stop import signals_heeded

    recipe, run = opened(target, changes or (), run_dir)
    if len(stages) > 1:
        refuse_early(recipe)
    anew = NewStart(run, yes, typer.confirm) if fresh else None
    with signals_heeded(), _answered():
        result = run_stages(recipe, run, stages, anew=anew)
    if result.paused:
        raise PausedExit(result.paused.exit_code)
    return result
