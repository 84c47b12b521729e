"""Processes of their own, forked where torch is imported already: real signals and exit codes, 5 s sooner."""

import contextlib
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
STAGES = ("tokens.prepare", "training.train", "release.merge", "release.export", "evaluation.evaluate", "cli")
DRAWING = ("matplotlib.figure", "matplotlib.backends.backend_agg")
SERVER.set_forkserver_preload([*(f"tunesmith.{name}" for name in STAGES), *DRAWING])  # computes nothing: no threads
LIMIT_S = 120


@dataclass
class Forked:
    """A process at work, and the files that it writes to."""

    process: multiprocessing.process.BaseProcess
    folder: Path

    @property
    def stdout(self):
        return (self.folder / "stdout").read_text()

    @property
    def stderr(self):
        return (self.folder / "stderr").read_text()

    def wait(self, limit_s=LIMIT_S):
        """The exit code; minus the signal that ended it."""
        self.process.join(limit_s)
        assert self.process.exitcode is not None, f"it did not end in {limit_s} s: {self.stderr}"
        return self.process.exitcode

    def wait_until_said(self, text):
        """Until standard error has the text."""
        deadline = time.monotonic() + LIMIT_S
        while text not in self.stderr:
            assert self.process.is_alive() and time.monotonic() < deadline, self.stderr
            time.sleep(0.01)

    def send_signal(self, number):
        os.kill(self.process.pid, number)


def command_line(*arguments):
    from tunesmith.cli import main

    sys.argv = ["tunesmith", *arguments]
    main()


def completed(*arguments, cwd=None, typed="", **environment):
    """`tunesmith ARGUMENTS` with what is typed, at its end: as subprocess.run gives it."""
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(cwd or os.getcwd()),
        forked(Path(folder), *arguments, typed=typed, **environment) as child,
    ):
        code = child.wait()
        return subprocess.CompletedProcess(arguments, code, child.stdout, child.stderr)


@contextlib.contextmanager
def forked(folder, *arguments, of=command_line, before=None, given=(), typed="", **environment):
    """`tunesmith ARGUMENTS`, or the function `of` with them, after `before(*given)`; killed at the end of the block."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = [str(argument) for argument in arguments]
    (folder / "stderr").write_text("")
    (folder / "stdin").write_text(typed)
    around = (str(folder), os.getcwd(), os.environ | environment)
    process = SERVER.Process(target=_work, args=(*around, of, texts, before, given))
    process.start()
    try:
        yield Forked(process, folder)
    finally:
        process.kill()
        process.join()


def _work(folder, where, environment, of, arguments, before, given):
    os.chdir(where)
    os.environ.clear()
    os.environ.update(environment)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.dup2(os.open(f"{folder}/stdin", os.O_RDONLY), 0)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - as long as the process
    if before:
        before(*given)
    of(*arguments)
