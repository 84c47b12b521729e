"""What a file system does that tunesmith builds on, tried in a hidden folder that is removed: locks, renames, fsync.

A process of its own (tries.py), since a network drive that is gone lets whoever touches it wait for ever.
"""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tunesmith.boundary import ANOTHER_CACHE, ANOTHER_RUN_DIR, why_unread
from tunesmith.doctoring.finding import Finding
from tunesmith.doctoring.tries import Try, serve
from tunesmith.files import flush
from tunesmith.machine import disk_of

PREFIX = ".doctor-"
LIMIT_S = 15.0
LITTLE = 2 * 10**9  # bytes: less than the built-in base and a run of it take
SLOW_S = 0.5  # an fsync that a checkpoint of several files would wait for
FIXES = {"run folder": ANOTHER_RUN_DIR, "cache": ANOTHER_CACHE}


def tries_for(job: dict[str, Any]) -> Iterator[Try]:
    """One for each of job["places"]: name -> path, which need not be there."""
    for name, path in job["places"].items():
        yield Try("disk", name, partial(_tried, name, Path(path)), FIXES.get(name, ""), LIMIT_S)


def _tried(name: str, path: Path) -> Finding:
    fix, place = FIXES.get(name, ""), disk_of(path)
    if not place.is_dir():
        return Finding("disk", name, "lacks", f"{place} is a file, and a folder belongs there", fix)
    free = shutil.disk_usage(place).free
    facts: dict[str, Any] = {"path": str(path), "free_bytes": free}
    try:
        scratch = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
    except OSError as error:
        return Finding("disk", name, "lacks", f"{place} takes no new folder: {why_unread(error)}", fix, facts)
    try:
        problems = [problem for look in (_locks, _renames, _flushes) if (problem := look(scratch))]
        started = time.perf_counter()
        flush(scratch)
        facts["fsync_s"] = time.perf_counter() - started
    except OSError as error:
        problems = [f"it cannot be written: {why_unread(error)}"]
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    says = f"{path}: {free / 1e9:.1f} GB free"
    if problems:
        return Finding("disk", name, "lacks", f"{says}; {'; '.join(problems)}", fix, facts)
    says = f"{says}; locks, atomic renames and fsync work"
    if facts["fsync_s"] > SLOW_S:
        return Finding("disk", name, "note", f"{says}, but an fsync takes {facts['fsync_s']:.1f} s", fix, facts)
    if free < LITTLE:
        return Finding("disk", name, "note", f"{says}, but there is little room", f"free some, or {fix}", facts)
    return Finding("disk", name, "ok", says, facts=facts)


def _locks(folder: Path) -> str:
    """A second lock on a locked file must be refused."""
    with (folder / "lock").open("w") as first, (folder / "lock").open("w") as second:
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return f"it keeps no locks: {why_unread(error)}"
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return ""
    return "it keeps no locks: two processes would write into one run"


def _renames(folder: Path) -> str:
    """A file is replaced by another, and a folder gets its name, in one step each."""
    (folder / "file").write_text("old")
    (folder / "draft").write_text("new")
    try:
        (folder / "draft").rename(folder / "file")
        (folder / "made").mkdir()
        (folder / "made" / "inside").write_text("x")
        (folder / "made").rename(folder / "named")
    except OSError as error:
        return f"nothing can be renamed: {why_unread(error)}"
    whole = (folder / "file").read_text() == "new" and (folder / "named" / "inside").read_text() == "x"
    return "" if whole and not (folder / "draft").exists() else "a rename does not replace what stood there"


def _flushes(folder: Path) -> str:
    """fsync of a file."""
    with (folder / "flushed").open("wb") as file:
        file.write(os.urandom(4096))
        file.flush()
        try:
            os.fsync(file.fileno())
        except OSError as error:
            return f"fsync does not work: {why_unread(error)}"
    return ""


if __name__ == "__main__":
    serve(tries_for)
