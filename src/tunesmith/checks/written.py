"""What a run says of its own files, held against these: manifest, records, and what was made from what. No torch."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from tunesmith.boundary import why_unread
from tunesmith.checks.verdict import NOT_YET, SKIPPED, Verdict, decided
from tunesmith.console import progress
from tunesmith.errors import ResumeError
from tunesmith.files import PROOFS, RECORD, SAID_OF_FILES, strangers
from tunesmith.json_file import OTHER_JSON, json_object
from tunesmith.record import Record, output_digest, parsed
from tunesmith.runs import Run
from tunesmith.stages import STAGES
from tunesmith.training.mirror import OWNER

PIECE_BYTES = 1 << 24
FILES, RECORDS, INPUTS, ROWS = "files", "records", "inputs", "rows counted"
Entries = dict[str, dict[str, Any]]
"""File below the run's folder -> its sha256 and bytes."""


@dataclass(frozen=True)
class Written:
    """What manifest.json and the records say; read once."""

    run: Run
    manifest: Entries | None
    """None: it is missing or unreadable."""
    why_none: str
    digest: str | None
    """sha256 of manifest.json itself."""
    records: dict[str, Record]
    """Stage's folder -> its record, where one can be read."""
    unread: dict[str, str]
    """Stage's folder -> why its record cannot be read."""

    @cached_property
    def expected(self) -> Entries:
        """What every file must be: as the manifest has it, or, of a stage not yet in it, as its record has it."""
        of_records = {
            f"{folder}/{name}": entry
            for folder, record in self.records.items()
            for name, entry in record.outputs.items()
            if name not in SAID_OF_FILES
        }
        return of_records | (self.manifest or {})

    def in_manifest(self, folder: str) -> Entries:
        """What the manifest says of a stage's files, but those that speak of the others."""
        names = {name.removeprefix(f"{folder}/"): name for name in self.manifest or () if name.startswith(f"{folder}/")}
        return {short: (self.manifest or {})[name] for short, name in names.items() if short not in SAID_OF_FILES}


def read_written(run: Run) -> Written:
    """Read the manifest and the records. What is wrong with them is kept, not raised."""
    manifest, why, digest = None, "", None
    try:
        content = run.manifest.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        manifest = _entries(json_object(content)["files"])
    except FileNotFoundError:
        why = f"{run.manifest.name} is missing"
    except (OSError, *OTHER_JSON) as error:
        why = f"{run.manifest.name} is damaged: {why_unread(error)}"
    records, unread = dict[str, Record](), dict[str, str]()
    for folder in run.stage_folders:
        try:
            records[folder.name] = parsed(folder)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, *OTHER_JSON) as error:
            unread[folder.name] = f"{folder.name}/{RECORD} cannot be read: {why_unread(error)}"
    return Written(run, manifest, why, digest, records, unread)


def _entries(files: Any) -> Entries:
    """The manifest's list. Raises ValueError for one that names no files of a run, or says nothing of them."""
    found = {str(name): {"sha256": str(said["sha256"]), "bytes": int(said["bytes"])} for name, said in files.items()}
    for name in found:
        if os.path.isabs(name) or ".." in PurePosixPath(name).parts:
            raise ValueError(f"{name!r} is no file of the run")
    return found


def damaged_files(written: Written) -> dict[str, str]:
    """File -> what is wrong with it, of every file that the manifest or a record lists. Reads all of them."""
    expected, wrong = written.expected, dict[str, str]()
    total = sum(entry["bytes"] for entry in expected.values())
    with progress("verify: files", total / 1e6, unit="MB") as advance:
        for name, entry in sorted(expected.items()):
            if reason := _damage(written, name, entry):
                wrong[name] = reason
            advance(entry["bytes"] / 1e6, name)
    return wrong


