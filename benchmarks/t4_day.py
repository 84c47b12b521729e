"""A day on GPUs that are taken away: the FineTome 1B recipe's way, on three machines with one mirror.

Simulated: the clock, which stands but for a step (--step, 60 s each) and the start of a machine (180 s), so checkpoints
and uploads take none of its time; the machines, folders that are emptied once they are taken; and their taking, SIGKILL
within a step at a moment drawn 10 to 90 minutes after the start. After the day none is taken, and the limit of 12 hours
ends the session. Not simulated: the pipeline, checkpoints every 5 minutes, the mirror (a folder), the fetch, fp16 with
loss scaling, recomputed layers. The recipe is recipes/finetome-llama-3.2-1b.yaml, on the tests' tiny base and short
rows: 64 tokens for its 2,048, 256 a step; it stops not early, so that the run outlasts the day.

usage: python benchmarks/t4_day.py [--hours 24] [--limit 12h] [--step 60] [--seed S]
"""

import argparse
import math
import random
import shutil
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from tunesmith.pipeline import run_stages
from tunesmith.recipe_file import read_recipe, with_changes
from tunesmith.runs import Run
from tunesmith.stages import STAGES, stage_of
from tunesmith.training import loop
from tunesmith.training import train as training
from tunesmith.training.mirror import Mirror
from tunesmith.training.stop import signals_heeded
from tunesmith.values import cadence

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import crashing
from tiny import CORPUS, save_base, write_rows

RECIPE = Path(__file__).parent.parent / "recipes" / "finetome-llama-3.2-1b.yaml"
ROWS, STEPS_AN_EPOCH = 400, 86
START_S = 180.0
LEAST_S, MOST_S = 600.0, 5400.0
MACHINES = ("A", "B", "C")
TO_TRAIN = STAGES[: STAGES.index(stage_of("train")) + 1]
PAUSED = 7


class Clock:
    """The stand-in for time.monotonic in a child."""

    def __init__(self, now_s, cut_s, step_s):
        self.now_s, self._cut_s, self._step_s = now_s, cut_s, step_s
        self._parts = {}

    def stand_in(self, notes):
        """Take the place of the real one. The machine is taken within the step in which the cut comes."""
        real = {"sleep": time.sleep, "monotonic": time.monotonic}
        time.monotonic = lambda: self.now_s

        def known(name):
            def start(made, *args, **kwargs):
                self._parts[name] = found = made(*args, **kwargs)
                return found

            return start

        def step(gradient, *args):
            began = real["monotonic"]()
            while self._are_busy() and real["monotonic"]() - began < 60:
                real["sleep"](0.001)
            found = gradient(*args)
            if self.now_s + self._step_s >= self._cut_s:
                self.now_s = self._cut_s
                notes.die()
            self.now_s += self._step_s
            return found

        crashing.wrap(training, "Saver", known("saver"))
        crashing.wrap(training, "mirrored", known("mirrored"))
        crashing.wrap(Mirror, "start", lambda start, mirror: self._parts.update(mirror=mirror) or start(mirror))
        crashing.wrap(loop, "gradient", step)

    def _are_busy(self):
        """Whether anything is being written or sent: that takes no simulated time."""
        mirror, saver = self._parts.get("mirror"), self._parts["saver"]
        sends = mirror and (mirror._pending or mirror._current or not mirror._began)
        return not saver._idle or bool(sends)


def session(recipe, run, clock, notes):
    """`tunesmith run` up to its training; the exit code."""
    torch.set_num_threads(1)
    clock.stand_in(notes)
    crashing.note_all(notes)
    with signals_heeded():
        return 0 if run_stages(recipe, run, TO_TRAIN).done else PAUSED


