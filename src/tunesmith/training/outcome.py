"""How a training ended, in a sentence: whether it went on too long, or not long enough."""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

KNOWN = 0.05  # nats per token: 95 % of what comes next


def outcome(counts: Mapping[str, Any]) -> str:
    """From the counts of a record of any version; empty where they do not say."""
    try:
        steps, planned, best = int(counts["steps"]), int(counts["planned_steps"]), int(counts["best_step"])
        ancestor = counts.get("ancestor") or {}
        start = ancestor.get("held_out_loss_here", counts["base_held_out_loss"])
        learned = counts["held_out_loss"] < start
    except (KeyError, TypeError, ValueError):
        return ""
    if not learned:
        return f"in {steps} steps never better than {'the adapter it began with' if ancestor else 'the base'}"
    if best == steps and counts.get("stopped_early"):
        return f"best at step {best} of {planned}: still falling, but by less than min_gain, so training stopped"
    if best == steps and counts["held_out_loss"] < KNOWN:
        return (
            f"best at the last step, {steps}, and the held-out loss is next to none: it has learned all there is, or "
            "held-out rows are like rows that it was trained on"
        )
    if best == steps:
        return f"best at the last step, {steps}: still falling, so more epochs may help"
    stopped = f", so training stopped at step {steps}" if counts.get("stopped_early") else ""
    later = steps - best
    return f"best at step {best} of {planned}; {later} step{'' if later == 1 else 's'} later no better{stopped}"


def ancestor_of(said: Any) -> tuple[str, str]:
    """Of a fork's ancestor, as a record has it: the name of its run, and its adapter in words; nothing of no fork."""
    if not isinstance(said, Mapping):
        return "", ""
    name, step = PurePath(str(said.get("run", "another run"))).name, said.get("step")
    return name, f"the adapter of {name}" + (f" after step {step}" if step else "")


def so_far(best_step: int, best_loss: float, start_loss: float, began_with: str) -> str:
    """The same of a training that is paused; empty where nothing was measured after step 0."""
    if best_step == 0:
        return ""
    if not best_loss < start_loss:
        return f"not yet better than {began_with}"
    return f"best so far at step {best_step}, held-out loss {best_loss:.4f}"
