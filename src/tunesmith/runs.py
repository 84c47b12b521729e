"""The run folder: its names, what may stand in it, and how a stage is committed to it.

A stage reads folders and commits a new one with a record.json. A stage whose settings and inputs are those of
the record that stands is skipped. Nothing else in the package knows these file names. What is not ours (no record of
ours, no recipe.yaml that we made) is never replaced or deleted.
"""

import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunesmith import __version__, past
from tunesmith.errors import ResumeError
from tunesmith.files import (
    DAMAGED,
    DRAFT,
    GONE,
    OLD,
    PROOFS,
    RECORD,
    beside,
    commit_folder,
    digest_file,
    digest_folder,
    file_entry,
    fingerprint,
    is_clutter,
    remove,
    strangers,
    sweep,
    write_file,
)
from tunesmith.json_file import OTHER_JSON, json_object
from tunesmith.machine import versions
from tunesmith.recipe import Recipe
from tunesmith.recipe_file import dump_recipe, lasting
from tunesmith.record import (
    Proof,
    Record,
    is_own,
    is_to_prove,
    made_from,
    needs_fingerprint,
    parsed,
    read_record,
    record_text,
    refuse_damaged,
)
from tunesmith.stages import STAGES

MADE_BY = "# The recipe of this run, every setting resolved. Made by tunesmith "
"""How recipe.yaml begins: a folder with such a file is a run folder, and ours."""
CHECKPOINT = re.compile(r"step-(\d+)")
LEFT = re.compile(rf"\.(step-\d+)\.(?:{DRAFT}|{OLD}|{GONE})")
"""What a killed save of a checkpoint leaves."""
ELSEWHERE = "put the run elsewhere: --run-dir takes a new or an empty folder, and without it the run is in runs/NAME"