def scaled(folder, hours, limit_s, step_s):
    """The recipe, for a run that outlasts the day and then one session."""
    rng, words = random.Random(0), CORPUS.read_text().split()
    rows = [[" ".join(rng.choices(words, k=rng.randint(2, 5))) for _ in range(2)] for _ in range(ROWS)]
    write_rows(folder / "rows.jsonl", rows)
    steps = (0.85 * 3600 * hours + 1.2 * limit_s) / step_s
    changes = (
        f"base={folder / 'base'}", f"data.sources.0.path={folder / 'rows.jsonl'}", "train.tokens_per_step=256",
        "train.max_length=64", "train.micro_batch_tokens=128", "train.early_stopping=null",
        f"train.epochs={steps / STEPS_AN_EPOCH:.2f}", "data.dedup=off",
    )  # fmt: skip
    return read_recipe(RECIPE, changes)


def day(folder, recipe, whole, asked):
    """Take machines away for so many hours, and let the run end. Prints each cut; whether all is as it must be."""
    rng, mirrored = random.Random(asked.seed), folder / "mirror" / recipe.name / "checkpoints"
    most_s = cadence(recipe.checkpoint.every).seconds
    now_s, machine, losses, limits = START_S, "", [], 0
    begin_s, path, code = now_s, folder / crashing.NOTES, -1
    print(f"{'machine':<9}{'from h':>8}{'to h':>8}{'at step':>9}{'lost s':>8}")
    while code:
        machine = rng.choice([name for name in MACHINES if name != machine])
        run = Run(folder / machine)
        shutil.rmtree(run.path, ignore_errors=True)
        cut_s = now_s + rng.uniform(LEAST_S, MOST_S) if now_s - begin_s < 3600 * asked.hours else math.inf
        clock = Clock(now_s, cut_s, asked.step)
        notes = crashing.Notes(path, lambda clock=clock: clock.now_s)
        pid = crashing.forked(folder, partial(session, recipe, run, clock, notes))
        if (code := crashing.ended(pid)) not in (0, PAUSED, -9):
            raise RuntimeError(f"a session ended with {code}: {(folder / crashing.LOG).read_text()[-3000:]}")
        noted = crashing.notes_of(path, pid)
        newest, last = crashing.newest_mirrored(mirrored), noted[-1]["s"]
        copied = {note["step"]: note["s"] for note in reversed(noted) if note["what"] in ("begin", "copy")}
        lost_s = last - copied.get(newest or 0, -math.inf) if code == -9 else 0.0
        losses += [lost_s] if code == -9 else []
        limits += code == PAUSED
        how = "" if code == -9 else "  the limit" if code else "  the end"
        print(f"{machine:<9}{now_s / 3600:>8.2f}{last / 3600:>8.2f}{newest:>9}{lost_s:>8.0f}{how}")
        now_s = last + START_S
    weights = [(one.adapter / "adapter_model.safetensors").read_bytes() for one in (run, whole)]
    said = "equal" if weights[0] == weights[1] else "other"
    print(f"the limit ended {limits} session(s)")
    print(f"the run ended: {len(losses)} cuts, most lost {max(losses):.0f} s of {most_s:.0f} s, adapter {said}")
    return said == "equal" and max(losses) <= most_s


def main(*arguments):
    """As the usage says; exits with 1 where the end is another, or a cut lost more than an interval."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=24)
    parser.add_argument("--limit", default="12h")
    parser.add_argument("--step", type=float, default=60, help="seconds; a divisor of the 300 between two checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="day-"))
    crashing.done(folder, lambda: save_base(folder / "base") and 0)
    recipe = scaled(folder, asked.hours, cadence(asked.limit).seconds, asked.step)
    whole = Run(folder / "whole")
    notes = crashing.Notes(folder / "whole.jsonl")
    crashing.done(folder, lambda: session(recipe, whole, Clock(START_S, math.inf, asked.step), notes))
    there = with_changes(recipe, (f"checkpoint.mirror={folder / 'mirror'}", f"train.stop_after={asked.limit}"))
    good = day(folder, there, whole, asked)
    if good:
        shutil.rmtree(folder)
    sys.exit(not good)


if __name__ == "__main__":
    main(*sys.argv[1:])