def _damage(written: Written, name: str, entry: Mapping[str, Any]) -> str:
    """What is wrong with one file; nothing if it has the bytes that were written."""
    path, run = written.run.path / name, written.run
    try:
        if not path.is_file():
            return "is missing"
        size = path.stat().st_size
        growing = path in (run.metrics, run.samples) and run.adapter.name not in written.records
        if size != entry["bytes"] and not (growing and size > entry["bytes"]):
            return f"has {size:,} bytes, not {entry['bytes']:,}"
        # lines are only ever added: of a training that was killed, what it had when the manifest was written
        return "" if _digest(path, entry["bytes"]) == entry["sha256"] else "has other bytes than were written"
    except OSError as error:
        return f"cannot be read: {why_unread(error)}"


def _digest(path: Path, size: int) -> str:
    """sha256 of the first `size` bytes."""
    digest, left = hashlib.sha256(), size
    with path.open("rb") as file:
        while left and (piece := file.read(min(left, PIECE_BYTES))):
            digest.update(piece)
            left -= len(piece)
    return digest.hexdigest()


def check_files(written: Written, wrong: Mapping[str, str]) -> Verdict:
    """Every file is as manifest.json lists it; `wrong`: what `damaged_files` found."""
    found = [f"{name} {reason}" for name, reason in wrong.items()]
    if written.manifest is None:
        if not written.records and not written.run.metrics.exists():
            return Verdict(FILES, NOT_YET, f"{written.why_none}: no stage is done")
        return decided(FILES, [f"{written.why_none}, so nothing says what the files must be", *found], "")
    size = sum(entry["bytes"] for entry in written.manifest.values()) / 1e6
    good = f"{len(written.manifest)} files, {size:,.1f} MB, are as manifest.json lists them"
    return decided(FILES, found, good, _notes(written))


def _notes(written: Written) -> Iterable[str]:
    """What is no failure and worth a line."""
    run = written.run
    for folder, record in written.records.items():
        if others := strangers(run.path / folder, {*record.outputs, *written.in_manifest(folder)}):
            more = f" and {len(others) - 3} more" if len(others) > 3 else ""
            yield f"in {folder}/, and not made by tunesmith: {', '.join(others[:3])}{more}"
    listed = written.manifest or {}
    if any(name.startswith(f"{run.adapter.name}/") for name in listed):
        for path in (run.recipe, run.metrics, run.samples, run.loss_plot):
            if path.is_file() and path.name not in listed:
                yield f"{path.name} is not in manifest.json"
    for path in (run.metrics, run.samples):
        entry = listed.get(path.name)
        if (
            entry
            and path.is_file()
            and path.stat().st_size > entry["bytes"]
            and run.adapter.name not in written.records
        ):
            yield f"{path.name} has grown since manifest.json was written: its training was killed, and goes on"


def check_records(written: Written) -> Verdict:
    """Each stage's record lists the same files as the manifest, with the same digests, and its proofs hold."""
    wrong, notes = [*written.unread.values()], list[str]()
    for folder, record in written.records.items():
        if record.stage != folder:
            wrong.append(f"{folder}/{RECORD} is that of {record.stage}/")
        wrong += [f"{folder}/{RECORD} has a proof that does not hold: {p}" for p in record.proofs
                  if not p.skipped_because and not p.holds]  # fmt: skip
        notes += [f"{folder}/: {proof}" for proof in record.unproved]
        said, listed = {n: o for n, o in record.outputs.items() if n not in SAID_OF_FILES}, written.in_manifest(folder)
        if written.manifest is None:
            continue
        if f"{folder}/{RECORD}" not in written.manifest:
            if not listed:
                notes.append(f"{folder}/ is newer than manifest.json, so its process was killed: run it again")
                continue
            wrong.append(f"manifest.json lists files of {folder}/ and not its {RECORD}")
        other = sorted(name for name in said.keys() | listed.keys() if said.get(name) != listed.get(name))
        wrong += [f"{folder}/{RECORD} and manifest.json differ on {folder}/{name}" for name in other]
        proof = written.manifest.get(f"{folder}/{PROOFS}", {}).get("sha256")
        if record.measured and record.measured.get(PROOFS) != proof:
            wrong.append(f"{folder}/{RECORD} and manifest.json differ on {folder}/{PROOFS}")
    if not written.records and not wrong:
        return Verdict(RECORDS, NOT_YET, "no stage is done")
    skipped = [note for note in notes if "NOT proved" in note]
    if skipped and not wrong:
        return Verdict(RECORDS, SKIPPED, skipped[0], tuple(note for note in notes if note != skipped[0]))
    return decided(RECORDS, wrong, f"{', '.join(written.records)}: as manifest.json says, and every proof holds", notes)


