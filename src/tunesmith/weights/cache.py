"""The cache of bases and of what is made from them: each entry is made once, is whole, and is looked at before use.

Locks are filelock's and die with their process; they lie in a folder of their own, so that entries alone are listed.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock

from tunesmith.boundary import ANOTHER_CACHE, CACHE
from tunesmith.console import say, warn
from tunesmith.errors import ResourceError
from tunesmith.files import DIGESTS, commit_folder, digest_file, digest_folder, write_file
from tunesmith.json_file import OTHER_JSON, json_object
from tunesmith.machine import disk_of


def cache_folder() -> Path:
    """Where fetched and unpacked bases are kept: $TUNESMITH_CACHE, else ~/.cache/tunesmith.

    Raises ResourceError if that is no folder, cannot be made, or lies below a file.
    """
    named = os.environ.get("TUNESMITH_CACHE") or CACHE
    try:
        folder = Path(named).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        pass  # said below, with what is in the way
    except (OSError, RuntimeError) as error:  # RuntimeError: a ~name that nobody here has
        reason = error.strerror if isinstance(error, OSError) else "there is no such home"
        what = f"the folder where bases are kept, {named}, cannot be made: {reason}"
        raise ResourceError(what, fix=ANOTHER_CACHE) from error
    if not (place := disk_of(folder)).is_dir():
        what = f"TUNESMITH_CACHE, the folder where bases are kept, is {folder}, and {place} is a file"
        raise ResourceError(what, fix=ANOTHER_CACHE)
    return folder


@contextlib.contextmanager
def locked_entry(path: Path) -> Iterator[None]:
    """One process at a time makes this file or folder of the cache; the others wait, and are told so."""
    locks = cache_folder() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(locks / f"{path.parent.name}-{path.name}.lock")
    try:
        lock.acquire(timeout=1)
    except filelock.Timeout:
        say(f"waiting for another process, which is making {path}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def made_once(folder: Path, write: Callable[[Path], None]) -> Path:
    """`folder` of the cache, filled by `write` unless it stands whole; of several processes one makes it.

    What stands is compared with the digests kept in it: an entry that was cut or changed is made again, with a word.
    """
    if _is_whole(folder):
        return folder

    def digested(draft: Path) -> None:
        write(draft)
        (draft / DIGESTS).write_text(json.dumps(digest_folder(draft), indent=1) + "\n")

    with locked_entry(folder):
        if _is_whole(folder):  # the process that held the lock has made it
            return folder
        if folder.exists():
            if (folder / DIGESTS).exists():  # version 0.1 kept none
                warn(f"{folder} is not as it was written, and is made again")
            shutil.rmtree(folder)
        commit_folder(folder, digested)
    return folder


def digests(files: Sequence[Path]) -> list[str]:
    """sha256 of each file, remembered in the cache by path and state: a second call reads no weights.

    The state is size, both times and number: what puts another file in the place, or sets its time back, changes one.
    """
    store = cache_folder() / DIGESTS
    known = _remembered(store)
    found: dict[str, list[Any]] = {}
    for file in map(Path.resolve, files):
        now, entry = file.stat(), known.get(str(file))
        state = [now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino]
        kept = isinstance(entry, list) and len(entry) == len(state) + 1 and entry[:-1] == state
        found[str(file)] = [*state, entry[-1] if kept and entry else digest_file(file)]
    if any(known.get(path) != entry for path, entry in found.items()):
        with locked_entry(store):  # what other processes remembered meanwhile is kept
            others = {path: entry for path, entry in _remembered(store).items() if Path(path).exists()}
            write_file(store, json.dumps(others | found, indent=0))
    return [str(entry[-1]) for entry in found.values()]


def _remembered(store: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):  # no memory yet, or a damaged one: it is made anew
        return json_object(store.read_bytes())
    return {}


def _is_whole(folder: Path) -> bool:
    """Whether an entry's files have the bytes that were written; others beside them do not count."""
    try:
        written = json_object((folder / DIGESTS).read_bytes())
        files = [folder / name for name in written]
        sizes = [path.stat().st_size for path in files]
        return bool(files) and [[size, digest] for size, digest in zip(sizes, digests(files), strict=True)] == [
            [entry["bytes"], entry["sha256"]] for entry in written.values()
        ]
    except (FileNotFoundError, NotADirectoryError, *OTHER_JSON):
        return False
