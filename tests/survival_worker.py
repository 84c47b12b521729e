"""Trains the tiny model in a process of its own, with a fault that the test has asked for."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

from training_runs import RECIPE, recipe_with

from tunesmith.cli import PausedExit, _end
from tunesmith.console import say
from tunesmith.lock import locked
from tunesmith.runs import Run
from tunesmith.training import loop, saver, snapshot, stop
from tunesmith.training.stop import Paused, signals_heeded
from tunesmith.training.train import train
from tunesmith.weights.locate import LocatedBase

STUCK = "stuck in a long micro-batch"
AT_STEP = 4


def main(run, base, fault="", every="1 steps", stop_after=""):
    """Train the run to its end under the lock, as the command line does; then the same exit codes."""
    FAULTS[fault]()
    recipe = recipe_with(**RECIPE, every=every, **({"stop_after": stop_after} if stop_after else {}))
    try:
        with signals_heeded(), locked(Run(Path(run))):
            train(recipe, Run(Path(run)), LocatedBase("tiny", Path(base), "digest", None, None))
    except Paused as paused:
        raise PausedExit(paused.exit_code) from None
    except Exception as error:
        _end(error)


def at_step(do):
    """Have `do` done in the first micro-batch of the fifth step."""
    real, update, now = loop.hidden_states, loop.update, []

    def watched_update(job, state, *rest):
        now[:] = [state.progress.step]
        return update(job, state, *rest)

    def hidden_states(*args):
        if now == [AT_STEP]:
            now.clear()
            do()
        return real(*args)

    loop.hidden_states, loop.update = hidden_states, watched_update


def stuck(masked):
    def wait():
        if masked:  # as where a thread of a library gets the signal, and this one never looks
            signal.pthread_sigmask(signal.SIG_BLOCK, stop.SIGNALS)
        say(STUCK)
        threading.Event().wait(60)

    stop.STEP_S = 0.5
    at_step(wait)


def slow_disk():
    """The disk that is to take the last state does not answer."""
    write = snapshot.write_tensors

    def slow(path, tensors):
        if f"{AT_STEP:06d}" in str(path):
            time.sleep(60)
        write(path, tensors)

    snapshot.write_tensors = slow
    stop.STEP_S, stop.LEAVE_S = 0.3, 1.5
    at_step(lambda: say(STUCK) or threading.Event().wait(1))


def slow_step():
    at_step(lambda: say(STUCK) or time.sleep(1))


def slow_steps():
    """Time for a look at each."""
    update = loop.update

    def slow(*args):
        time.sleep(0.2)
        return update(*args)

    loop.update = slow
    saver.FIRST_RETRY_S = 0.05
    saver.LONGEST_RETRY_S = 0.1


def file_limit():
    """No file may be larger than 40 kB (RLIMIT_FSIZE), so that no checkpoint can be written."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))


def quick():
    sys.setswitchinterval(0.0005)


def as_nobody():
    """Give up root, whom no mode of a file stops."""
    os.setgid(65534)
    os.setuid(65534)


FAULTS = {
    "": quick, "stuck": lambda: stuck(False), "masked": lambda: stuck(True), "slow disk": slow_disk,
    "slow step": slow_step, "slow steps": slow_steps, "file limit": file_limit,
}  # fmt: skip
