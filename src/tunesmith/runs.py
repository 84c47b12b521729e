"""The run folder: its names, complete-or-absent writes, digests, and the record each stage leaves.

A stage reads folders and commits a new one with a record.json. A stage whose settings and inputs are those of
the record that stands is skipped. Nothing else in the package knows these file names.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from tunesmith.errors import ResourceError, ResumeError

RECORD = "record.json"
VERSIONED = ("tunesmith", "torch", "transformers", "tokenizers", "gguf", "xllamacpp", "numpy", "pyarrow")


@dataclass(frozen=True)
class Record:
    """What a stage did: enough to skip it, to report it, and to check its files."""

    stage: str
    fingerprint: str
    """Hash of settings and inputs; the same fingerprint means the same result."""
    settings: dict[str, Any]
    inputs: dict[str, str]
    """Name of an input -> its digest."""
    outputs: dict[str, dict[str, Any]]
    """File below the stage's folder -> its sha256 and size in bytes."""
    versions: dict[str, str]
    counts: dict[str, Any]
    seconds: float
    notes: list[str] = field(default_factory=list)


class Run:
    """Names inside one run folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.yaml"
        self.data = path / "data"
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.loss_plot = path / "loss.png"
        self.adapter = path / "adapter"
        self.model = path / "model"
        self.gguf = path / "gguf"
        self.evaluation = path / "evaluation"
        self.report = path / "report.html"
        self.manifest = path / "manifest.json"

    @property
    def stage_folders(self) -> list[Path]:
        """The folders that stages commit, in order."""
        return [self.data, self.adapter, self.model, self.gguf, self.evaluation]

    def gguf_file(self, name: str, gguf_type: str) -> Path:
        """Path of one exported file, such as gguf/demo-Q8_0.gguf."""
        return self.gguf / f"{name}-{gguf_type}.gguf"


def fingerprint(value: Any) -> str:
    """Short hash of anything JSON can hold. Same content, same hash, on every machine."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest_file(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_folder(folder: Path) -> dict[str, dict[str, Any]]:
    """Digest and size of every file below a folder, but the record and the digests themselves; sorted by name."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in (RECORD, "digests.json"))
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


def need_disk(folder: Path, needed_bytes: int, purpose: str) -> None:
    """Raise ResourceError before a stage starts if its files would not fit."""
    place = next(p for p in [folder, *folder.resolve().parents] if p.exists())
    free_bytes = shutil.disk_usage(place).free
    if free_bytes < needed_bytes:
        raise ResourceError(
            f"{purpose} needs {needed_bytes / 1e9:.1f} GB of disk, {free_bytes / 1e9:.1f} GB are free",
            fix="free some space, or put the run elsewhere with --run-dir",
            where=str(place),
        )


def free_memory_bytes() -> int:
    """Memory that can be taken without swapping."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable")))
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def read_record(folder: Path) -> Record | None:
    """The record of a committed stage; None if the folder does not stand or a file of it is missing or cut."""
    try:
        record = Record(**json.loads((folder / RECORD).read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise ResumeError(f"{folder / RECORD} is damaged: {error}", fix=f"delete {folder} to make it again") from error
    whole = all(
        (folder / name).is_file() and (folder / name).stat().st_size == output["bytes"]
        for name, output in record.outputs.items()
    )
    return record if whole else None


def commit_stage(
    folder: Path, settings: Mapping[str, Any], inputs: Mapping[str, str], work: Callable[[Path], dict[str, Any]]
) -> tuple[Record, bool]:
    """The record of the stage whose folder is `folder`; True with it if the stage was done now, False if it stood.

    `settings` and `inputs` (name -> digest) decide the result. `work` fills a draft folder and returns counts.
    """
    wanted = fingerprint([dict(settings), dict(inputs)])
    standing = read_record(folder)
    if standing and standing.fingerprint == wanted:
        return standing, False
    started = time.monotonic()

    def write(draft: Path) -> None:
        counts = work(draft)
        record = Record(
            stage=folder.name,
            fingerprint=wanted,
            settings=dict(settings),
            inputs=dict(inputs),
            outputs=digest_folder(draft),
            versions=versions(),
            counts=counts,
            seconds=round(time.monotonic() - started, 2),
        )
        (draft / RECORD).write_text(json.dumps(asdict(record), indent=1) + "\n")

    commit_folder(folder, write)
    done = read_record(folder)
    assert done is not None
    return done, True


def output_digest(record: Record) -> str:
    """One digest for all outputs of a stage: an input of the next one."""
    return fingerprint({name: output["sha256"] for name, output in record.outputs.items()})


def versions() -> dict[str, str]:
    """Versions of the packages that can change a result."""
    found = {}
    for name in VERSIONED:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def write_manifest(run: Run) -> None:
    """Digests of every file of the run; written last by every stage. Committed stages are not read again."""
    files: dict[str, dict[str, Any]] = {}
    for folder in run.stage_folders:
        record = read_record(folder)
        if record:
            files |= {f"{folder.name}/{name}": output for name, output in record.outputs.items()}
            files[f"{folder.name}/{RECORD}"] = _file_entry(folder / RECORD)
    for path in (run.recipe, run.metrics, run.loss_plot, run.report):
        if path.exists():
            files[path.name] = _file_entry(path)
    write_file(run.manifest, json.dumps({"files": files}, indent=1, sort_keys=True) + "\n")


def _file_entry(path: Path) -> dict[str, Any]:
    return {"sha256": digest_file(path), "bytes": path.stat().st_size}
