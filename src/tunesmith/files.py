"""Files and folders that are complete or absent, also when the power goes out; their digests.

A folder is written as `.NAME.draft` and renamed. One that is replaced is `.NAME.old` for the moment between two
renames, and `.NAME.gone` while it is deleted: so each of them is whole, or of no use. `sweep` clears what a kill left.
"""

import contextlib
import difflib
import errno
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from tunesmith.boundary import ANOTHER_CACHE, ANOTHER_RUN_DIR, of_cache
from tunesmith.errors import ProofError, ResourceError, ResumeError
from tunesmith.json_file import OTHER_JSON, json_object

RECORD, DIGESTS, PROOFS, FINISHED = "record.json", "digests.json", "proof.json", ".finished.json"
SAID_OF_FILES = (RECORD, DIGESTS, PROOFS, FINISHED)
"""Files that speak of the other files of their folder: not among those that are digested."""
DROPPED = "dropped.jsonl"
"""The list of the rows that are not used; it has a digest, and nothing is made from it."""
DRAFT, OLD, GONE = "draft", "old", "gone"
DAMAGED = ".damaged-"
"""How the name of what is damaged, and kept, begins."""
CLUTTER = {
    ".DS_Store", "desktop.ini", "Thumbs.db", ".directory",  # of file browsers
    ".ipynb_checkpoints", "__pycache__",
    ".cache",  # huggingface_hub's, in a folder that is uploaded
    "lost+found",  # of a new ext4 file system
}  # fmt: skip
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def fingerprint(value: Any) -> str:
    """Short hash of anything JSON can hold. Same content, same hash, on every machine."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest_file(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_folder(folder: Path) -> dict[str, dict[str, Any]]:
    """Digest and size of every file below a folder, but those that speak of the others; sorted by name.

    What `finish` has digested in a draft is not read again.
    """
    known = finished(folder)
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in SAID_OF_FILES)
    names = {str(path.relative_to(folder)): path for path in files}
    return {name: file_entry(path) if name not in known else known[name]["digest"] for name, path in names.items()}


def file_entry(path: Path) -> dict[str, Any]:
    """Digest and size of a file, as records, manifests and a Space's list have them."""
    return {"sha256": digest_file(path), "bytes": path.stat().st_size}


def is_clutter(name: str) -> bool:
    """Whether a file or folder of this name is what other programs leave anywhere, and nobody's work."""
    return name in CLUTTER or name.startswith(("._", ".nfs"))  # of macOS on other file systems; of NFS


def strangers(folder: Path, listed: Iterable[str]) -> list[str]:
    """The files below `folder` that are neither listed, nor speak of the others, nor clutter: the user's own."""
    known = {*listed, *SAID_OF_FILES, *(beside(Path(name), DRAFT).name for name in SAID_OF_FILES)}
    files = (path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())
    return sorted(str(file) for file in files if str(file) not in known and not any(map(is_clutter, file.parts)))


def beside(target: Path, kind: str) -> Path:
    """The hidden name next to `target` that its draft, what it replaces, or what is deleted of it has."""
    return target.with_name(f".{target.name}.{kind}")


def aside(target: Path) -> Path:
    """The hidden name next to `target` that what is damaged of it is kept under; a new one each time."""
    return target.with_name(f"{DAMAGED}{target.name}-{time.time_ns()}")


def never(target: Path) -> None:
    """Nothing that stands is replaced."""
    if os.path.lexists(target):
        raise ResumeError(f"{target} is there already and is not replaced", fix="move it elsewhere", where=str(target))


