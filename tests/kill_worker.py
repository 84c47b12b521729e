"""Trains in forked children and kills them with SIGKILL at random moments; the last one of a run gets to the end.

A process of its own that never computes, so that its children can fork before any thread is started: a child then
needs no seconds to import torch.
"""

import json
import os
import random
import signal
import time
import traceback
import warnings
from pathlib import Path

from training_runs import recipe_with

from tunesmith.record import read_record
from tunesmith.runs import Run
from tunesmith.training.train import train
from tunesmith.weights.locate import LocatedBase

RECIPE = {"dropout": 0.1, "epochs": 3, "evaluate_every": "3 steps"}
KILLS_A_RUN = 10
LOOK = os.WEXITED | os.WNOHANG | os.WNOWAIT  # whether a child has ended, and leave it to be waited for


def child(run, base):
    """Fork a child that trains; returns its process id."""
    pid = os.fork()
    if pid == 0:
        log = os.open(run.path / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = 1
        try:
            train(recipe_with(**RECIPE), run, base)
            code = 0
        except BaseException:
            traceback.print_exc()  # into the log, before the child ends as if nothing had been
            raise
        finally:
            os._exit(code)
    return pid


def wait_for_a_moment(run, pid, rng):
    """Return at a random moment of a child: while it starts, or within some steps of its training."""
    if rng.random() < 0.25:
        time.sleep(rng.uniform(0, 0.4))
        return
    before = said(run)
    deadline = time.monotonic() + 60

    def wait_while(condition):
        while condition() and time.monotonic() < deadline and os.waitid(os.P_PID, pid, LOOK) is None:
            time.sleep(0.002)

    wait_while(lambda: said(run) == before)  # it has loaded the model, and cut the metrics back
    wanted = lines(run) + rng.randint(0, 4)
    wait_while(lambda: lines(run) < wanted)
    time.sleep(rng.uniform(0, 0.1))


def said(run):
    """What changes when a child starts to train, or gets on."""
    return (run.metrics.stat().st_mtime_ns, run.metrics.stat().st_size) if run.metrics.exists() else None


def lines(run):
    """Steps and evaluations that the metrics know."""
    return run.metrics.read_bytes().count(b"\n") if run.metrics.exists() else 0


def main(base, kills, *folders):
    """Kill, resume, kill; then the next child goes to the end. For each run in turn, until there were enough kills.

    Prints a JSON line.
    """
    warnings.simplefilter("error")
    base, kills = LocatedBase("tiny", Path(base), "digest", None, None), int(kills)
    rng, killed, steps, ended = random.Random(0), 0, set(), {}
    for folder in folders:
        run, of_run = Run(Path(folder)), 0
        while of_run < KILLS_A_RUN and read_record(run.adapter) is None:
            pid = child(run, base)
            wait_for_a_moment(run, pid, rng)
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            of_run += os.WIFSIGNALED(status)
            steps.add(max((p.name for p in run.checkpoints.glob("step-*")), default="none"))
        _, status = os.waitpid(child(run, base), 0)
        ended[folder] = os.waitstatus_to_exitcode(status)
        killed += of_run
        if killed >= kills:
            break
    print(json.dumps({"killed": killed, "ended": ended, "steps": sorted(steps)}))
