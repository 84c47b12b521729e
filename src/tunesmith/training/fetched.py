"""What a run folder lacks, from its mirror: rows, the newest whole checkpoint and the best one, and the recipe.

What is there is believed only where its bytes are those that were written. Each folder is committed whole or not at
all, and recipe.yaml last: where it stands, nothing that came before it is missing.
"""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from tunesmith.boundary import is_full_disk
from tunesmith.console import say, warn
from tunesmith.decides import as_begun, kept_recipe, run_settings
from tunesmith.errors import ResourceError, ResumeError, TunesmithError
from tunesmith.files import DIGESTS, PROOFS, RECORD, aside, bytes_of, commit_folder, digest_file, write_file
from tunesmith.json_file import OTHER_JSON
from tunesmith.recipe import Recipe
from tunesmith.record import damaged_file, is_own, parsed
from tunesmith.runs import CHECKPOINT, MADE_BY, Run, checkpoint_folders, checkpoint_name, step_of
from tunesmith.stale import needs_differ
from tunesmith.training.saved import ADAPTER, best_step, digests_in, file_damage, is_whole
from tunesmith.training.store import Result, Store, reason, within

LIMIT_S = 120.0
"""How long a mirror may say nothing at all before it counts as one that cannot be reached."""
RECIPE, DATA, ANCESTOR, CHECKPOINTS = "recipe.yaml", "data", "ancestor", "checkpoints"
METRICS, SAMPLES = "metrics.jsonl", "samples.jsonl"
OF_THE_RUN = (METRICS, SAMPLES)
"""Files of a mirrored checkpoint that are the run's here, as they were when it was saved."""
FIX = (
    "see to the network and the credentials and type the same again; to begin without what may be there, add "
    "--set checkpoint.mirror=null"
)


class Damaged(Exception):  # noqa: N818 - not an error: the next older one is taken
    """What is in the mirror is not what was written; says why."""


def refuse_other_run(store: Store, run: Run, asked: Recipe) -> None:
    """Raise ResumeError where another run of this name is in the mirror: one that is neither what is `asked` for nor
    the one in this run folder. Its rows, checkpoints and deletion are none of ours. One that cannot be read is named
    as it is fetched.
    """
    try:
        content, ancestor = _asked(lambda: (store.read(RECIPE), store.read(f"{ANCESTOR}/{DIGESTS}")))
    except Exception:  # of several libraries
        return
    if not content or not content.startswith(MADE_BY.encode()):
        return
    with tempfile.TemporaryDirectory(prefix="tunesmith-") as folder:
        there = Run(Path(folder))
        there.recipe.write_bytes(content)
        theirs, now = kept_recipe(there), as_begun(asked, there)
    differ = _differ(theirs, now)
    if differ and run.recipe.is_file() and not _differ(theirs, kept_recipe(run)):
        differ = []  # this run's own: that it was made otherwise is said where it is begun anew or gone on with
    if run.ancestor.is_dir() and _adapter_in(ancestor) != digest_file(run.ancestor / ADAPTER):
        differ.append("ancestor/: other weights to begin with (--fork)")
    if differ:
        raise ResumeError(
            f"the mirror {store.place} holds another run of this name:\n  - " + "\n  - ".join(differ),
            fix="give the recipe another name, or another checkpoint.mirror; or set it back as it was",
        )


def _differ(one: Recipe, other: Recipe) -> list[str]:
    """The settings in which two runs differ; their files are compared where they are used."""
    return needs_differ((run_settings(one), {}), (run_settings(other), {}))


def _adapter_in(ancestor: bytes | None) -> str:
    """The digest of the adapter that a mirrored run began with; nothing where it did not."""
    try:
        return str(digests_in(ancestor or b"")[ADAPTER]["sha256"])
    except OTHER_JSON:
        return ""


