"""The learning rate, a function of the step: nothing to save, nothing to forget."""

import math

from tunesmith.recipe import TrainConfig


def lr_at(step: int, steps: int, config: TrainConfig) -> float:
    """Learning rate of optimizer step `step` (from 0) of `steps`: linear warm-up, then the schedule.

    Cosine and linear reach zero one step after the last, so that the last step still learns.
    """
    warmup_steps = round(config.warmup * steps)
    if step < warmup_steps:
        return config.lr * (step + 1) / (warmup_steps + 1)
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    match config.schedule:
        case "constant":
            return config.lr
        case "linear":
            return config.lr * (1 - done)
        case "cosine":
            return config.lr * 0.5 * (1 + math.cos(math.pi * done))
