"""What a checkpoint takes from training: the step after one against its neighbours, on the built-in base.

The demo recipe's settings and rows, a checkpoint every 8 steps. Steps differ in tokens, so seconds per token count; the
copy of the state is part of the step after it. Neighbours: the three steps before a checkpoint and the second to fourth
after it. Also, of this machine, how much the same ratio is where there was no checkpoint.

usage: python benchmarks/checkpoint_cost.py [--steps 41] [--every 8]
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from tunesmith.decides import read_prompts
from tunesmith.files import bytes_of
from tunesmith.gguf.read import convert
from tunesmith.recipe_file import read_recipe
from tunesmith.runs import Run, checkpoint_folders
from tunesmith.tokens.prepare import prepare
from tunesmith.training.saver import Saver
from tunesmith.training.stop import Paused
from tunesmith.training.train import train
from tunesmith.weights.locate import locate_base

sys.path.insert(0, str(Path(__file__).parent))
from crashing import wrap

RECIPE = Path(__file__).parent.parent / "recipes" / "demo.yaml"
NEAR = (-2, -1, 0, 2, 3, 4)
"""Neighbours of the step after a checkpoint (1): from the third before the copy on."""


def timed(name, found):
    """Keep the seconds of each call of a Saver's method, by the step that it saves."""

    def around(real, saver, state, *rest):
        began = time.monotonic()
        real(saver, state, *rest)
        found.append((getattr(state, "step", None) or state.progress.step, time.monotonic() - began))

    wrap(Saver, name, around)


def ratio(costs, at):
    """Seconds per token of the step after `at`, over the median of its neighbours; None at the ends."""
    near = [costs.get(at + step) for step in NEAR]
    return costs[at + 1] / median(near) if None not in (*near, costs.get(at + 1)) else None


def main():
    """Train, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=41)
    parser.add_argument("--every", type=int, default=8)
    asked = parser.parse_args()
    changes = (
        f"checkpoint.every={asked.every} steps", "checkpoint.overhead=null", f"train.stop_after={asked.steps} steps",
        "train.evaluate_every=1000 steps", "train.sample=false",
    )  # fmt: skip
    recipe, held, wrote = read_recipe(RECIPE, changes), [], []
    timed("save", held)
    timed("_write", wrote)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        run, base = Run(Path(folder)), locate_base(recipe.base, convert)
        prepare(recipe, run, base, read_prompts(recipe))
        with contextlib.suppress(Paused):
            train(recipe, run, base)
        lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
        size = bytes_of(checkpoint_folders(run.checkpoints)[-1])
    took = {line["step"]: (line["seconds"], line["tokens"]) for line in lines if "loss" in line}
    copies = dict(held)
    costs = {step: (seconds + copies.get(step - 1, 0.0)) / tokens for step, (seconds, tokens) in took.items()}
    after = [found for at in copies if (found := ratio(costs, at))]
    other = [
        found for at in costs if not any(at + near in copies for near in (-1, 0, 1)) and (found := ratio(costs, at))
    ]
    at_end = os.getloadavg()[0]
    print(f"load average {load:.2f} at the start, {at_end:.2f} at the end; {size / 1e6:.1f} MB a checkpoint")
    print(f"median step {median(seconds for seconds, _ in took.values()):.2f} s")
    print(f"the training thread was held {', '.join(f'{s:.3f}' for s in copies.values())} s")
    print(f"the writer took {', '.join(f'{s:.2f}' for _, s in wrote)} s")
    print(f"the step after a checkpoint / its neighbours: {', '.join(f'{one:.3f}' for one in sorted(after))}")
    print(f"of {len(other)} other steps: {', '.join(f'{one:.3f}' for one in sorted(other))}")
    print(f"median {median(after):.3f}, of the others {median(other):.3f}")


if __name__ == "__main__":
    main()