def commit_folder(
    target: Path, write: Callable[[Path], None], check: Callable[[Path], None] = never, made_from: str = ""
) -> None:
    """Create or replace `target` completely or not at all, also when the power goes out.

    `write` fills a draft folder; a full disk becomes a ResourceError and the draft is removed. `check` raises if what
    stands may not be replaced. With `made_from`, a fingerprint, files that `write` has told to `finish` outlive a kill
    and errors but a ProofError, and are in the draft of the next call with the same fingerprint.
    """
    check(target)
    draft = beside(target, DRAFT)
    with full_disk_named(target):
        _begin(draft, made_from)
        try:
            write(draft)
            for path in [*draft.rglob("*"), draft]:
                flush(path)
            check(target)
        except BaseException as error:
            if isinstance(error, ProofError) or not _keep_finished(draft):
                shutil.rmtree(draft, ignore_errors=True)
            raise
        (draft / FINISHED).unlink(missing_ok=True)
        _move_in(draft, target)


def _move_in(draft: Path, target: Path) -> None:
    """Rename a whole draft to its name; what stood there is moved aside first and deleted last."""
    old = beside(target, OLD)
    replaces = os.path.lexists(target)
    if replaces:
        if _moved_aside(old):
            discard(old, target)
        never(old)
        target.rename(old)
    draft.rename(target)  # atomic on one file system
    flush(target.parent)  # so that the new name survives a power cut too
    if replaces:
        discard(old, target)


def _begin(draft: Path, made_from: str) -> None:
    """An empty draft, or one that holds the files that were finished from the same and are still as they were."""
    if not made_from or _note(draft).get("made_from") != made_from:
        remove(draft)
    for name, file in finished(draft).items():
        if not (draft / name).is_file() or file_entry(draft / name) != file["digest"]:
            _forget(draft, name)
    if not _keep_finished(draft):
        remove(draft)
    make_folder(draft)
    if made_from and not finished(draft):
        (draft / FINISHED).write_text(json.dumps({"made_from": made_from, "files": {}}) + "\n")


def finish(draft: Path, name: str, facts: Mapping[str, Any]) -> None:
    """Note that a file of a draft is whole, with `facts` about it: it is not written again after a kill."""
    note = _note(draft)
    flush(draft / name)
    note["files"][name] = {"digest": file_entry(draft / name), "facts": dict(facts)}
    write_file(draft / FINISHED, json.dumps(note, indent=1) + "\n")


def finished(draft: Path) -> dict[str, dict[str, Any]]:
    """The finished files of a draft: name -> {"digest": ..., "facts": ...}."""
    files: dict[str, dict[str, Any]] = _note(draft).get("files", {})
    return files


def _note(draft: Path) -> dict[str, Any]:
    """What is noted of a draft; nothing where that cannot be read: its files are then made anew."""
    try:
        note = json_object((draft / FINISHED).read_bytes())
        whole = all({"digest", "facts"} <= file.keys() for file in note["files"].values())
        return note if whole else {}
    except (FileNotFoundError, NotADirectoryError, *OTHER_JSON):
        return {}


def _forget(draft: Path, name: str) -> None:
    note = _note(draft)
    del note["files"][name]
    write_file(draft / FINISHED, json.dumps(note, indent=1) + "\n")


def _keep_finished(draft: Path) -> bool:
    """Clear a draft of all but its finished files; False if there are none."""
    kept = finished(draft)
    for path in draft.iterdir() if kept else ():
        if path.name not in (*kept, FINISHED):
            remove(path)
    return bool(kept)


@contextlib.contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """A folder for files that are needed for a moment; never `target` itself, but its draft, which `sweep` clears."""
    draft = beside(target, DRAFT)
    with full_disk_named(target):
        remove(draft)
        make_folder(draft)
        try:
            yield draft
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def sweep(targets: Iterable[Path]) -> None:
    """Clear what a kill left beside these files and folders; a folder that was only moved aside is put back.

    A draft with finished files is spared. Only to be called where no other process writes these.
    """
    for target in targets:
        old, draft = beside(target, OLD), beside(target, DRAFT)
        if _moved_aside(old):
            if os.path.lexists(target):
                discard(old, target)
            else:
                old.rename(target)
                flush(target.parent)
        remove(beside(target, GONE))
        if not finished(draft):
            remove(draft)


