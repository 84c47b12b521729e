"""The lock of a run folder: one process at a time works there, and it dies with that; who looks on only reads it.

Where the folder's file system keeps no locks, a file of this machine's /tmp is locked instead.
"""

import contextlib
import errno
import fcntl
import functools
import hashlib
import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path

import filelock

from tunesmith.console import warn
from tunesmith.errors import ResumeError
from tunesmith.files import full_disk_named, make_folder
from tunesmith.runs import Run

LOOKING_S = 0.5
"""How long a lock is waited for: `list` has it for an instant, to see whether a process works in a run."""
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
"""What flock ends with on a file system that keeps none: Lustre without its option, some NFS and FUSE drives."""
SHARED = Path("/tmp")
"""Not TMPDIR, which a queue such as Slurm gives each job its own of."""


@contextlib.contextmanager
def locked(run: Run) -> Iterator[None]:
    """One process at a time in a run folder. Raises ResumeError naming the other.

    What a killed process left is cleared first; what it had only moved aside is put back.
    """
    run.refuse_strangers()
    try:
        with full_disk_named(run.lock):
            make_folder(run.path)
            place = _place(run)
            lock = filelock.FileLock(place, timeout=LOOKING_S)
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
            for said in {run.lock, place}:
                said.write_text(f"{os.getpid()} {platform.node()}")
        with full_disk_named(run.path):  # what has no name of its own for it
            run.sweep()
            yield
    finally:
        lock.release()


def _place(run: Run) -> Path:
    """What is locked: the run's lock, or where flock is not known there, for which filelock has a lock that outlives a
    killed process, a file of this machine.
    """
    with run.lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # another has it; some file systems say EACCES
            return run.lock
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            place = _of_this_machine(run)
            _warn_of(run.path, place)
            return place
    return run.lock


def _of_this_machine(run: Run) -> Path:
    """What is locked for a run folder whose file system keeps no locks. It is never deleted, as others may wait."""
    place = SHARED if os.access(SHARED, os.W_OK) else Path(tempfile.gettempdir())
    digest = hashlib.sha256(os.fsencode(os.path.realpath(run.path))).hexdigest()
    return place / f"tunesmith-{os.getuid()}-{digest[:16]}.lock"


@functools.cache
def _warn_of(folder: Path, file: Path) -> None:
    """Once in a process."""
    warn(
        f"the file system of {folder} keeps no locks, so {file} is locked: that keeps out processes of this machine "
        "alone; see that no other machine works there"
    )


@contextlib.contextmanager
def looked_at(run: Run) -> Iterator[str | None]:
    """In the block no process begins to work in a run folder; yields the one that does already, as "4711 on host".

    The lock is only read, and where there is none, none is made.
    """
    with contextlib.ExitStack() as held:
        process = None
        try:
            process = _looked(run.lock, held)
        except OSError as error:
            if error.errno in NO_LOCKS:
                with contextlib.suppress(OSError):
                    process = _looked(_of_this_machine(run), held)
        yield process


def _looked(lock: Path, held: contextlib.ExitStack) -> str | None:
    """Who works, by a lock, which is shared from now on until `held` is left."""
    file = held.enter_context(lock.open())
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _owner(lock)
    return None


def process_in(run: Run) -> str | None:
    """The process that works in a run folder now; None if there is none. `locked` waits longer than this takes."""
    with looked_at(run) as process:
        return process


def _owner(lock: Path) -> str:
    """Who has written its name into a lock: the process, and its machine."""
    try:
        text = lock.read_text(errors="replace")[:100].strip()
    except OSError:
        text = ""
    return " on ".join(text.split(" ", 1)) or "unknown"