def fetch(store: Store, run: Run) -> list[str]:
    """Fetch what `run` lacks and can go on with; what was fetched, each with its size.

    Raises ResourceError where the mirror cannot be reached and the run folder is new: a run that exists elsewhere would
    begin anew. Where it is not, that is said, and the run goes on with what is here.
    """
    got: list[str] = []
    try:
        _fetch(store, run, got)
    except Exception as error:  # of several libraries, and their texts can hold a credential
        if _is_of_run(error, run):
            raise
        why = reason(error)
    else:
        why = ""
    if why and not run.recipe.is_file():
        raise ResourceError(f"the mirror {store.place} cannot be read: {why}", fix=FIX)
    if why:
        warn(f"mirror: {store.place} cannot be read ({why}); the run goes on with what is here")
    if got:
        say(f"mirror: fetched {', '.join(got)} from {store.place}")
    return got


def _is_of_run(error: Exception, run: Run) -> bool:
    """Whether an error is of the run's own folder, not of the mirror."""
    if isinstance(error, OSError) and isinstance(error.filename, str):
        return Path(error.filename).is_relative_to(run.path)
    return isinstance(error, TunesmithError) and (is_full_disk(error) or error.where == str(run.path))


def _fetch(store: Store, run: Run, got: list[str]) -> None:
    there = set(_asked(store.names))
    steps = sorted(steps_in(there), key=step_of)
    if f"{DATA}/{RECORD}" not in there and not steps:
        return None  # nothing yet that a run could go on with
    if f"{DATA}/{RECORD}" in there and not os.path.lexists(run.data):
        _tried(run.data, lambda draft: _rows(store, draft), got, store)
    if not is_own(run.data):
        _recipe(store, run, there, got)  # first: without either, the folder would not be known as ours
    if f"{ANCESTOR}/{DIGESTS}" in there and not os.path.lexists(run.ancestor):
        _tried(run.ancestor, lambda draft: _digested(store, ANCESTOR, draft), got, store)
    if is_own(run.adapter):
        return _recipe(store, run, there, got)  # training has ended
    here = next((path for path in reversed(checkpoint_folders(run.checkpoints)) if is_whole(path)), None)
    newer = [step for step in steps if here is None or step_of(step) > step_of(here.name)]
    newest = next((step for step in reversed(newer) if _checkpoint(store, run, step, got, newest=True)), "")
    newest = newest or (here.name if here else "")
    if newest:
        _best(store, run, newest, steps, got)
    return _recipe(store, run, there, got)


def _best(store: Store, run: Run, newest: str, steps: list[str], got: list[str]) -> None:
    """The checkpoint that was the best one when `newest` was saved, where it is lacking: the adapter is made of it."""
    best = best_name(run.checkpoints / newest)
    if not best or best == newest or is_whole(run.checkpoints / best):
        return
    if best not in steps or not _checkpoint(store, run, best, got, newest=False):
        warn(f"mirror: the best checkpoint so far, {best}, is whole neither here nor in {store.place}")


def _checkpoint(store: Store, run: Run, step: str, got: list[str], *, newest: bool) -> bool:
    """Whether a checkpoint could be fetched whole. With the newest one come the lines of all steps before it."""

    def write(draft: Path) -> None:
        digests = _digested(store, f"{CHECKPOINTS}/{step}", draft)
        for name in OF_THE_RUN:
            if name in digests:
                content = (draft / name).read_bytes()
                (draft / name).unlink()
                if newest:  # before the checkpoint: lines that no checkpoint knows of are dropped on resume
                    write_file(run.path / name, content)
        own = {name: entry for name, entry in digests.items() if name not in OF_THE_RUN}
        (draft / DIGESTS).write_text(json.dumps(own, indent=1) + "\n")
        if not is_whole(draft):
            raise Damaged("it is no checkpoint")

    return _tried(run.checkpoints / step, write, got, store)


