"""A training in a forked child that notes what it does, and ends where it is told to; for crash.py and t4_day.py.

The parent never computes, so that its children can fork before any thread is started: they need no seconds to import
torch. What is wrapped here calls the product's own functions, and dies (SIGKILL) before, within or after them.
"""

import json
import os
import shutil
import signal
import time
import traceback

import torch

from tunesmith import files
from tunesmith.files import DIGESTS
from tunesmith.json_file import OTHER_JSON
from tunesmith.lock import locked
from tunesmith.runs import checkpoint_folders, step_of
from tunesmith.training import checkpoint, loop, saver, snapshot
from tunesmith.training import train as training
from tunesmith.training.fetched import stored_as
from tunesmith.training.mirror import Mirror
from tunesmith.training.saved import digests_in, file_damage, is_whole
from tunesmith.training.stop import Paused, signals_heeded
from tunesmith.weights.tensorfile import TensorWriter

NOTES, LOG = "notes.jsonl", "log.txt"
FEW = 3
"""An aim is at the first, second or third of what it is at: later ones may never come."""


class Notes:
    """What a child did, and when: a line each, which survives SIGKILL."""

    def __init__(self, path, clock=time.monotonic):
        self._file, self._clock = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), clock

    def add(self, what, step=None):
        """Note something."""
        line = {"pid": os.getpid(), "what": what, "step": step, "s": self._clock()}
        os.write(self._file, f"{json.dumps(line)}\n".encode())

    def die(self):
        """Note it, and be killed."""
        self.add("killed")
        os.kill(os.getpid(), signal.SIGKILL)


def notes_of(path, pid=None):
    """What one child noted, or all."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line for line in lines if pid in (None, line["pid"])]


def newest_whole(checkpoints):
    """The step of the newest checkpoint in a folder that nothing is wrong with; None where there is none."""
    steps = [step_of(path.name) for path in checkpoint_folders(checkpoints) if is_whole(path)]
    return max(steps, default=None)


def mirrored(checkpoint):
    """File -> where it is in a mirror's checkpoint; None where that is not whole."""
    try:
        content = (checkpoint / DIGESTS).read_bytes()
        files = {name: checkpoint / stored for name, stored in stored_as(content).items()}
        wrong = [name for name, entry in digests_in(content).items() if file_damage(files[name], entry)]
    except (OSError, *OTHER_JSON):
        return None
    return None if wrong else files


def newest_mirrored(checkpoints):
    """The step of the newest checkpoint of a mirror that nothing is wrong with; None where there is none."""
    return max((step_of(path.name) for path in checkpoint_folders(checkpoints) if mirrored(path)), default=None)


def forked(folder, work):
    """The process id of a child that does `work`, and ends with what that returns; what it says goes to a log."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = work() or 0
    except BaseException:
        traceback.print_exc()  # into the log, before the child ends as if nothing had been
        raise
    finally:
        os._exit(code)


def ended(pid):
    """The exit code of a child at its end; minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def done(folder, work):
    """Have `work` done by a child."""
    if code := ended(forked(folder, work)):
        raise RuntimeError(f"a child ended with {code}: {(folder / LOG).read_text()[-3000:]}")


def wrap(place, name, around):
    """Have `around(real, *arguments)` called in place of a function."""
    real = getattr(place, name)
    setattr(place, name, lambda *args, **kwargs: around(real, *args, **kwargs))


def note_all(notes):
    """Note where training begins, each step, each look whether a checkpoint is due, each copy of the state until its
    writer is free again, and each upload.
    """

    def began(real, job, state, *rest):
        notes.add("begin", state.progress.step)
        return real(job, state, *rest)

    def stepped(real, job, state, *rest):
        line = real(job, state, *rest)
        notes.add("step", state.progress.step)
        return line

    def copied(real, state, *rest):
        notes.add("copy", state.progress.step)
        return real(state, *rest)

    def looked(real, *args):
        notes.add("look")
        return real(*args)

    def written(real, *args):
        real(*args)
        notes.add("copy done")

    def uploaded(real, *args):
        notes.add("upload")
        real(*args)
        notes.add("upload done")

    wrap(training, "fit", began)
    wrap(loop, "update", stepped)
    wrap(saver, "take", copied)
    wrap(saver, "take_beside", copied)
    wrap(saver.Saver, "is_due", looked)
    wrap(saver.Saver, "_write", written)
    wrap(Mirror, "_send", uploaded)


def train_to_the_end(recipe, run, base, rows, notes, begin=lambda notes: None):
    """What the command line does, with a fetch from the mirror before; the exit code. `rows`: where prepared ones are.

    `begin` may wrap more, before anything is done.
    """
    torch.set_num_threads(1)  # of several, each waits for the slowest, on a machine that does other work too
    note_all(notes)
    begin(notes)
    try:
        with signals_heeded(), locked(run):
            if recipe.checkpoint.mirror:
                Mirror(recipe.checkpoint.mirror, run, recipe.name).fetch()
            if not run.data.exists():
                shutil.copytree(rows, run.data)  # made anew, as prepare would
            training.train(recipe, run, base)
    except Paused as paused:
        return paused.exit_code
    return 0


class Nth:
    """True once: the n-th time that it is asked."""

    def __init__(self, number):
        self._left = number

    def __call__(self):
        """Whether this is the time."""
        self._left -= 1
        return self._left == 0


def in_write(notes, rng):
    """Die between two tensors of a checkpoint, or after its last."""
    comes = Nth(rng.randint(1, 200))

    class Dying(TensorWriter):
        def write(self, *args):
            super().write(*args)
            if comes():
                notes.die()

    snapshot.TensorWriter = Dying


def before_rename(notes, rng):
    """Die once all files of a checkpoint are on disk and it has not its name yet."""
    comes = Nth(rng.randint(1, FEW))

    def move_in(real, draft, target):
        if target.parent.name == "checkpoints" and comes():
            notes.die()
        real(draft, target)

    wrap(files, "_move_in", move_in)


def in_prune(notes, rng):
    """Die while an old checkpoint is deleted: between two of its files, or before the first."""
    comes, number = Nth(rng.randint(1, FEW)), Nth(rng.randint(1, 4))

    def discard(real, *folders):
        if comes():
            wrap(os, "unlink", lambda real, *args, **kwargs: notes.die() if number() else real(*args, **kwargs))
        real(*folders)

    wrap(checkpoint, "discard", discard)


def in_upload(notes, rng):
    """Die with a part of a file written in the mirror."""
    comes = Nth(rng.randint(1, 20))

    def copy(real, source, target, *rest):
        if comes():
            target.write(source.read(rng.randint(0, 1 << 16)))
            target.flush()
            notes.die()
        real(source, target, *rest)

    wrap(shutil, "copyfileobj", copy)


def told_in_accumulation(number, rng):
    """Be sent a signal before the second micro-batch of a step."""
    comes, calls = Nth(rng.randint(1, 40)), []

    def gradient(real, *args):
        calls.clear()
        return real(*args)

    def hidden_states(real, *args):
        calls.append(1)
        if len(calls) == 2 and comes():
            os.kill(os.getpid(), number)
        return real(*args)

    wrap(loop, "gradient", gradient)
    wrap(loop, "hidden_states", hidden_states)
