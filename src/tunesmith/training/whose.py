"""Whether what a mirror holds is this run: another one's rows, checkpoints and deletion are none of ours."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from tunesmith.decides import as_begun, kept_recipe, run_settings
from tunesmith.errors import ResumeError
from tunesmith.files import DIGESTS, RECORD, digest_file
from tunesmith.json_file import OTHER_JSON
from tunesmith.recipe import Recipe
from tunesmith.record import is_own, output_digest, parsed
from tunesmith.runs import MADE_BY, Run, checkpoint_folders, step_of
from tunesmith.stale import needs_differ
from tunesmith.training.fetched import ANCESTOR, CHECKPOINTS, DATA, RECIPE, asked_of, steps_in
from tunesmith.training.saved import ADAPTER, STATE, digests_in, read_state, refuse_others
from tunesmith.training.store import Store


def refuse_other_run(store: Store, run: Run, asked: Recipe, forks: bool = False) -> None:
    """Raise ResumeError where another run of this name is in the mirror: one that is neither what is `asked` for nor
    the one in this run folder. One that cannot be read is named as it is fetched.

    `forks`: this run begins with another's adapter, and may not have it yet.
    """
    with tempfile.TemporaryDirectory(prefix="tunesmith-") as folder:
        there = Run(Path(folder))
        try:
            asked_of(lambda: _read(store, there))
        except Exception:  # of several libraries
            return
        if not there.recipe.is_file() or not there.recipe.read_bytes().startswith(MADE_BY.encode()):
            return
        differ = [*_settings(there, run, asked), *_start(there, run, forks), *_training(there, run)]
    if differ:
        raise ResumeError(
            f"the mirror {store.place} holds another run of this name:\n  - " + "\n  - ".join(differ),
            fix="give the recipe another name, or another checkpoint.mirror; or set it back as it was",
        )


def _read(store: Store, there: Run) -> None:
    """What a mirror says of its run, into a run folder. Of rows without a checkpoint nobody has any use."""
    steps = sorted(steps_in({*store.names(CHECKPOINTS)}), key=step_of)
    of_training = [f"{DATA}/{RECORD}", f"{CHECKPOINTS}/{steps[-1]}/{STATE}"] if steps else []
    for name in [RECIPE, f"{ANCESTOR}/{DIGESTS}", *of_training]:
        if content := store.read(name):
            (there.path / name).parent.mkdir(parents=True, exist_ok=True)
            (there.path / name).write_bytes(content)


def _settings(there: Run, run: Run, asked: Recipe) -> list[str]:
    theirs = kept_recipe(there)
    differ = _differ(theirs, as_begun(asked, there))
    if differ and run.recipe.is_file() and not _differ(theirs, kept_recipe(run)):
        return []  # this run's own: that it was made otherwise is said where it is begun anew or gone on with
    return differ


def _differ(one: Recipe, other: Recipe) -> list[str]:
    return needs_differ((run_settings(one), {}), (run_settings(other), {}))


def _start(there: Run, run: Run, forks: bool) -> Iterator[str]:
    """Where it was killed as it began, its recipe may be there alone: without a checkpoint that is nobody's."""
    trained, theirs = there.checkpoints.is_dir(), _adapter_in(there.ancestor)
    if run.ancestor.is_dir():
        if (theirs or trained) and theirs != digest_file(run.ancestor / ADAPTER):
            yield "ancestor/: other weights to begin with (--fork)"
    elif forks and trained and not theirs:
        yield "ancestor/: it begins with the base, without --fork"


def _adapter_in(ancestor: Path) -> str:
    """The digest of the adapter that a mirrored run began with; nothing where it did not."""
    try:
        return str(digests_in((ancestor / DIGESTS).read_bytes())[ADAPTER]["sha256"])
    except (OSError, *OTHER_JSON):
        return ""


def _training(there: Run, run: Run) -> list[str]:
    """What its newest checkpoint was trained with, beside the newest here; where there is none here, its rows."""
    try:
        (newest,) = checkpoint_folders(there.checkpoints)
        theirs = read_state(newest)["decides"]
        if ours := checkpoint_folders(run.checkpoints):
            return refuse_others(ours[-1], theirs, read_state(ours[-1])["decides"])
        if is_own(run.data) and output_digest(parsed(there.data)) != output_digest(parsed(run.data)):
            return ["data/: other rows than are here"]
    except (OSError, *OTHER_JSON):  # of what is damaged nothing is known, and it is named as it is fetched
        pass
    return []
