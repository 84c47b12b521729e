"""What a stage leaves beside its files: record.json, with what it was made from, its files' digests and its proofs."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from tunesmith import past
from tunesmith.boundary import why_unread
from tunesmith.errors import ResumeError
from tunesmith.files import DROPPED, RECORD, SAID_OF_FILES, digest_file, fingerprint
from tunesmith.json_file import OTHER_JSON, json_object
from tunesmith.recipe_defaults import without_defaults
from tunesmith.stages import STAGES, stage_at


@dataclass(frozen=True)
class Proof:
    """Two things that must be equal, and how equal they were: `value` is at most `limit`."""

    name: str
    value: float | None
    limit: float | None
    """None: measured, and for the user to judge."""
    positions: int
    """At how many places they were compared."""
    skipped_because: str | None = None
    """Why it was not done: then it is no proof, and is done later where it can be."""

    @property
    def holds(self) -> bool:
        """Whether it was done and the value is within the limit; a value that is no number is not."""
        return self.value is not None and (self.limit is None or self.value <= self.limit)

    def in_words(self, equal: str) -> str:
        """What is said of it in the log, where `equal` says what was proved; the numbers are in the record."""
        return str(self) if self.skipped_because or not self.holds else f"proved: {equal}"

    def __str__(self) -> str:
        if self.skipped_because:
            return f"NOT proved: {self.name}: {self.skipped_because}"
        limit = f"limit {self.limit:g}, " if self.limit is not None else ""
        value = f"{self.value:.2g}" if self.limit is not None else f"{self.value:.4g}"
        return f"{self.name}: {value} ({limit}{self.positions:,} positions)"


@dataclass(frozen=True)
class Record:
    """What a stage did: enough to skip it, to report it, and to check its files."""

    stage: str
    fingerprint: str
    """Hash of settings and inputs, for people: what decides is `made_from`."""
    settings: dict[str, Any]
    inputs: dict[str, str]
    """Name of an input -> its digest."""
    outputs: dict[str, dict[str, Any]]
    """File below the stage's folder -> its sha256 and size in bytes."""
    versions: dict[str, str]
    counts: dict[str, Any]
    seconds: float
    proofs: tuple[Proof, ...] = ()
    measured: dict[str, str] = field(default_factory=dict)
    """File of what its proofs measured, such as proof.json -> its sha256: it is written again when a proof is done."""

    @property
    def unproved(self) -> list[Proof]:
        """The proofs that were skipped."""
        return [proof for proof in self.proofs if proof.skipped_because]


RECORDS = TypeAdapter(Record)


def read_record(folder: Path) -> Record | None:
    """The record of a committed stage; None if the folder does not stand or a file of it is missing or cut.

    Records of earlier versions come in the form of this one.
    """
    try:
        record = parsed(folder)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OTHER_JSON as error:
        fix = f"if tunesmith made {folder.name}/, delete it to make it again; if it is yours, move it elsewhere"
        raise ResumeError(f"{folder / RECORD} is damaged: {why_unread(error)}", fix=fix) from error
    whole = all(
        (folder / name).is_file() and (folder / name).stat().st_size == output["bytes"]
        for name, output in record.outputs.items()
        if name not in SAID_OF_FILES  # version 0.1 listed proof.json, which is written again when a proof is
    )
    return record if whole else None


def damaged_file(folder: Path) -> Path | None:
    """The first file of a stage that stands that has other bytes than were written. Reads all of them."""
    record = read_record(folder)
    changed = (
        folder / name
        for name, output in (record.outputs.items() if record else ())
        if name not in SAID_OF_FILES and digest_file(folder / name) != output["sha256"]
    )
    return next(changed, None)


def lost_measures(folder: Path) -> Path | None:
    """The first file of what was measured, of a stage that stands, that is gone or not as it was written."""
    record = read_record(folder)
    for name, digest in (record.measured if record else {}).items():
        if not (folder / name).is_file() or digest_file(folder / name) != digest:
            return folder / name
    return None


def refuse_lost_measures(folder: Path) -> None:
    """Raise ResumeError, with the fix, if what a stage's proofs measured is gone or not as it was written."""
    if file := lost_measures(folder):
        fix = f"type {_command_for(folder)}, which measures it anew"
        raise ResumeError(f"{file} {'is not as it was written' if file.exists() else 'is missing'}", fix=fix)


def is_to_prove(folder: Path) -> bool:
    """Whether a stage that stands has a proof to do: one that was skipped, or whose measures are lost."""
    record = read_record(folder)
    return record is not None and bool(record.unproved or lost_measures(folder))


def refuse_damaged(folder: Path) -> None:
    """Raise ResumeError if a file of a stage that stands has other bytes than were written."""
    if file := damaged_file(folder):
        raise ResumeError(f"{file} is not as it was written, so nothing is made from it", fix=made_anew(folder))


def made_anew(folder: Path) -> str:
    """The fix for a damaged file in a stage's folder."""
    command = _command_for(folder)
    if folder.name != STAGES[0].folder:
        return f"delete {folder}, type {command}, which makes it anew, and then the same again"
    record = read_record(folder)  # rows that are not the same would end the training that has begun with these
    by = f"tunesmith {record.versions.get('tunesmith', '0.1')}" if record else "the version that made it"
    return (
        f"put the file back from a copy; or move {folder} elsewhere and type {command}, which makes the same rows "
        f"where the data files are as they were and with {by}"
    )


def _command_for(folder: Path) -> str:
    """What to type for the stage of this folder."""
    return f"`tunesmith {stage_at(folder.name).verb} {shlex.quote(str(folder.parent))}`"


def parsed(folder: Path) -> Record:
    """The record in a folder. Raises OSError if there is none, one of OTHER_JSON if it is none of ours."""
    raw = past.record_as_now(json_object((folder / RECORD).read_bytes()))
    try:
        record = RECORDS.validate_python(raw)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    if not all({"sha256", "bytes"} <= output.keys() for output in record.outputs.values()):
        raise ValueError("outputs: one has no digest or no size")
    return record


def is_own(folder: Path) -> bool:
    """Whether the stage of this folder's name made it: its record says so."""
    try:
        return parsed(folder).stage == folder.name
    except (OSError, *OTHER_JSON):
        return False


def needs_fingerprint(settings: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Hash of what decides a stage. A field at its default does not count, so that a new field redoes nothing."""
    return fingerprint([without_defaults(settings), dict(inputs)])


def made_from(record: Record | None, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> bool:
    """Whether a stage that stands was made from these settings and inputs."""
    return record is not None and needs_fingerprint(record.settings, record.inputs) == needs_fingerprint(
        settings, inputs
    )


def record_text(record: Record) -> str:
    """What record.json says."""
    return json.dumps(asdict(record), indent=1) + "\n"


def output_digest(record: Record) -> str:
    """One digest for all outputs of a stage that the next one reads: an input of it. Other words in the list of what
    was dropped are no other rows.
    """
    return fingerprint({name: output["sha256"] for name, output in record.outputs.items() if name != DROPPED})
