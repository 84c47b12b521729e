"""Trains the tiny model in a process of its own, with a fault that the test has asked for."""

import ctypes
import errno
import os
import shutil
import signal
import subprocess
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


def slow_steps(seconds):
    """Time for a look at each."""
    update = loop.update

    def slow(*args):
        time.sleep(seconds)
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


NO_MOUNTS = "mounting is not allowed here"


def on_a_small_disk(prepared, folder, base, kind, lasting):
    """Train in a file system of 3 MB that takes nothing from the sixth step to the twelfth, or for good (`lasting`).

    What is in it at the end is copied to `folder`-after.
    """
    if not _own_mounts():
        say(NO_MOUNTS)
        return
    small = Path(folder)
    small.mkdir()
    _mount("-t", "tmpfs", "-o", "size=3m", "tmpfs", small)
    run = Path(shutil.copytree(prepared, small / "run"))
    slow_steps(0.06)
    begin, end = {"full": (_fill, _empty), "read-only": (_forbid, _allow)}[kind]
    real = loop.update

    def update(job, state, *rest):
        if state.progress.step == 5:
            begin(small)
        if state.progress.step == 12 and not lasting:
            end(small)
        return real(job, state, *rest)

    loop.update = update
    try:
        main(str(run), base)
    finally:
        shutil.copytree(run, f"{small}-after")


def _own_mounts():
    """A mount namespace of this process alone, in which it is root (unshare(2)); False where that is not allowed."""
    user, group = os.getuid(), os.getgid()
    new_mounts, new_users = 0x00020000, 0x10000000
    if ctypes.CDLL(None, use_errno=True).unshare(new_mounts | new_users):
        return False
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        Path("/proc/self", name).write_text(text)
    return True


def _mount(*words):
    subprocess.run(["mount", *map(str, words)], check=True)


def _fill(small):
    with (small / "filler").open("wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(1024))
        except OSError as error:
            assert error.errno == errno.ENOSPC
            say("the disk is full now")


def _empty(small):
    (small / "filler").unlink()


def _forbid(small):
    saved = small / "run" / "checkpoints"
    _mount("--bind", saved, saved)
    while subprocess.run(["mount", "-o", "remount,bind,ro", saved], check=False, capture_output=True).returncode:
        time.sleep(0.01)  # a checkpoint is being written there
    try:
        (saved / "tried").touch()
    except OSError as error:
        assert error.errno == errno.EROFS
        say("the disk is read-only now")


def _allow(small):
    subprocess.run(["umount", str(small / "run" / "checkpoints")], check=True)


FAULTS = {
    "": quick, "stuck": lambda: stuck(False), "masked": lambda: stuck(True), "slow disk": slow_disk,
    "slow step": slow_step, "slow steps": lambda: slow_steps(0.1), "slower steps": lambda: slow_steps(0.2),
    "file limit": file_limit,
}  # fmt: skip
