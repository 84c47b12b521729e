"""The verbs beside the stages: one short function each, which imports what it needs, so that help comes at once."""

import contextlib
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from tunesmith.boundary import STREAMS, told_as_ctrl_c
from tunesmith.command import as_typed
from tunesmith.errors import RecipeError
from tunesmith.printable import printable

INTERRUPTED = 130
MOST = 2**31 - 1  # what a whole number of 32 bits holds
Changes = Annotated[
    list[str] | None, typer.Option("--set", metavar="a.b=c", help="Change one value of the recipe; may be repeated.")
]
RunDir = Annotated[Path | None, typer.Option("--run-dir", metavar="PATH", help="Run folder; default: runs/NAME.")]
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
    begin("chat", f"opening {model}")
    from tunesmith.api import to_serve
    from tunesmith.server.app import chat as serve
    from tunesmith.server.door import checked_door

    door = checked_door(
        host=host, port=port, public=public, key_file=api_key, origins=allow_origin or (), waiting=queue, rate=rate,
        answer=max_tokens, log_texts=log_texts,
    )  # fmt: skip
    served = to_serve(model, gguf, changes or (), alone=not (door.beyond or door.public))
    serve(served, door=door, threads=threads, cli=cli)


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
    begin("space", f"reading {model}")
    from tunesmith.api import space as make
    from tunesmith.release.space.verb import Wanted

    make(model, Wanted(out, to, attempt, send=yes, public=public, overwrite=overwrite), gguf)


def data(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file, or the folder of a run.")],
    changes: Changes = None,
    run_dir: RunDir = None,
    rows: Annotated[int | None, _number("--show", MOST, "Print so many conversations, as the model sees them.")] = None,
) -> None:
    """A page on your data: what is kept, what is dropped and why, and what is trained on."""
    with told_as_ctrl_c():
        begin("data", f"reading {recipe}")
        from tunesmith.api import data as write_page

        write_page(recipe, changes or (), run_dir, rows=rows, tell=show)


def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN", help="Folders of runs; `base` is the untouched base.")],
    report: Annotated[str | None, typer.Option(metavar="PATH", help="Default: report.html in the first run.")] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure the speed of all anew, in turn: only then can it be compared.")
    ] = False,
) -> None:
    """One page: answers side by side, losses, proofs, speed, size."""
    begin("compare", f"reading {', '.join(runs)}")
    from tunesmith.api import compare as write_report

    show(f"report: {write_report(runs, report, measure=measure)}")


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
    begin("publish", f"reading {run}")
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
    show(send(run, own, send=yes, overwrite=overwrite, cards=cards, typed=typed))


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
        show(fields_text(), nl=False)
        return
    if schema:
        show(schema_text(), nl=False)
        return
    if recipe is None:
        raise RecipeError("check needs a recipe", fix="type `tunesmith check RECIPE`; `tunesmith init` makes one")
    checked, run = opened(recipe, changes or ())
    show("# yaml-language-server: $schema=./schema.json")
    show((dump_recipe if full else dump_short)(checked), nl=False)
    sys.stdout.flush()

    from tunesmith.planning.check import check_plan

    for line in check_plan(checked, run, timed=time):
        show(as_typed(f"# {line}"))


def list_runs(
    folders: Annotated[list[Path] | None, typer.Argument(metavar="FOLDER", help="Default: runs.")] = None,
    as_json: Json = False,
) -> None:
    """The runs, how each stands, its held-out loss and its size."""
    from tunesmith.inventory import as_json_text, as_table, runs_in

    found, foreign = runs_in(folders)
    columns = shutil.get_terminal_size().columns  # 80 where there is no terminal
    show(as_json_text(found) if as_json else as_table(found, foreign, columns))


def doctor(
    recipe: Annotated[Path | None, typer.Argument(metavar="RECIPE", help="What is to run here.")] = None,
    changes: Changes = None,
    run_dir: RunDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """What works on this machine, each thing tried, and what a recipe needs and lacks."""
    begin("doctor", "trying what this machine can do")
    from tunesmith.api import examine

    raise typer.Exit(examine(recipe, changes or (), run_dir, as_json, show))


def clean(
    run: RunFolder,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it nothing is.")] = False,
    model: Annotated[bool, typer.Option("--model", help="The merged model too, where its GGUF files stand.")] = False,
) -> None:
    """Show, or delete, what a finished run can do without."""
    begin("clean", f"reading {run}")
    from tunesmith.runs import Run
    from tunesmith.tidy import clean as delete
    from tunesmith.tidy import listed, spare

    show(listed(Run(run), delete(Run(run), model) if yes else spare(Run(run), model), model, yes))


def verify(run: RunFolder, steps: Steps = 10, as_json: Json = False) -> None:
    """Look at all of a run again: files, checkpoints, resume, proofs."""
    begin("verify", f"reading {run}")
    from tunesmith.verify import verify as look

    look(run, steps, as_json, show)


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
    with answered():
        answers = answers_from(data, base, name, ask=not yes)
    show(f"looking at {answers.data}", err=True)

    from tunesmith.planning.start import start

    with answered():
        start(to, answers, typed=not yes)


@contextlib.contextmanager
def answered() -> Iterator[None]:
    """Raises RecipeError where standard input ends before the answers do; Ctrl+C is the user's wish."""
    try:
        yield
    except typer.Abort as end:
        if not isinstance(end.__context__, EOFError):
            raise typer.Exit(INTERRUPTED) from None
        fix = "answer them, or give what they ask for as arguments with --yes: --help names these"
        raise RecipeError("standard input ended before the questions did; nothing was written", fix=fix) from None


def show(text: object, *, nl: bool = True, err: bool = False) -> None:
    """What names files, or says what is in them, and is read in a terminal."""
    try:
        typer.echo(printable(str(text)), nl=nl, err=err)
    except OSError as error:
        error.filename = STREAMS[err]  # the system knows no name for it
        raise


def begin(verb: str, what: str) -> None:
    """Say what is about to happen before the imports, which take seconds on a small machine."""
    with contextlib.suppress(OSError, ValueError):  # a terminal that is gone does not end the work
        show(f"{verb}: {what}", err=True)


VERBS: dict[str, Callable[..., None]] = {
    "data": data, "chat": chat, "space": space, "compare": compare, "publish": publish, "check": check,
    "list": list_runs, "doctor": doctor, "clean": clean, "verify": verify, "init": init,
}  # fmt: skip
"""In the order of the help."""
