"""How a training ended, in a sentence: whether it went on too long, or not long enough."""

from collections.abc import Mapping
from typing import Any


def outcome(counts: Mapping[str, Any]) -> str:
    """From the counts of a record of any version; empty where they do not say."""
    try:
        steps, planned, best = int(counts["steps"]), int(counts["planned_steps"]), int(counts["best_step"])
        learned = counts["held_out_loss"] < counts["base_held_out_loss"]
    except (KeyError, TypeError, ValueError):
        return ""
    if not learned:
        return f"in {steps} steps never better than the base"
    if best == steps:
        return f"best at the last step, {steps}: still falling, so more epochs may help"
    stopped = f", so training stopped at step {steps}" if counts.get("stopped_early") else ""
    later = steps - best
    return f"best at step {best} of {planned}; {later} step{'' if later == 1 else 's'} later no better{stopped}"
