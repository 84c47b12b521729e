"""The lock of a run folder: one process at a time works there, and it dies with that; who looks on only reads it."""

import contextlib
import fcntl
import os
import platform
from collections.abc import Iterator

import filelock

from tunesmith.errors import ResumeError
from tunesmith.files import full_disk_named, make_folder
from tunesmith.runs import Run

LOOKING_S = 0.5
"""How long a lock is waited for: `list` has it for an instant, to see whether a process works in a run."""


@contextlib.contextmanager
def locked(run: Run) -> Iterator[None]:
    """One process at a time in a run folder. Raises ResumeError naming the other.

    What a killed process left is cleared first; what it had only moved aside is put back.
    """
    run.refuse_strangers()
    lock = filelock.FileLock(run.lock, timeout=LOOKING_S)
    try:
        with full_disk_named(run.lock):
            make_folder(run.path)
            lock.acquire()
    except filelock.Timeout as error:
        process = process_in(run)
        raise ResumeError(
            f"process {process} is already working in this run folder" if process else
            "another process reads this run folder, as `tunesmith verify` does",
            fix="wait for it or stop it, or put this run elsewhere with --run-dir",
            where=str(run.path),
        ) from error  # fmt: skip
    try:
        with full_disk_named(run.lock):
            run.lock.write_text(f"{os.getpid()} {platform.node()}")
        with full_disk_named(run.path):  # what has no name of its own for it
            run.sweep()
            yield
    finally:
        lock.release()


@contextlib.contextmanager
def looked_at(run: Run) -> Iterator[str | None]:
    """In the block no process begins to work in a run folder; yields the one that does already, as "4711 on host".

    The lock is only read, and where there is none, none is made.
    """
    try:
        file = run.lock.open()
    except OSError:
        yield None
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            yield _owner(run)
        except OSError:  # a file system that keeps no locks
            yield None
        else:
            yield None


def process_in(run: Run) -> str | None:
    """The process that works in a run folder now; None if there is none. `locked` waits longer than this takes."""
    with looked_at(run) as process:
        return process


def _owner(run: Run) -> str:
    """Who has written its name into a run's lock: the process, and its machine."""
    try:
        text = run.lock.read_text(errors="replace")[:100].strip()
    except OSError:
        text = ""
    return " on ".join(text.split(" ", 1)) or "unknown"