class Run:
    """Names inside one run folder."""

    def __init__(self, path: Path, file: Recipe | None = None) -> None:
        """`file`: the recipe without what holds for this call only, where that differs."""
        self.path = path
        self._file = file
        self.recipe = path / "recipe.yaml"
        self.data, self.scores, self.adapter, self.model, self.gguf, self.evaluation = self.stage_folders
        self.checkpoints = path / "checkpoints"
        self.ancestor = path / "ancestor"
        """The adapter that a fork began with."""
        self.metrics = path / "metrics.jsonl"
        self.samples = path / "samples.jsonl"
        self.loss_plot = path / "loss.png"
        self.report = path / "report.html"
        self.data_report = path / "data.html"
        self.manifest = path / "manifest.json"
        self.published = path / "published.json"
        self.lock = path / ".lock"
        self.scratch = path / "proof"
        """Never there itself: its draft holds what a proof needs for a moment."""
        self.leaving = path / "leaving"
        """Likewise: its draft holds what is on its way to the mirror."""

    def keep_recipe(self, recipe: Recipe) -> None:
        """Make recipe.yaml say `recipe`: called where a stage was done with it, or has begun and cannot be refused."""
        if self.recipe.exists() and not self._made_recipe():
            raise ResumeError(f"{self.recipe} was not made by tunesmith and is not replaced", fix=ELSEWHERE)
        text = f"{MADE_BY}{__version__}\n" + dump_recipe(lasting(recipe, self._file) if self._file else recipe)
        if not self.recipe.exists() or self.recipe.read_text(encoding="utf-8", errors="replace") != text:
            write_file(self.recipe, text)

    def why_none(self) -> str:
        """Why no run can be opened here; empty where one can."""
        if self.recipe.is_file():
            return ""
        other = "it is a file" if self.path.exists() else "there is no such folder"
        why = "it has no recipe.yaml" if self.path.is_dir() else other
        return f"{self.path} is no run folder: {why}"

    def refuse_none(self) -> None:
        """Raise ResumeError where no run can be opened."""
        if why := self.why_none():
            raise ResumeError(why, fix="name a folder under runs/")

    @property
    def stage_folders(self) -> list[Path]:
        """The folders that stages commit, in order."""
        return [self.path / stage.folder for stage in STAGES]

    @property
    def files(self) -> list[Path]:
        """The files that are neither in a stage's folder nor hidden."""
        reports = (self.report, self.data_report)
        return [self.recipe, self.metrics, self.samples, self.loss_plot, *reports, self.manifest, self.published]

    def refuse_strangers(self) -> None:
        """Raise ResumeError if the folder is there, not empty, and no run folder of ours; nothing is written."""
        if not os.path.lexists(self.path):
            return
        if not self.path.is_dir():
            raise ResumeError(f"{self.path} is a file, so it cannot be a run folder", fix=ELSEWHERE)
        self._refuse_other_kinds()
        if self.recipe.exists():
            if not self._made_recipe():
                fix = f"{ELSEWHERE}; to use this recipe, name the file: {self.recipe}"
                raise ResumeError(f"{self.path} is no run folder: tunesmith did not make its recipe.yaml", fix=fix)
            return
        folders = (*self.stage_folders, self.ancestor)
        hidden = {beside(path, kind).name for path in (*folders, *self.files) for kind in (DRAFT, OLD, GONE)}
        hidden |= {beside(self.checkpoints, GONE).name, beside(self.leaving, DRAFT).name}
        own = {folder.name for folder in folders if is_own(folder)}
        if own:  # killed before its recipe.yaml was written, or that was deleted
            own |= {path.name for path in (*self.files, self.checkpoints)}
            for lines in (self.metrics, self.samples):
                own |= {path.name for path in self.path.glob(f"{DAMAGED}{lines.name}-*")}
            own |= {path.name for path in self.path.glob(f"{self.report.stem}-*.html")}  # earlier comparisons
        elif self._made_manifest():
            own.add(self.manifest.name)
        if self._made_lock():
            own.add(self.lock.name)
        found = sorted(path.name for path in self.path.iterdir())
        if others := [name for name in found if name not in own | hidden and not is_clutter(name)]:
            more = f" and {len(others) - 3} more" if len(others) > 3 else ""
            raise ResumeError(
                f"{self.path} is no run folder: it has no recipe.yaml that tunesmith made, and holds "
                f"{', '.join(others[:3])}{more}", fix=ELSEWHERE
            )  # fmt: skip

    def is_own_report(self, report: Path) -> bool:
        """Whether a report is to be this run's, in its folder; one that the user has made a link is the user's."""
        return report.absolute() == self.report.absolute() and not report.is_symlink()

    def _refuse_other_kinds(self) -> None:
        """Raise ResumeError if a folder stands where a file belongs, or the other way round."""
        for path in (*self.files, self.lock, self.checkpoints):
            wanted = "a folder" if path == self.checkpoints else "a file"
            if path.exists() and path.is_dir() != (path == self.checkpoints):
                raise ResumeError(f"{path} is not {wanted}, and tunesmith keeps {wanted} there", fix=ELSEWHERE)

    def _made_recipe(self) -> bool:
        """Whether recipe.yaml is ours: by its first line, or, as version 0.1 wrote none, by its form and what lies
        beside it; a lock alone says nothing of a recipe that somebody wrote.
        """
        text = self.recipe.read_text(encoding="utf-8", errors="replace")
        if text.startswith(MADE_BY):
            return True
        beside_it = self._made_manifest() or (self.lock.exists() and self._made_lock()) or is_own(self.data)
        return (not text.strip() or past.is_recipe_of_0_1(text)) and beside_it  # cut to nothing, or of that version

    def _made_manifest(self) -> bool:
        try:
            text = self.manifest.read_text()
            files = json_object(text)["files"]
            listed = bool(files) or text == _manifest_text({})  # of a prepare that failed
            return listed and all({"sha256", "bytes"} <= entry.keys() for entry in files.values())
        except (OSError, *OTHER_JSON):
            return False

    def _made_lock(self) -> bool:
        try:
            text = self.lock.read_text(errors="replace").strip()
            return re.fullmatch(r"(\d+( [\w.-]{0,64})?)?", text) is not None  # a process number, and its machine
        except OSError:
            return False

    def sweep(self) -> None:
        """Clear what a killed process left, and put back what it had only moved aside. Only under the run's lock."""
        said = [folder / name for folder in self.stage_folders for name in (RECORD, PROOFS)]
        sweep([*self.stage_folders, self.ancestor, self.scratch, self.leaving, *self.files, *said])
        remove(beside(self.checkpoints, GONE))  # of a new start
        sweep_checkpoints(self.checkpoints)

    def adapter_gguf(self, name: str) -> Path:
        """The GGUF file of the adapter alone."""
        return self.gguf / f"{name}-lora-F16.gguf"

    def gguf_file(self, name: str, gguf_type: str) -> Path:
        """Path of one exported file, such as gguf/demo-Q8_0.gguf."""
        return self.gguf / f"{name}-{gguf_type}.gguf"


