"""The command line: its door, and the stages; the other verbs are in verbs.py."""

import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from tunesmith import __version__
from tunesmith.boundary import explained, interrupted_code, told_as_ctrl_c
from tunesmith.command import as_typed
from tunesmith.machine import TRAINING_SPINS, spinning
from tunesmith.printable import printable
from tunesmith.stages import STAGES, Stage
from tunesmith.streams import flush_streams, have_streams, have_utf8
from tunesmith.verbs import INTERRUPTED, VERBS, Changes, RunDir, Yes, answered, begin, show

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
NO_READER = 141
"""What a shell says of a program whose output nobody reads any more, as of `... | head`: 128 + SIGPIPE."""
Target = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file, or the folder of a run.")]
Fork = Annotated[
    Path | None, typer.Option("--fork", metavar="RUN", help="A new run that begins with the adapter of this one.")
]
Bits = Annotated[
    bool, typer.Option("--require-bits", help="Go on only where the end has the same bits as without interruption.")
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Train anew: delete what was trained here, after a question.")]


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
    except KeyboardInterrupt as end:  # before or after what typer does
        _interrupted()
        sys.exit(interrupted_code(end))
    except SystemExit as end:
        if end.code == INTERRUPTED and not isinstance(end, PausedExit):  # train says itself where it paused
            _interrupted()
            sys.exit(interrupted_code(end))
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
    recipe: Target, changes: Changes = None, run_dir: RunDir = None, fresh: Fresh = False, yes: Yes = False,
    fork: Fork = None, bits: Bits = False,
) -> None:  # fmt: skip
    """All stages in order; finished ones are skipped."""
    with told_as_ctrl_c():
        result = _do(STAGES, recipe, changes, run_dir, How(fresh, yes, fork, bits))
        show(result)
        from tunesmith.api import published_as_asked

        if said := published_as_asked(result):
            show(said)


def _add_stage(stage: Stage) -> None:
    """A command that does one stage."""

    def command(recipe: Target, changes: Changes = None, run_dir: RunDir = None) -> None:
        _do([stage], recipe, changes, run_dir)

    def train(
        recipe: Target, changes: Changes = None, run_dir: RunDir = None, fresh: Fresh = False, yes: Yes = False,
        fork: Fork = None, bits: Bits = False,
    ) -> None:  # fmt: skip
        _do([stage], recipe, changes, run_dir, How(fresh, yes, fork, bits))

    app.command(stage.verb, help=stage.says, hidden=stage.scores)(train if stage.verb == "train" else command)


for _stage in STAGES:
    _add_stage(_stage)
for _verb, _command in VERBS.items():
    app.command(_verb)(_command)


@dataclass(frozen=True)
class How:
    """How a run begins, or goes on."""

    fresh: bool = False
    yes: bool = False
    fork: Path | None = None
    bits: bool = False


def _do(
    stages: Sequence[Stage], target: Path, changes: Sequence[str] | None, run_dir: Path | None, how: How | None = None
) -> "Result":
    """Do some stages, `how` it was asked; a pause ends the process with its exit code."""
    with told_as_ctrl_c():
        return _done(stages, target, changes, run_dir, how or How())


def _done(
    stages: Sequence[Stage], target: Path, changes: Sequence[str] | None, run_dir: Path | None, how: How
) -> "Result":
    begin(stages[0].verb if len(stages) == 1 else "run", f"reading {target}")
    from tunesmith.api import forked, opened, refuse_early
    from tunesmith.fresh import NewStart
    from tunesmith.pipeline import run_stages
    from tunesmith.training.saved import bits_required
    from tunesmith.training.stop import signals_heeded

    recipe, run = opened(target, changes or (), run_dir)
    if len(stages) > 1:
        refuse_early(recipe)
    if how.fork:
        forked(recipe, run, how.fork)
    anew = NewStart(run, how.yes, typer.confirm) if how.fresh else None
    with signals_heeded(), bits_required(how.bits), answered():
        result = run_stages(recipe, run, stages, anew=anew)
    if result.paused:
        raise PausedExit(result.paused.exit_code)
    return result