def _tried(target: Path, write: Callable[[Path], Any], got: list[str], store: Store) -> bool:
    """Commit what `write` fetches; False, and said, where that is damaged in the mirror."""
    if os.path.lexists(target):  # no whole one: resume would do the same
        kept_as = aside(target)
        warn(f"{target.name} is damaged; it is kept as {kept_as.name}, and the mirror's is taken")
        target.rename(kept_as)
    try:
        commit_folder(target, write)
    except Damaged as damage:
        warn(f"mirror: {target.name} is damaged in {store.place} ({damage}) and is passed over")
        return False
    got.append(f"{target.name} ({bytes_of(target) / 1e6:,.1f} MB)")
    return True


def _digested(store: Store, folder: str, draft: Path) -> dict[str, dict[str, Any]]:
    """Fetch a folder that has digests, into `draft`; the digests. Raises Damaged."""
    try:
        digests = digests_in(_asked(lambda: store.read(f"{folder}/{DIGESTS}")) or b"")
    except OTHER_JSON as error:
        raise Damaged(f"{DIGESTS} is damaged") from error
    (draft / DIGESTS).write_text(json.dumps(digests, indent=1) + "\n")
    for name, entry in digests.items():
        _file(store, f"{folder}/{name}", draft, name)
        if why := file_damage(draft / name, entry):
            raise Damaged(why)
    return digests


def _rows(store: Store, draft: Path) -> None:
    """Fetch data/ into `draft`. Raises Damaged."""
    (draft / RECORD).write_bytes(_asked(lambda: store.read(f"{DATA}/{RECORD}")) or b"")
    try:
        record = parsed(draft)
    except OTHER_JSON as error:
        raise Damaged(f"{RECORD} is damaged") from error
    if record.stage != DATA:
        raise Damaged(f"{RECORD} is of the stage {record.stage}")
    for name in record.outputs:
        _file(store, f"{DATA}/{name}", draft, name)
    if PROOFS in record.measured:
        _file(store, f"{DATA}/{PROOFS}", draft, PROOFS)
    cut = (name for name, output in record.outputs.items() if (draft / name).stat().st_size != output["bytes"])
    if half := next(cut, None):
        raise Damaged(f"{half} has not the size that was written")
    if file := damaged_file(draft):
        raise Damaged(f"{file.name} has other bytes than were written")


def _file(store: Store, name: str, draft: Path, to: str) -> None:
    """Fetch one file below a draft. Raises Damaged where it is not there, or would land elsewhere."""
    path = PurePosixPath(to)
    if path.is_absolute() or ".." in path.parts:
        raise Damaged(f"{to} is no name of a file in it")
    (draft / to).parent.mkdir(parents=True, exist_ok=True)
    try:
        within(LIMIT_S, lambda: store.get(name, draft / to), draft)
    except FileNotFoundError as error:
        raise Damaged(f"{to} is missing") from error


def _recipe(store: Store, run: Run, there: set[str], got: list[str]) -> None:
    """The recipe as resolved, where the run has none."""
    if run.recipe.exists() or RECIPE not in there:
        return
    content = _asked(lambda: store.read(RECIPE)) or b""
    if not content.startswith(MADE_BY.encode()):
        return warn(f"mirror: {RECIPE} is damaged in {store.place} and is passed over")
    write_file(run.recipe, content)
    got.append(RECIPE)
    return None


def _asked(ask: Callable[[], Result]) -> Result:
    """What a store answers to a short question. Raises TimeoutError."""
    return within(LIMIT_S, ask)


def steps_in(names: set[str]) -> list[str]:
    """The checkpoints among the files of a mirror that have digests, as each that was sent whole has."""
    parts = (PurePosixPath(name).parts for name in names)
    return [p[1] for p in parts if len(p) == 3 and p[::2] == (CHECKPOINTS, DIGESTS) and CHECKPOINT.fullmatch(p[1])]


def best_name(checkpoint: Path) -> str:
    """The name of the checkpoint that was the best when this one was saved; nothing where none was measured yet."""
    best = best_step(checkpoint)
    return checkpoint_name(best) if best else ""