def _moved_aside(old: Path) -> bool:
    """Whether this is what commit_folder moved: it replaces nothing but such folders."""
    return any((old / said).is_file() for said in (RECORD, DIGESTS))


def discard(folder: Path, target: Path) -> None:
    """Delete `folder`, which is `target` or was, so that a kill leaves it whole or gone."""
    gone = beside(target, GONE)
    remove(gone)
    folder.rename(gone)
    remove(gone)


def names_like(path: str) -> list[str]:
    """Paths that are there and are spelt much as one that is not, the nearest first, at most three."""
    folder, name = os.path.split(path)
    try:
        there = [found for found in os.listdir(folder or ".") if not found.startswith(".")]
    except (OSError, ValueError):  # ValueError: a NUL
        return []
    return [os.path.join(folder, found) for found in difflib.get_close_matches(name, there)]


def bytes_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; none where nothing is there."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def remove(path: Path) -> None:
    """Delete a file, a link, or a folder with all that is in it; nothing if it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_file(target: Path, content: str | bytes) -> None:
    """Create or replace one file completely or not at all, also when the power goes out.

    For a folder of ours: what has the draft's name there is of no use.
    """
    _write_file(target, beside(target, DRAFT), content)


def write_user_file(target: Path, content: str | bytes) -> None:
    """As `write_file`, in a folder of the user's: nothing there but `target` is touched, and a link stays one."""
    target = Path(os.path.realpath(target))
    _write_file(target, target.with_name(f".{uuid.uuid4().hex[:8]}.{DRAFT}"), content)


def _write_file(target: Path, draft: Path, content: str | bytes) -> None:
    with full_disk_named(target):
        make_folder(target.parent)
        try:
            with _unwritable_named(target.parent):
                draft.write_bytes(content.encode() if isinstance(content, str) else content)
            flush(draft)
            draft.rename(target)
        except (OSError, ResourceError):
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)  # a full disk has no room for it
            raise
        flush(target.parent)


def make_folder(folder: Path) -> None:
    """Create a folder, and those above it, whose names survive a power cut."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    with _unwritable_named(missing[-1].parent if missing else folder):
        folder.mkdir(parents=True, exist_ok=True)
    for place in reversed(missing):
        flush(place.parent)


@contextlib.contextmanager
def _unwritable_named(folder: Path) -> Iterator[None]:
    """Of a folder that is there and takes nothing new, as those in /proc, the system says that the new is not there."""
    try:
        yield
    except FileNotFoundError as error:
        if not folder.is_dir():
            raise
        kept = of_cache(folder)
        what = f"nothing can be written in {folder}: the system takes no new file or folder there"
        fix = ANOTHER_CACHE if kept else "name another place, with --run-dir, --to or --report as the command has it"
        raise ResourceError(f"{what}{kept and f'; {kept}'}", fix=fix) from error


class Unbuffered(Protocol):
    """A file that says how much of it was taken."""

    def write(self, data: memoryview, /) -> int:
        """Write some bytes; how many."""


def write_all(file: Unbuffered, data: memoryview) -> None:
    """Write the bytes of `data` to an unbuffered file, which takes a part at once where there are many (write(2)), or
    where the disk has no room for all: then the rest is the error.
    """
    data = data.cast("B")
    while data:
        data = data[file.write(data) :]


def flush(path: Path) -> None:
    """Make a file's bytes, or a folder's names, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):  # some network drives cannot do it
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def full_disk_named(target: Path) -> Iterator[None]:
    """Turn "no space left" into an error that says what is whole and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        too_large = error.errno == errno.EFBIG
        why = "no file may be so large there (`ulimit -f`, or FAT32)" if too_large else "the disk is full"
        free = "raise the limit" if too_large else "free some space"
        kept = of_cache(target)
        raise ResourceError(
            f"{why}: {target.name} could not be written; what was committed before is whole{kept and f'; {kept}'}",
            fix=f"{free} and run the same command again, or {ANOTHER_CACHE if kept else ANOTHER_RUN_DIR}",
            where=str(target.parent),
        ) from error
