"""What a run folder lacks, from its mirror: rows, the newest whole checkpoint and the best one, and the recipe.

What is there is believed only where its bytes are those that were written. Each folder is committed whole or not at
all, and recipe.yaml last: where it stands, nothing that came before it is missing.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from tunesmith.boundary import is_full_disk
from tunesmith.console import say, warn
from tunesmith.errors import ResourceError, TunesmithError
from tunesmith.files import DIGESTS, PROOFS, RECORD, aside, bytes_of, commit_folder, write_file
from tunesmith.json_file import OTHER_JSON, json_object
from tunesmith.record import damaged_file, is_own, parsed
from tunesmith.runs import CHECKPOINT, MADE_BY, Run, checkpoint_folders, checkpoint_name, step_of
from tunesmith.training.saved import ADAPTER, best_step, damage, digests_in, file_damage, is_whole
from tunesmith.training.store import Result, Store, reason, within

LIMIT_S = 120.0
"""How long a mirror may say nothing at all before it counts as one that cannot be reached."""
RECIPE, DATA, SCORES, ANCESTOR, CHECKPOINTS = "recipe.yaml", "data", "scores", "ancestor", "checkpoints"
METRICS, SAMPLES = "metrics.jsonl", "samples.jsonl"
AS = "as"
"""In an entry of a mirror's digests.json: the file's name there, where it took the place of another."""
OF_THE_RUN = (METRICS, SAMPLES)
"""Files of a mirrored checkpoint that are the run's here, as they were when it was saved."""
FIX = (
    "see to the network and the credentials and type the same again; to begin without what may be there, add "
    "--set checkpoint.mirror=null"
)


class Damaged(Exception):  # noqa: N818 - not an error: the next older one is taken
    """What is in the mirror is not what was written; says why."""


def fetch(store: Store, run: Run) -> list[str]:
    """Fetch what `run` lacks and can go on with; what was fetched, each with its size.

    Raises ResourceError where the mirror cannot be reached and nothing was trained here: a run that exists elsewhere
    would begin anew. Where something was, that is said, and the run goes on with what is here.
    """
    got: list[str] = []
    begun = bool(checkpoint_folders(run.checkpoints)) or is_own(run.adapter)
    try:
        _fetch(store, run, got)
    except Exception as error:  # of several libraries, and their texts can hold a credential
        if _is_of_run(error, run):
            raise
        why = reason(error)
    else:
        why = ""
    if why and not begun:
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
    there = set(asked_of(store.names))
    steps = sorted(steps_in(there), key=step_of)
    if f"{DATA}/{RECORD}" not in there and not steps:
        return None  # nothing yet that a run could go on with
    if f"{DATA}/{RECORD}" in there and not os.path.lexists(run.data):
        _tried(run.data, lambda draft: _stage(store, DATA, draft), got, store)
    if f"{SCORES}/{RECORD}" in there and not os.path.lexists(run.scores):
        _tried(run.scores, lambda draft: _stage(store, SCORES, draft), got, store)
    if not is_own(run.data):
        _recipe(store, run, there, got)  # first: without either, the folder would not be known as ours
    if f"{ANCESTOR}/{DIGESTS}" in there and not os.path.lexists(run.ancestor):
        _tried(run.ancestor, lambda draft: _digested(store, ANCESTOR, draft), got, store)
    if is_own(run.adapter):
        return _recipe(store, run, there, got)  # training has ended
    here = next((path for path in reversed(checkpoint_folders(run.checkpoints)) if is_whole(path)), None)
    newer = [step for step in steps if here is None or step_of(step) > step_of(here.name)]
    fetched = next((step for step in reversed(newer) if _checkpoint(store, run, step, got, newest=True)), "")
    if newest := fetched or (here.name if here else ""):
        _best(store, run, newest, steps, got, theirs=bool(fetched))
    return _recipe(store, run, there, got)