def refuse_foreign(folder: Path) -> None:
    """Raise ResumeError if what stands at a stage's place is not the stage's own."""
    if os.path.lexists(folder) and not is_own(folder):
        raise ResumeError(
            f"{folder} is not replaced: tunesmith did not make it (it has no {RECORD} of the stage {folder.name})",
            fix=f"move it elsewhere, or {ELSEWHERE}",
        )


def refuse_to_replace(folder: Path) -> None:
    """Raise ResumeError if what stands at a stage's place is not the stage's own, or holds a file of the user's."""
    refuse_foreign(folder)
    if folder.exists() and (others := strangers(folder, parsed(folder).outputs)):
        raise ResumeError(
            f"{folder} is to be made again and holds what tunesmith did not make: {', '.join(others[:3])}",
            fix="move that elsewhere and type the same again",
        )


def checkpoint_folders(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first. What other programs make of them (step-000040.zip) are none."""
    found = [path for path in folder.glob("step-*") if CHECKPOINT.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: (step_of(path.name), path.name))


def checkpoint_name(step: int) -> str:
    """step-000040 of 40."""
    return f"step-{step:06d}"


def step_of(checkpoint: str) -> int:
    """40 of step-000040."""
    return int(checkpoint.removeprefix("step-"))


def sweep_checkpoints(folder: Path) -> None:
    """Clear what a killed save of a checkpoint left; no other hidden file."""
    left = [LEFT.fullmatch(path.name) for path in folder.glob(".step-*")]
    sweep(sorted({folder / match[1] for match in left if match}))


def commit_stage(
    folder: Path, settings: Mapping[str, Any], inputs: Mapping[str, str],
    work: Callable[[Path], dict[str, Any]], prove: Callable[[Path], Sequence[Proof]] = lambda _: (),
) -> tuple[Record, bool]:  # fmt: skip
    """The record of the stage whose folder is `folder`; True with it if the stage was done now, False if it stood.

    `settings` and `inputs` (name -> digest) decide the result. `work` fills a draft folder and returns counts; `prove`
    proves what it made. Where the folder stands and a proof was skipped, or what it measured is lost, `prove` alone is
    done again, and may change proof.json. Raises ResumeError before any work if what stands there is the user's, or an
    earlier stage's folder that is an input is not as that stage wrote it: the proofs would hold for something else.
    """
    standing = read_record(folder)
    stands = standing is not None and made_from(standing, settings, inputs)
    if standing and stands and not is_to_prove(folder):
        return standing, False
    for stage in STAGES:
        if stage.folder in inputs:
            refuse_damaged(folder.parent / stage.folder)
    if standing and stands:
        return _proved(folder, standing, prove), False
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
            measured=_measured(draft),
        )
        (draft / RECORD).write_text(record_text(record))

    commit_folder(folder, write, refuse_to_replace, fingerprint([needs_fingerprint(settings, inputs), versions()]))
    done = read_record(folder)
    assert done is not None
    return done, True


def _proved(folder: Path, record: Record, prove: Callable[[Path], Sequence[Proof]]) -> Record:
    """The record with the proofs that could be done now; what was proved before stays."""
    if (folder / PROOFS).is_dir():
        raise ResumeError(f"{folder / PROOFS} is a folder, and tunesmith keeps a file there", fix="move it elsewhere")
    before = [proof for proof in record.proofs if not proof.skipped_because]
    names = {proof.name for proof in before}
    proofs = (*before, *(proof for proof in prove(folder) if proof.name not in names))
    now = replace(record, proofs=proofs, measured=_measured(folder))
    if now != record:
        write_file(folder / RECORD, record_text(now))
    return now


def _measured(folder: Path) -> dict[str, str]:
    return {PROOFS: digest_file(folder / PROOFS)} if (folder / PROOFS).is_file() else {}


def write_manifest(run: Run) -> None:
    """Digests of every file of the run; written last by every stage. Committed stages are not read again."""
    files: dict[str, dict[str, Any]] = {}
    for folder in (run.ancestor, *run.stage_folders):
        record = read_record(folder)
        if record:
            files |= {f"{folder.name}/{name}": output for name, output in record.outputs.items()}
            said = (folder / RECORD, folder / PROOFS)
            files |= {f"{folder.name}/{path.name}": file_entry(path) for path in said if path.is_file()}
    for path in (run.recipe, run.metrics, run.samples, run.loss_plot, run.report, run.data_report):
        if path.is_file():
            files[path.name] = file_entry(path)
    write_file(run.manifest, _manifest_text(files))


def _manifest_text(files: Mapping[str, Any]) -> str:
    return json.dumps({"files": files}, indent=1, sort_keys=True) + "\n"