def check_inputs(written: Written) -> Verdict:
    """Each stage was made from the one before as that is now."""
    records, folders = written.records, [stage.folder for stage in STAGES]
    wrong, gone, links = list[str](), list[str](), 0
    for folder, record in records.items():
        for name, digest in record.inputs.items():
            if name not in folders:
                continue
            if name not in records:
                gone.append(f"{folder}/ was made from a {name}/ that is no longer there")
            elif digest != output_digest(records[name]):
                wrong.append(f"{folder}/ was made from another {name}/ than is there")
            else:
                links += 1
    bases = {record.inputs["base"] for record in records.values() if "base" in record.inputs}
    if len(bases) > 1:
        wrong.append("the stages were made from different bases")
    if gone and not wrong:
        return Verdict(INPUTS, SKIPPED, gone[0], tuple(gone[1:]))
    if not links and not wrong:
        return Verdict(INPUTS, NOT_YET, "no stage was made from another yet")
    return decided(INPUTS, wrong, f"{' -> '.join(records)}: each was made from those before it", gone)


def check_counts(written: Written) -> Verdict:
    """No row disappeared without a counted reason: read = kept + dropped."""
    record = written.records.get(STAGES[0].folder)
    if record is None:
        return Verdict(ROWS, NOT_YET, "no rows are prepared")
    counts = record.counts
    try:
        read, train, held_out = counts["read"], counts["train_rows"], counts["held_out_rows"]
        dropped = sum(counts["dropped"].values())
    except (KeyError, AttributeError, TypeError):
        return Verdict(ROWS, SKIPPED, "the record does not count what was read and dropped")
    told = f"{read:,} read = {train:,} to train on + {held_out:,} held out + {dropped:,} dropped, each with its reason"
    if read != train + held_out + dropped:
        return decided(ROWS, [told.replace("=", "is not", 1).partition(", each")[0]], "")
    return decided(ROWS, [], told, [f"{n:,} dropped: {reason}" for reason, n in counts["dropped"].items()])


def why_not(written: Written, wrong: Mapping[str, str], *needs: str) -> Verdict | None:
    """Why a proof that reads these stages' folders, or files of the run, cannot be done; None where it can.

    What is damaged is not computed with: it is named in its own line, and a proof would say nothing.
    """
    for need in needs:
        damaged = [name for name in wrong if name == need or name.startswith(f"{need}/")]
        if damaged:
            return Verdict("", SKIPPED, f"{damaged[0]} is not as it was written")
        if need in written.unread:
            return Verdict("", SKIPPED, written.unread[need])
        if need in [stage.folder for stage in STAGES] and need not in written.records:
            later = [f for f, r in written.records.items() if need in r.inputs]
            if later:
                return Verdict("", SKIPPED, f"{need}/ is no longer there, and {later[0]}/ was made from it")
            return Verdict("", NOT_YET, f"there is no {need}/ yet")
    return None


def refuse_nothing(run: Run) -> None:
    """Raise ResumeError where there is nothing of a run to look at, or only what a mirror has of one."""
    if (run.path / OWNER).is_file() and not run.manifest.exists():
        fix = "fetch it with the same recipe and checkpoint.mirror, and name the folder of that run"
        raise ResumeError(f"{run.path} is a mirror, not a run", fix=fix)
    if not run.manifest.exists() and (why := run.why_none()):
        raise ResumeError(why, fix="name a folder under runs/; `tunesmith list` shows them")