def _best(store: Store, run: Run, newest: str, steps: list[str], got: list[str], *, theirs: bool) -> None:
    """The checkpoint that was the best one when `newest` was saved, where it is lacking: the adapter is made of it.

    `theirs`: whether `newest` is the mirror's. Then what has the name of its best here may be of another branch.
    """
    best = best_name(run.checkpoints / newest)
    if not best or best == newest:
        return
    if is_whole(run.checkpoints / best) and not (theirs and best in steps and _is_another(store, run, best)):
        return
    if best not in steps or not _checkpoint(store, run, best, got, newest=False):
        warn(f"mirror: the best checkpoint so far, {best}, is whole neither here nor in {store.place}")


def _is_another(store: Store, run: Run, step: str) -> bool:
    """Whether a checkpoint that is whole here has another adapter than the mirror's of that name."""
    there, here = asked_of(lambda: store.read(f"{CHECKPOINTS}/{step}/{DIGESTS}")), run.checkpoints / step / DIGESTS
    try:
        return bool(digests_in(there or b"")[ADAPTER] != digests_in(here.read_bytes())[ADAPTER])
    except OTHER_JSON:
        return False  # what is whole is better than what is not


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

    def fetched(draft: Path) -> None:
        write(draft)
        _put_aside(target)

    try:
        commit_folder(target, fetched, lambda _: None)
    except Damaged as damage:
        warn(f"mirror: {target.name} is damaged in {store.place} ({damage}) and is passed over")
        return False
    got.append(f"{target.name} ({bytes_of(target) / 1e6:,.1f} MB)")
    return True


def _put_aside(target: Path) -> None:
    """Give what stands at the place of what was fetched a hidden name: it is damaged, or of another branch."""
    if os.path.lexists(target):
        kept_as = aside(target)
        why = damage(target) or "it is another than the mirror's"
        warn(f"{target} is not gone on with, {why}; it is kept as {kept_as.name}, and the mirror's is taken")
        target.rename(kept_as)


def _digested(store: Store, folder: str, draft: Path) -> dict[str, dict[str, Any]]:
    """Fetch a folder that has digests, into `draft`; the digests. Raises Damaged."""
    try:
        content = asked_of(lambda: store.read(f"{folder}/{DIGESTS}")) or b""
        digests, stored = digests_in(content), stored_as(content)
    except OTHER_JSON as error:
        raise Damaged(f"{DIGESTS} is damaged") from error
    (draft / DIGESTS).write_text(json.dumps(digests, indent=1) + "\n")
    for name, entry in digests.items():
        _file(store, f"{folder}/{stored[name]}", draft, name)
        if why := file_damage(draft / name, entry):
            raise Damaged(why)
    return digests


def _stage(store: Store, folder: str, draft: Path) -> None:
    """Fetch data/ or scores/ into `draft`. Raises Damaged."""
    (draft / RECORD).write_bytes(asked_of(lambda: store.read(f"{folder}/{RECORD}")) or b"")
    try:
        record = parsed(draft)
    except OTHER_JSON as error:
        raise Damaged(f"{RECORD} is damaged") from error
    if record.stage != folder:
        raise Damaged(f"{RECORD} is of the stage {record.stage}")
    for name in record.outputs:
        _file(store, f"{folder}/{name}", draft, name)
    if PROOFS in record.measured:
        _file(store, f"{folder}/{PROOFS}", draft, PROOFS)
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
    content = asked_of(lambda: store.read(RECIPE)) or b""
    if not content.startswith(MADE_BY.encode()):
        return warn(f"mirror: {RECIPE} is damaged in {store.place} and is passed over")
    write_file(run.recipe, content)
    got.append(RECIPE)
    return None


def stored_as(content: bytes) -> dict[str, str]:
    """File -> its name in the mirror, as a digests.json there says: another one where it took a file's place. Raises
    one of OTHER_JSON.
    """
    return {name: str(entry.get(AS, name)) for name, entry in json_object(content).items()}


def asked_of(ask: Callable[[], Result]) -> Result:
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
