"""VERB clean: what a finished run can do without, because a command makes it again.

Kept whatever is asked: what the user put there, the GGUF files, the answers, the adapter, the rows, and of the
checkpoints the newest and the best: a changed recipe is still refused by name, and nothing is trained anew in silence.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tunesmith.command import to_type
from tunesmith.decides import kept_recipe
from tunesmith.errors import ResumeError
from tunesmith.files import DAMAGED, DRAFT, beside, bytes_of, discard, remove, strangers
from tunesmith.inventory import megabytes
from tunesmith.lock import locked
from tunesmith.record import Record, is_to_prove, output_digest, parsed, read_record
from tunesmith.runs import Run, checkpoint_folders, checkpoint_name, write_manifest
from tunesmith.stale import stale
from tunesmith.training.saved import is_own


@dataclass(frozen=True)
class Spare:
    """A folder that a run can do without."""

    path: Path
    bytes: int
    again: str
    """How it is made again, and how long that took."""


def spare(run: Run, model: bool = False) -> list[Spare]:
    """What of a run can be deleted; `model`: the merged model too, where the GGUF files made from it stand.

    Raises ResumeError for a folder that is no run, or is damaged.
    """
    _refuse_no_run(run)
    found = [*_checkpoints(run), *_drafts(run)]
    return [*found, *_model(run)] if model else found


def _refuse_no_run(run: Run) -> None:
    try:
        run.refuse_strangers()
        run.refuse_none()
    except ResumeError as error:  # whose fix is for a run that is to be made
        raise ResumeError(error.what, fix="name a run, such as runs/NAME; `tunesmith list` shows them") from None


def kept_aside(run: Run) -> list[Path]:
    """What was damaged and is kept: only the user can say that it is of no use."""
    return sorted([*run.path.glob(f"{DAMAGED}*"), *run.checkpoints.glob(f"{DAMAGED}*")])


def clean(run: Run, model: bool = False) -> list[Spare]:
    """Delete what `spare` finds, each whole or not at all. Raises ResumeError if another process works in it."""
    _refuse_no_run(run)  # before a lock is left in it
    with locked(run):
        found = spare(run, model)
        for each in found:
            if each.path.name.endswith(f".{DRAFT}"):
                remove(each.path)
            else:
                discard(each.path, each.path)
        write_manifest(run)
    return found


def _checkpoints(run: Run) -> Iterator[Spare]:
    """Of a training that has ended: all but the newest and the best."""
    trained = read_record(run.adapter)
    saved = checkpoint_folders(run.checkpoints)
    if trained is None or stale(kept_recipe(run), run, "train"):
        return
    kept = {saved[-1].name, checkpoint_name(trained.counts.get("best_step", -1))} if saved else set()
    for path in saved:
        if path.name not in kept and is_own(path):
            yield Spare(path, bytes_of(path), "of no use: training has ended, and goes on from the newest if at all")


def _drafts(run: Run) -> Iterator[Spare]:
    """What a killed stage had finished, where the stage has been done since."""
    for folder in run.stage_folders:
        draft = beside(folder, DRAFT)
        if draft.is_dir() and read_record(folder):
            yield Spare(draft, bytes_of(draft), f"of no use: {folder.name}/ is there")


def _model(run: Run) -> Iterator[Spare]:
    """The merged model, where GGUF files stand that were made from it and are proved."""
    made, exported = read_record(run.model), read_record(run.gguf)
    if made is None:
        return
    if why := _needed(run, made, exported):
        raise ResumeError(f"{run.model} is not deleted: {why}", fix="leave out --model")
    command = to_type("merge", run.path)
    yield Spare(run.model, bytes_of(run.model), f"`{command}` makes it again, which took {made.seconds:.0f} s")


def _needed(run: Run, made: Record, exported: Record | None) -> str:
    """Why the merged model is needed; nothing if it is not."""
    recipe = kept_recipe(run)
    if not recipe.export.gguf or exported is None:
        return "there are no GGUF files made from it"
    if is_to_prove(run.gguf) or made.unproved:
        return "a proof is still to be done, which reads it"
    if exported.inputs.get("model") != output_digest(made) or stale(recipe, run, "export"):
        return "the GGUF files are not those of this model, or not what the recipe says"
    if read_record(run.adapter) is None:
        return "there is no adapter to make it from again"
    if others := strangers(run.model, parsed(run.model).outputs):
        return f"it holds what tunesmith did not make: {', '.join(others[:3])}"
    return ""


def listed(run: Run, found: list[Spare], model: bool, gone: bool) -> str:
    """What was found, or is gone, in words, and what to type next."""
    lines = [f"{megabytes(each.bytes):>9}  {each.path}: {each.again}" for each in found]
    total = megabytes(sum(each.bytes for each in found))
    if not found:
        lines.append(f"{run.path}: nothing to delete")
    elif gone:
        lines.append(f"deleted: {total}")
    else:
        more = ["--model", "--yes"] if model else ["--yes"]
        lines += [f"{total} can be deleted; nothing is yet", f"next: {to_type('clean', run.path, *more)}"]
    lines += [f"kept: {path}, which was damaged; delete it yourself if you do not need it" for path in kept_aside(run)]
    return "\n".join(lines)
