"""The run folder: its names, complete-or-absent writes, digests, and the record each stage leaves.

A stage reads folders and commits a new one with a record.json. A stage whose settings and inputs are those of
the record that stands is skipped. Nothing else in the package knows these file names.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from tunesmith import __version__, past
from tunesmith.errors import ResumeError
from tunesmith.files import (
    PROOFS,
    RECORD,
    commit_folder,
    digest_file,
    digest_folder,
    fingerprint,
    write_file,
)
from tunesmith.machine import versions
from tunesmith.recipe import Recipe, without_defaults
from tunesmith.recipe_file import dump_recipe, lasting
from tunesmith.stages import STAGES

MADE_BY = "# The recipe of this run, every setting resolved. Made by tunesmith "
"""How recipe.yaml begins: a folder with such a file is a run folder, and ours."""


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

    def __str__(self) -> str:
        if self.skipped_because:
            return f"NOT proved: {self.name}: {self.skipped_because}"
        limit = f"limit {self.limit:g}, " if self.limit is not None else ""
        return f"{self.name}: {self.value:.2g} ({limit}{self.positions:,} positions)"


@dataclass(frozen=True)
class Record:
    """What a stage did: enough to skip it, to report it, and to check its files."""

    stage: str
    fingerprint: str
    """Hash of settings and inputs, for people: what decides is `same_needs`."""
    settings: dict[str, Any]
    inputs: dict[str, str]
    """Name of an input -> its digest."""
    outputs: dict[str, dict[str, Any]]
    """File below the stage's folder -> its sha256 and size in bytes."""
    versions: dict[str, str]
    counts: dict[str, Any]
    seconds: float
    proofs: tuple[Proof, ...] = ()

    @property
    def unproved(self) -> list[Proof]:
        """The proofs that were skipped."""
        return [proof for proof in self.proofs if proof.skipped_because]


class Run:
    """Names inside one run folder."""

    def __init__(self, path: Path, file: Recipe | None = None) -> None:
        """`file`: the recipe without what holds for this call only, where that differs."""
        self.path = path
        self._file = file
        self.recipe = path / "recipe.yaml"
        self.data, self.adapter, self.model, self.gguf, self.evaluation = self.stage_folders
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.loss_plot = path / "loss.png"
        self.report = path / "report.html"
        self.manifest = path / "manifest.json"
        self.lock = path / ".lock"

    def keep_recipe(self, recipe: Recipe) -> None:
        """Make recipe.yaml say `recipe`: called where a stage was done with it, or has begun and cannot be refused."""
        text = f"{MADE_BY}{__version__}\n" + dump_recipe(lasting(recipe, self._file) if self._file else recipe)
        if not self.recipe.exists() or self.recipe.read_text() != text:
            write_file(self.recipe, text)

    @property
    def stage_folders(self) -> list[Path]:
        """The folders that stages commit, in order."""
        return [self.path / stage.folder for stage in STAGES]

    def gguf_file(self, name: str, gguf_type: str) -> Path:
        """Path of one exported file, such as gguf/demo-Q8_0.gguf."""
        return self.gguf / f"{name}-{gguf_type}.gguf"


def read_record(folder: Path) -> Record | None:
    """The record of a committed stage; None if the folder does not stand or a file of it is missing or cut.

    Records of earlier versions come in the form of this one.
    """
    try:
        raw = past.record_as_now(json.loads((folder / RECORD).read_text()))
        known = {field.name: raw[field.name] for field in fields(Record) if field.name in raw}
        record = Record(**known | {"proofs": tuple(Proof(**proof) for proof in raw["proofs"])})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ResumeError(f"{folder / RECORD} is damaged: {error}", fix=f"delete {folder} to make it again") from error
    whole = all(
        (folder / name).is_file() and (folder / name).stat().st_size == output["bytes"]
        for name, output in record.outputs.items()
    )
    return record if whole else None


def needs_fingerprint(settings: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Hash of what decides a stage. A field at its default does not count, so that a new field redoes nothing."""
    return fingerprint([without_defaults(settings), dict(inputs)])


def made_from(record: Record | None, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> bool:
    """Whether a stage that stands was made from these settings and inputs."""
    return record is not None and needs_fingerprint(record.settings, record.inputs) == needs_fingerprint(
        settings, inputs
    )


def commit_stage(
    folder: Path, settings: Mapping[str, Any], inputs: Mapping[str, str],
    work: Callable[[Path], dict[str, Any]], prove: Callable[[Path], Sequence[Proof]] = lambda _: (),
) -> tuple[Record, bool]:  # fmt: skip
    """The record of the stage whose folder is `folder`; True with it if the stage was done now, False if it stood.

    `settings` and `inputs` (name -> digest) decide the result. `work` fills a draft folder and returns counts; `prove`
    proves what it made. Where the folder stands and a proof was skipped, `prove` alone is done again.
    """
    standing = read_record(folder)
    if standing and made_from(standing, settings, inputs):
        return (_proved(folder, standing, prove) if standing.unproved else standing), False
    started = time.monotonic()

    def write(draft: Path) -> None:
        counts = work(draft)
        proofs = tuple(prove(draft))
        record = Record(
            stage=folder.name,
            fingerprint=needs_fingerprint(settings, inputs),
            settings=dict(settings),
            inputs=dict(inputs),
            outputs=digest_folder(draft),
            versions=versions(),
            counts=counts,
            seconds=round(time.monotonic() - started, 2),
            proofs=proofs,
        )
        (draft / RECORD).write_text(_record_text(record))

    commit_folder(folder, write)
    done = read_record(folder)
    assert done is not None
    return done, True


def _proved(folder: Path, record: Record, prove: Callable[[Path], Sequence[Proof]]) -> Record:
    """The record with the proofs that could be done now; what was proved before stays."""
    before = [proof for proof in record.proofs if not proof.skipped_because]
    names = {proof.name for proof in before}
    now = replace(record, proofs=(*before, *(proof for proof in prove(folder) if proof.name not in names)))
    if now.proofs != record.proofs:
        write_file(folder / RECORD, _record_text(now))
    return now


def _record_text(record: Record) -> str:
    return json.dumps(asdict(record), indent=1) + "\n"


def output_digest(record: Record) -> str:
    """One digest for all outputs of a stage: an input of the next one."""
    return fingerprint({name: output["sha256"] for name, output in record.outputs.items()})


def write_manifest(run: Run) -> None:
    """Digests of every file of the run; written last by every stage. Committed stages are not read again."""
    files: dict[str, dict[str, Any]] = {}
    for folder in run.stage_folders:
        record = read_record(folder)
        if record:
            files |= {f"{folder.name}/{name}": output for name, output in record.outputs.items()}
            said = (folder / RECORD, folder / PROOFS)
            files |= {f"{folder.name}/{path.name}": _file_entry(path) for path in said if path.exists()}
    for path in (run.recipe, run.metrics, run.loss_plot, run.report):
        if path.exists():
            files[path.name] = _file_entry(path)
    write_file(run.manifest, json.dumps({"files": files}, indent=1, sort_keys=True) + "\n")


def _file_entry(path: Path) -> dict[str, Any]:
    return {"sha256": digest_file(path), "bytes": path.stat().st_size}
