"""VERB list: the runs in a folder and how each stands, from their records alone."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunesmith.boundary import why_unread
from tunesmith.decides import kept_recipe
from tunesmith.errors import RecipeError, TunesmithError
from tunesmith.files import RECORD
from tunesmith.json_file import OTHER_JSON, json_object
from tunesmith.lock import process_in
from tunesmith.recipe import Recipe
from tunesmith.record import Record, lost_measures, read_record
from tunesmith.release.published import published
from tunesmith.runs import Run, checkpoint_folders, step_of
from tunesmith.stages import STAGES
from tunesmith.stale import stale
from tunesmith.training.outcome import ancestor_of

LEAST_WIDTH = 60
READ = (TunesmithError, OSError, *OTHER_JSON)
"""What reading a run that something has damaged may end with."""


@dataclass(frozen=True)
class Standing:
    """One run, as its records have it; what a damaged one does not tell is None."""

    path: str
    state: str
    """finished, running, paused, begun, old (not what its recipe says) or damaged."""
    says: str
    """The state in words."""
    base: str | None
    fork_of: str | None
    """Of a fork: the name of the run whose adapter it began with."""
    held_out_loss: float | None
    """Nats per token."""
    bits_per_byte: float | None
    bytes: int
    changed: float
    """When something in it was written last, in seconds since 1970."""


def runs_in(folders: Sequence[Path] | None) -> tuple[list[Standing], list[Path]]:
    """The runs in these folders, or that these folders are, newest last; and the folders in them that are no runs.

    `folders`: None for runs/, which need not be there. Raises RecipeError for one that is not there.
    """
    if lacking := [folder for folder in folders or () if not folder.is_dir()]:
        what = f"{lacking[0]} is a file" if lacking[0].exists() else f"there is no folder {lacking[0]}"
        raise RecipeError(what, fix="name a run or a folder of runs; without one it is runs/")
    found, foreign = list[Standing](), list[Path]()
    for folder in folders or [Path("runs")]:
        inside = [folder] if _is_run(folder) else sorted(path for path in folder.glob("[!.]*") if path.is_dir())
        for path in inside:
            if _is_run(path):
                found.append(standing_of(Run(path)))
            else:
                foreign.append(path)
    return sorted(found, key=lambda run: (run.changed, run.path)), foreign


def _is_run(folder: Path) -> bool:
    """Whether tunesmith made this folder, and something is in it: what a prepare that failed leaves is nothing."""
    run = Run(folder)
    try:
        run.refuse_strangers()
        made = any(path not in (run.lock, run.manifest) for path in folder.iterdir())
        return folder.is_dir() and (made or process_in(run) is not None)
    except READ:
        return False


def standing_of(run: Run) -> Standing:
    """How a run stands. Reads records and sizes only; what is damaged is said, not raised."""
    base, ancestor, counts = None, None, dict[str, Any]()
    size, changed = _size_and_time(run.path)
    try:
        recipe = kept_recipe(run) if run.recipe.exists() else None
        base = recipe.base if recipe else None
        records = {stage.folder: read_record(run.path / stage.folder) for stage in STAGES}
        trained = records[run.adapter.name]
        counts = trained.counts if trained else {}
        begun = read_record(run.ancestor)
        ancestor = begun.counts if begun else counts.get("ancestor")
        state, says = _state(run, recipe, records)
        says += _where_published(run)
    except READ as error:
        file = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        what = error.what if isinstance(error, TunesmithError) else file + why_unread(error)
        state, says = "damaged", f"damaged: {' '.join(what.split())}"
    if process := process_in(run):
        state, says = "running", f"running now (process {process})"
    fork_of = ancestor_of(ancestor)[0] or None
    return Standing(
        str(run.path), state, says, base, fork_of, _number(counts, "held_out_loss"), _number(counts, "bits_per_byte"),
        size, changed,
    )  # fmt: skip


def _state(run: Run, recipe: Recipe | None, records: dict[str, Record | None]) -> tuple[str, str]:
    for folder in run.stage_folders:
        if (folder / RECORD).exists() and records[folder.name] is None:
            return "damaged", f"damaged: a file of {folder.name}/ is missing or cut"
        if lost := lost_measures(folder):
            return "damaged", f"damaged: {folder.name}/{lost.name} is missing or not as it was written"
    if recipe and (old := stale(recipe, run, STAGES[-1].verb)):
        more = f", and {len(old) - 1} more" if len(old) > 1 else ""
        return "old", f"not what its recipe says: {old[0]}{more}"
    wanted = [stage for stage in STAGES if (stage.is_wanted(recipe) if recipe else not stage.scores)]
    done = [stage for stage in wanted if records[stage.folder]]
    if wanted[-1] in done:
        return "finished", "finished"
    if not records[run.adapter.name] and (saved := checkpoint_folders(run.checkpoints)):
        return "paused", f"paused at step {_step_of(saved[-1])}"
    return "begun", f"{done[-1].verb} is done, {_next(wanted, done)} comes next" if done else "nothing is done yet"


def _where_published(run: Run) -> str:
    """In which repositories of the Hub it was published last, in words; empty where in none."""
    there = [id for id, said in published(run).items() if said.get("commit")]
    return f", published as {' and '.join(there)}" if there else ""


def _next(wanted: list[Any], done: list[Any]) -> str:
    return str(wanted[wanted.index(done[-1]) + 1].verb)


def _step_of(checkpoint: Path) -> str:
    """The step of a checkpoint, and of how many, where it says so: version 0.1 did not."""
    step = step_of(checkpoint.name)
    try:
        of = json_object((checkpoint / "state.json").read_bytes()).get("planned_steps")
    except (OSError, *OTHER_JSON):
        of = None
    return f"{step} of {of}" if isinstance(of, int) and of else str(step)


def _number(counts: dict[str, Any], name: str) -> float | None:
    value = counts.get(name)
    return float(value) if isinstance(value, int | float) else None


def _size_and_time(folder: Path) -> tuple[int, float]:
    """Bytes of all files below, and when one was written last, or where there is none the folder; what goes away
    meanwhile is passed over.
    """
    size, changed = 0, 0.0
    for path in folder.rglob("*"):
        try:
            found = path.lstat()
        except OSError:
            continue
        if not path.is_dir() and path.name != ".lock":
            size, changed = size + found.st_size, max(changed, found.st_mtime)
    return size, changed or folder.stat().st_mtime


def as_json_text(runs: list[Standing]) -> str:
    """The runs as a JSON list, for scripts."""
    return json.dumps([asdict(run) for run in runs], indent=1)


def as_table(runs: list[Standing], foreign: list[Path], width: int = 80) -> str:
    """The runs as text, a line each and one below it for the base and for words that are long.

    `width`: columns; less than the numbers and a short name need are taken for these.
    """
    width = max(width, LEAST_WIDTH)
    if not runs:
        lines = ["no runs here"]
    else:
        wide = min(max(len(run.path) for run in runs), width - 50)
        lines = [f"{'run':<{wide}}  {'held-out loss':>13}  {'bits/byte':>9}  {'size':>8}  last written"]
        for run in runs:
            when = time.strftime("%m-%d %H:%M", time.localtime(run.changed))
            numbers = f"{_shown(run.held_out_loss):>13}  {_shown(run.bits_per_byte):>9}  {megabytes(run.bytes):>8}"
            first = [] if len(run.path) <= wide else [run.path]  # too long for a column: a line to itself
            lines += [*first, f"{'' if first else run.path:<{wide}}  {numbers}  {when}", *_below(run, width)]
    if foreign:
        lines.append(f"no runs, and left out: {', '.join(str(path) for path in foreign)}")
    return "\n".join(lines)


def _below(run: Standing, width: int) -> list[str]:
    """What stands below a run's line, cut to the width."""
    forked = [f"fork of {run.fork_of}"] if run.fork_of else []
    texts = [", ".join([run.says, *forked]), *([f"base {run.base}"] if run.base else [])]
    one = f"  {', '.join(texts)}"
    lines = [one] if len(one) <= width else [f"  {text}" for text in texts]
    return [line if len(line) <= width else f"{line[: width - 3]}..." for line in lines]


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def megabytes(size: int) -> str:
    """A size in MB, or GB from 10 of them on."""
    return f"{size / 1e9:.1f} GB" if size >= 10**10 else f"{size / 1e6:.1f} MB"
