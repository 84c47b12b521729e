"""Kills a training at random moments until it is done, and again: is each end that of a run that nothing interrupted?

The same bits: the adapter, the optimizer's state, and step, loss, rate, tokens, gradient norm and held-out loss of the
metrics. A kill is uniform over the run's time, or aimed: between two tensors of a checkpoint, between its write and its
rename, within the deletion of an old one, within an upload (--mirror, where half of the kills take the run folder too).
With --signal TERM the training is told to stop instead: at random moments, or between two micro-batches.

A kill loses the seconds since the state that it can go on from. What it may lose is the cadence (or a write that takes
longer: the next is due once that one is on disk), and, each as long as the longest of that process: what lies between
two looks whether a checkpoint is due, since how long the next will be off is a guess (a step, or an evaluation), one
write with the deletion of old ones, and, where the run folder is gone too, three uploads (the one on its way, the best,
the newest); where the run folder outlived kills before, each process since the mirror's newest counts so. Nothing with
SIGTERM.

usage: python benchmarks/crash.py --kills N [--base tiny|builtin] [--mirror] [--signal KILL|TERM] [--epochs E]
       [--seed S]
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path

from tunesmith.gguf.read import convert
from tunesmith.recipe import CheckpointConfig, Recipe
from tunesmith.runs import Run
from tunesmith.training.saved import is_whole
from tunesmith.values import cadence
from tunesmith.weights.locate import LocatedBase, locate_base

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import crashing
from tiny import save_base
from training_runs import prepare_rows, recipe_with

KILLS_A_RUN = 10
COLUMNS = ("step", "loss", "lr", "tokens", "grad_norm", "held_out_loss")
UNIFORM, ACCUMULATION, UPLOAD = "uniform", "in accumulation", "in the upload"
AIMS = {
    "in the write": crashing.in_write,
    "before the rename": crashing.before_rename,
    "in the prune": crashing.in_prune,
    UPLOAD: crashing.in_upload,
}
LOOK = os.WEXITED | os.WNOHANG | os.WNOWAIT  # whether a child has ended, and leave it to be waited for


@dataclass
class Kill:
    """One kill, and what it cost."""

    aim: str
    lost_s: float = 0.0
    step_s: float = 0.0
    """The longest between two looks, a step or an evaluation; of several processes, these together, as the others."""
    write_s: float = 0.0
    uploads_s: float = 0.0
    cadence_s: float = 0.0

    @property
    def allowed_s(self):
        """What it may lose."""
        return self.cadence_s + self.step_s + self.write_s + self.uploads_s


@dataclass
class Trial:
    """What every run of one call has in common."""

    folder: Path
    recipe: Recipe
    base: LocatedBase
    rng: random.Random
    mirror: bool
    signal: signal.Signals
    whole: Run = field(init=False)
    """The run that nothing interrupts."""
    steps: int = 0
    start_s: float = 0.0
    """What it takes until the first step."""
    train_s: float = 0.0
    """What it takes from there."""

    def __post_init__(self):
        self.whole = Run(self.folder / "whole")

    @property
    def aims(self):
        """Where a kill, or a signal, may hit."""
        if self.signal == signal.SIGTERM:
            return (UNIFORM, ACCUMULATION)
        return (UNIFORM, *(aim for aim in AIMS if self.mirror or aim != UPLOAD))


def trial(folder, kind, *, mirror, number, seed, epochs):
    """A base, rows and a recipe; and the run that nothing interrupts."""
    if kind == "tiny":
        crashing.done(folder, lambda: save_base(folder / "base") and 0)
        base, rows = LocatedBase("tiny", folder / "base", "digest", None, None), 24
        recipe = recipe_with(dropout=0.1, epochs=epochs or 6, evaluate_every="20 steps", sample=False)
    else:
        place = "builtin:smollm2-135m-instruct"
        crashing.done(folder, lambda: locate_base(place, convert) and 0)  # which may unpack it
        base, rows = locate_base(place, convert), 16
        recipe = recipe_with(dropout=0.1, epochs=epochs or 3, evaluate_every="5 steps", sample=False, lr=1e-3)
    every = "0.1s" if kind == "tiny" else "5s"
    saving = CheckpointConfig(every=every, overhead=None, keep={"last": 2})
    made = Trial(folder, recipe.model_copy(update={"checkpoint": saving}), base, random.Random(seed), mirror, number)
    crashing.done(folder, lambda: prepare_rows(made.whole.path, base.folder, rows=rows) and 0)
    forked_s, notes = time.monotonic(), folder / crashing.NOTES
    crashing.done(folder, lambda: crashing.train_to_the_end(made.recipe, made.whole, base, None, crashing.Notes(notes)))
    began, *_, last = [note for note in crashing.notes_of(notes) if note["step"] is not None]
    made.steps, made.start_s, made.train_s = last["step"], began["s"] - forked_s, time.monotonic() - began["s"]
    return made


class Victim:
    """One run that is killed until it ends."""

    def __init__(self, trial, name):
        self.trial, self.place, self.run = trial, trial.folder / name, Run(trial.folder / name / "run")
        self.place.mkdir()
        self.recipe, self._from = trial.recipe, 0
        if trial.mirror:
            saving = self.recipe.checkpoint.model_copy(update={"mirror": str(self.place / "mirror")})
            self.recipe = self.recipe.model_copy(update={"checkpoint": saving})
        self.mirrored = self.place / "mirror" / self.recipe.name / "checkpoints"
        self.ended = False
        self._lives = []
        """What each process since the run folder was empty has noted, and when it was killed."""

    def child(self, begin=lambda notes: None):
        """The process id of one that trains, after `begin`."""
        self.run.path.mkdir(exist_ok=True)
        notes = crashing.Notes(self.place / crashing.NOTES)
        rows = self.trial.whole.data
        work = partial(crashing.train_to_the_end, self.recipe, self.run, self.trial.base, rows, notes, begin)
        return crashing.forked(self.place, work)

    def notes(self, pid):
        """What a child of this run has noted."""
        return crashing.notes_of(self.place / crashing.NOTES, pid)

    def kill(self, aim):
        """Train until a kill; None where the run came to its end before it."""
        rng, number = self.trial.rng, self.trial.signal
        own = random.Random(rng.random())
        if aim == UNIFORM:
            pid = self.child()
            self._wait_for_a_moment(pid)
            cut_s = time.monotonic()
            os.kill(pid, number)
        elif aim == ACCUMULATION:
            pid = self.child(lambda notes: crashing.told_in_accumulation(number, own))
        else:
            pid = self.child(lambda notes: AIMS[aim](notes, own))
        code = crashing.ended(pid)
        notes = self.notes(pid)
        cut_s = next((note["s"] for note in notes if note["what"] == "killed"), None) or (aim == UNIFORM and cut_s)
        self.ended = code == 0
        if code not in (0, -number, 128 + number):
            raise RuntimeError(f"a child ended with {code}: {(self.place / crashing.LOG).read_text()[-3000:]}")
        return None if self.ended else self._weighed(aim, notes, cut_s)

    def _wait_for_a_moment(self, pid):
        """Until a moment that is uniform over the time that the rest of the run takes, or the child's end.

        One that is told to stop is so once it trains: before that a signal ends a process as any other.
        """
        rest_s = self.trial.start_s + self.trial.train_s * (1 - self._from / self.trial.steps)
        end = time.monotonic() + self.trial.rng.uniform(0, rest_s)
        stops = self.trial.signal == signal.SIGTERM
        while os.waitid(os.P_PID, pid, LOOK) is None and (time.monotonic() < end or (stops and not self.notes(pid))):
            time.sleep(0.002)

    def _weighed(self, aim, notes, cut_s):
        """What a kill cost. Where there is a mirror, half of them take the run folder too."""
        gone = self.trial.mirror and self.trial.signal == signal.SIGKILL and self.trial.rng.random() < 0.5
        newest = crashing.newest_mirrored(self.mirrored) if gone else crashing.newest_whole(self.run.checkpoints)
        self._lives.append((notes, cut_s))
        every = cadence(self.recipe.checkpoint.every).seconds
        kill = lost(aim, self._lives if gone else self._lives[-1:], newest or 0, every, gone)
        if gone:
            shutil.rmtree(self.run.path)
            self._lives = []
        steps = [note["step"] for note in notes if note["what"] in ("begin", "step")]
        if steps and steps[0] < self._from:
            kill.lost_s = float("inf")  # it has not gone on from the newest
        self._from = newest or 0
        if self.trial.signal == signal.SIGTERM:
            return Kill(aim, lost_s=0.0 if self._from == steps[-1] else float("inf"))
        return kill

    def differs(self):
        """What is other than in the whole run, in words; nothing where all is equal."""
        ours, theirs = ((r, sorted(r.checkpoints.glob("step-*"))[-1]) for r in (self.run, self.trial.whole))
        found = []
        for name, of in {
            "the adapter": lambda run, last: (run.adapter / "adapter_model.safetensors").read_bytes(),
            "the last step": lambda run, last: last.name,
            "the optimizer's state": lambda run, last: (last / "optimizer.safetensors").read_bytes(),
            "the metrics": lambda run, last: history(run),
        }.items():
            if of(*ours) != of(*theirs):
                found.append(name)
        there = self.run.checkpoints.iterdir()
        found += [f"{path.name} is left" for path in there if path.name.startswith(".") or not is_whole(path)]
        name, sent = "optimizer.safetensors", crashing.mirrored(self.mirrored / ours[1].name)
        if self.trial.mirror and not (sent and sent[name].read_bytes() == (ours[1] / name).read_bytes()):
            found.append("the mirror's newest")
        return ", ".join(found)


def lost(aim, lives, newest, cadence_s, gone):
    """What a kill cost, where the newest state on disk is that of step `newest`.

    `lives`: what the processes noted that it may have cost, and when each was killed, the last of them now. `gone`:
    whether what is on disk is the mirror's.
    """
    kill = Kill(aim)
    for notes, cut_s in reversed(lives):
        copied = {note["step"]: note["s"] for note in reversed(notes) if note["what"] in ("begin", "copy")}
        if not copied:
            continue  # it had not begun to train
        looks = [note["s"] for note in notes if note["what"] in ("begin", "look", "copy")]
        kill.step_s += max(after - before for before, after in pairwise([*looks, cut_s]))
        write_s = longest(notes, "copy", cut_s)
        kill.write_s += write_s
        kill.uploads_s += 3 * longest(notes, "upload", cut_s) if gone else 0.0
        kill.cadence_s += max(cadence_s, write_s)
        if newest in copied:
            kill.lost_s += cut_s - copied[newest]
            return kill
        kill.lost_s += cut_s - looks[0]
    if kill.cadence_s:
        kill.lost_s = float("inf")  # none of them had that state
    return kill


def longest(notes, what, cut_s):
    """Seconds that the longest of these took; the one that was cut counts to the cut."""
    begun, found = None, [0.0]
    for note in notes:
        if note["what"] == what:
            begun = note["s"]
        if note["what"] == f"{what} done":
            found.append(note["s"] - begun)
            begun = None
    return max([*found, cut_s - begun] if begun is not None else found)


def history(run):
    """The columns of the metrics that no clock decides."""
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [{name: line.get(name) for name in COLUMNS} for line in lines]


def killed(trial, kills):
    """Kill runs until there were enough; the kills of those that ended equal, and of all."""
    equal, found, number = 0, list[Kill](), 0
    while len(found) < kills:
        victim, before, number = Victim(trial, f"run{number}"), len(found), number + 1
        while not victim.ended and len(found) - before < KILLS_A_RUN and len(found) < kills:
            rarest = min(trial.aims, key=lambda aim: sum(kill.aim == aim for kill in found))
            if kill := victim.kill(trial.rng.choice((rarest, *trial.aims))):
                found.append(kill)
        if not victim.ended and (code := crashing.ended(victim.child())):
            raise RuntimeError(f"the last child ended with {code}: {(victim.place / crashing.LOG).read_text()[-3000:]}")
        if differs := victim.differs():
            print(f"run {number - 1}, killed {len(found) - before} times: {differs}; see {victim.place}")
        else:
            equal += len(found) - before
            shutil.rmtree(victim.place)
    return equal, found


def report(equal, found):
    """Print what was lost, by aim; whether all were equal, and nothing was lost beyond the cadence."""
    by_aim = defaultdict(list)
    for kill in found:
        by_aim[kill.aim].append(kill)
    print(f"{'aim':<20}{'kills':>6}{'most lost s':>13}{'may lose s':>12}")
    for aim, kills in sorted(by_aim.items()):
        most = max(kills, key=lambda kill: kill.lost_s)
        print(f"{aim:<20}{len(kills):>6}{most.lost_s:>13.2f}{most.allowed_s:>12.2f}")
    step_s, write_s = max(kill.step_s for kill in found), max(kill.write_s for kill in found)
    print(f"the longest between two looks took {step_s:.2f} s, the longest write {write_s:.2f} s")
    for kill in (beyond := [kill for kill in found if kill.lost_s > kill.allowed_s]):
        print(f"beyond: {kill}")
    print(f"{equal} of {len(found)} equal, {len(beyond)} lost beyond the cadence")
    return equal == len(found) and not beyond


def main(*arguments):
    """As the usage says; exits with 1 where a run ended otherwise, or a kill lost more than it may."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--base", choices=("tiny", "builtin"), default="tiny")
    parser.add_argument("--mirror", action="store_true")
    parser.add_argument("--signal", choices=("KILL", "TERM"), default="KILL")
    parser.add_argument("--epochs", type=int, help="of a run; 6 of the tiny model, 3 of the builtin one")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)
    folder, number = Path(tempfile.mkdtemp(prefix="crash-")), signal.Signals[f"SIG{asked.signal}"]
    made = trial(folder, asked.base, mirror=asked.mirror, number=number, seed=asked.seed, epochs=asked.epochs)
    took = f"{made.start_s:.1f} s until the first of {made.steps} steps, {made.train_s:.1f} s from there"
    print(f"a whole run takes {took}; a checkpoint every {made.recipe.checkpoint.every}")
    good = report(*killed(made, asked.kills))
    if good:
        shutil.rmtree(folder)
    sys.exit(not good)


if __name__ == "__main__":
    main(*sys.argv[1:])
