"""Trains in forked children and kills them with SIGKILL at random moments until one of them gets to the end.

A process of its own that never computes, so that its children can fork before any thread is started: a child then
needs no seconds to import torch. Usage: kill_worker.py RUN_FOLDER BASE_FOLDER KILLS SEED. Prints a JSON line.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

from training_runs import recipe_with

from tunesmith.runs import Run, read_record
from tunesmith.training.train import train
from tunesmith.weights.locate import LocatedBase

RECIPE = {"dropout": 0.1, "epochs": 4, "evaluate_every": "3 steps"}


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


def main():
    """Kill, resume, kill; the last child runs to the end."""
    run, base_folder, kills, seed = Run(Path(sys.argv[1])), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    base, rng, killed, steps = LocatedBase("tiny", base_folder, "digest", None, None), random.Random(seed), 0, []
    while killed < kills and read_record(run.adapter) is None:
        pid = child(run, base)
        time.sleep(rng.uniform(0.2, 1.2))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        killed += os.WIFSIGNALED(status)
        steps.append(max((p.name for p in run.checkpoints.glob("step-*")), default="none"))
    pid = child(run, base)
    _, status = os.waitpid(pid, 0)
    print(json.dumps({"killed": killed, "exit": os.waitstatus_to_exitcode(status), "steps": steps}))


if __name__ == "__main__":
    main()
