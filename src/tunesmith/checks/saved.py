"""The checkpoints of a run, and the adapter that was taken from the best of them."""

from collections.abc import Mapping

from safetensors.torch import load_file

from tunesmith.boundary import why_unread
from tunesmith.checks.verdict import NOT_YET, SKIPPED, Verdict, decided
from tunesmith.checks.written import Written
from tunesmith.console import progress
from tunesmith.files import DAMAGED
from tunesmith.model.adapter import tensors_digest
from tunesmith.runs import Run, checkpoint_folders, checkpoint_name, step_of
from tunesmith.training.checkpoint import is_as_trained
from tunesmith.training.metrics import kept_digests
from tunesmith.training.saved import ADAPTER, damage
from tunesmith.weights.peft_files import WEIGHTS

CHECKPOINTS, BEST = "checkpoints", "adapter = best checkpoint"


def damaged_checkpoints(run: Run) -> dict[str, str]:
    """Checkpoint -> what is wrong with it, empty where nothing is; oldest first. Reads all of them."""
    found, folders, digests = dict[str, str](), checkpoint_folders(run.checkpoints), kept_digests(run)
    with progress("verify: checkpoints", len(folders), unit="checkpoints") as advance:
        for folder in folders:
            try:
                reason = damage(folder)
                if not reason and not is_as_trained(folder, digests):
                    reason = f"{ADAPTER} is not the adapter that the trainer had at this step, by {run.metrics.name}"
            except OSError as error:
                reason = f"cannot be read: {why_unread(error)}"
            found[folder.name] = reason
            advance(1, folder.name)
    return found


def check_checkpoints(run: Run, found: Mapping[str, str]) -> Verdict:
    """Each checkpoint has the bytes that were written; `found`: as `damaged_checkpoints` has it."""
    aside = sorted(path.name for path in run.checkpoints.glob(f"{DAMAGED}*"))
    notes = [f"kept aside, since training found it damaged: {name}" for name in aside]
    if not found:
        return Verdict(CHECKPOINTS, NOT_YET, "there are none", tuple(notes))
    wrong = [f"{name}: {reason}" for name, reason in found.items() if reason]
    steps = ", ".join(str(step_of(name)) for name in found)
    return decided(CHECKPOINTS, wrong, f"{len(found)} are whole: step{'s' if len(found) > 1 else ''} {steps}", notes)


def check_best(written: Written, found: Mapping[str, str]) -> Verdict:
    """What adapter/ holds is the checkpoint with the least held-out loss, number by number."""
    run = written.run
    best = checkpoint_name(written.records[run.adapter.name].counts["best_step"])
    if best not in found:
        return Verdict(BEST, SKIPPED, f"{best} is no longer there")
    if found[best]:
        return Verdict(BEST, SKIPPED, f"{best} is damaged")
    ours, theirs = load_file(run.adapter / WEIGHTS), load_file(run.checkpoints / best / ADAPTER)
    same = ours.keys() == theirs.keys() and tensors_digest(ours) == tensors_digest(theirs)
    wrong = [] if same else [f"{run.adapter.name}/{WEIGHTS} is not the adapter of {best}"]
    return decided(BEST, wrong, f"{len(ours)} tensors are those of {best}")
