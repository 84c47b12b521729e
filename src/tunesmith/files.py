"""Files and folders that are complete or absent, also when the power goes out; their digests."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tunesmith.errors import ResourceError

RECORD, DIGESTS, PROOFS = "record.json", "digests.json", "proof.json"
SAID_OF_FILES = (RECORD, DIGESTS, PROOFS)
"""Files that speak of the other files of their folder: not among those that are digested."""


def fingerprint(value: Any) -> str:
    """Short hash of anything JSON can hold. Same content, same hash, on every machine."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest_file(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_folder(folder: Path) -> dict[str, dict[str, Any]]:
    """Digest and size of every file below a folder, but those that speak of the others; sorted by name."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in SAID_OF_FILES)
    return {str(p.relative_to(folder)): {"sha256": digest_file(p), "bytes": p.stat().st_size} for p in files}


def commit_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Create or replace `target` completely or not at all, also when the power goes out.

    `write` fills a draft folder; a full disk becomes a ResourceError and the draft is removed.
    """
    draft = target.with_name(f".{target.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    with full_disk_named(target):
        draft.mkdir(parents=True)
        try:
            write(draft)
            for path in [*draft.rglob("*"), draft]:
                flush(path)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
    if target.exists():
        old = target.with_name(f".{target.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
        draft.rename(target)
        shutil.rmtree(old)
    else:
        draft.rename(target)  # atomic on one file system
    flush(target.parent)  # so that the new name survives a power cut too


def sweep(folder: Path) -> None:
    """Clear what a killed commit_folder left in `folder`; what it had only moved aside is put back."""
    for old in folder.glob(".*.old"):
        target = folder / old.name[1 : -len(".old")]
        if target.exists():
            shutil.rmtree(old)
        else:
            old.rename(target)
    for draft in folder.glob(".*.draft"):
        shutil.rmtree(draft)


def write_file(target: Path, content: str | bytes) -> None:
    """Create or replace one file completely or not at all."""
    draft = target.with_name(f".{target.name}.draft")
    with full_disk_named(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(content.encode() if isinstance(content, str) else content)
        flush(draft)
        draft.rename(target)


def flush(path: Path) -> None:
    """Make a file's bytes, or a folder's names, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def full_disk_named(target: Path) -> Iterator[None]:
    """Turn "no space left" into an error that says how much is free and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ResourceError(
            f"the disk is full: {target.name} could not be written; what was committed before is whole",
            fix="free some space and run the same command again, or put the run elsewhere with --run-dir",
            where=str(target.parent),
        ) from error
