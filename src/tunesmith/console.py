"""What the user sees while something long runs: lines, progress and time left.

On standard error; in a notebook on standard output as plain lines, since standard error is painted red there and
rich's own way is a box a line.
"""

import contextlib
import io
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import IO, Any, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tunesmith.command import as_typed
from tunesmith.printable import printable

_NOWHERE = io.StringIO()  # for a process that has no standard error (2>&-)


class _StandardError(io.TextIOBase):
    """Standard error as it is now; a terminal or pipe that is gone does not end the work it was to tell of."""

    def write(self, text: str) -> int:
        try:
            return _error().write(text)
        except OSError:
            _to_nowhere()
            return len(text)

    def flush(self) -> None:
        try:
            _error().flush()
        except OSError:
            _to_nowhere()

    def isatty(self) -> bool:
        return _error().isatty()

    def fileno(self) -> int:
        return _error().fileno()


def _error() -> IO[str]:
    """Standard error itself: while a bar is shown, sys.stderr is rich's, which would print to our console again."""
    return cast(IO[str], getattr(sys.stderr, "rich_proxied_file", sys.stderr) or _NOWHERE)


def _to_nowhere() -> None:
    """Point standard error to the null device, for other packages that write to it too; and output, where the same."""
    with contextlib.suppress(OSError, ValueError):
        null, error = os.open(os.devnull, os.O_WRONLY), _error().fileno()
        lost = [1] if os.path.sameopenfile(1, error) else []
        for descriptor in (error, *lost):
            os.dup2(null, descriptor)
        os.close(null)


IN_NOTEBOOK = "ipykernel" in sys.modules
if IN_NOTEBOOK:  # progress is ours; tqdm, which others bring, warns in red that its own would need a package more
    warnings.filterwarnings("ignore", "IProgress not found")


def console_for(file: IO[str] | None, **settings: Any) -> Console:
    """A console that prints to `file` (None: standard output) as is; a notebook's is no terminal, whatever it says.

    Jupyter's kernels set FORCE_COLOR, and a bar would be kept there as hundreds of pictures of itself.
    """
    plain = False if IN_NOTEBOOK else None
    return Console(file=file, force_jupyter=False, force_terminal=plain, emoji=False, **settings)


console = console_for(None if IN_NOTEBOOK else cast(IO[str], _StandardError()), highlight=False, soft_wrap=True)
LINE_EVERY_S = 10.0  # without a terminal (a log file, a notebook) progress is a line now and then


def say(text: str) -> None:
    """One line to the user; neither rich nor the terminal reads anything in it."""
    console.print(printable(as_typed(text)), markup=False)


def warn(text: str) -> None:
    """One line on something the user can act on; the run goes on."""
    console.print(f"warning: {printable(as_typed(text))}", markup=False, style="yellow")


def duration(seconds: float) -> str:
    """Seconds in words."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


@contextlib.contextmanager
def progress(
    what: str, total: float | None, *, done: float = 0, unit: str = ""
) -> Iterator[Callable[[float, str], None]]:
    """Show progress of `total` units (None: nobody knows how many yet); the block calls what it is given with (units
    more, a short text, as the loss).
    """
    if console.is_terminal:
        with _bar(what, total, done) as advance:
            yield advance
    else:
        yield _lines(what, total, done, unit)


@contextlib.contextmanager
def _bar(what: str, total: float | None, done: float) -> Iterator[Callable[[float, str], None]]:
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=total, note="")
        bar.update(task, completed=done)
        yield lambda units, note: bar.update(task, advance=units, note=note)


def _lines(what: str, total: float | None, done: float, unit: str) -> Callable[[float, str], None]:
    started = shown = time.monotonic()
    first = done

    def advance(units: float, note: str) -> None:
        nonlocal done, shown
        done += units
        now = time.monotonic()
        if now - shown >= LINE_EVERY_S and (total is None or done < total):
            shown, units_text = now, f" {unit}" if unit else ""
            text = f"{what}: {done:,.0f}{units_text} so far"
            if total is not None:
                left_s = (total - done) * (now - started) / max(done - first, 1e-9)
                text = f"{what}: {done:g} of {total:g}{units_text}, {duration(left_s)} left"
            say(f"{text}, {note}" if note else text)

    return advance
