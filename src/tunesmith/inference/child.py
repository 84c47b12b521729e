"""A process of its own that runs the engine: its peak memory is the engine's alone, and it can be ended at any moment.

A job goes in as one JSON line; JSON lines come out, or {"error": [class, what, fix, where]}. They come by a pipe of
their own, because llama.cpp, and a debugger that it calls as it aborts, print to standard output. Standard input
stays open as a lifeline: it ends with the parent, however that ends, and the child ends with it. A byte on it is a
turn, for children that work one at a time.
"""

import contextlib
import fcntl
import json
import os
import select
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

from tunesmith import errors
from tunesmith.errors import TunesmithError
from tunesmith.inference.ended import ended
from tunesmith.machine import ANSWERING_SPINS, spinning

_turns = threading.Semaphore(0)
LOOK_EVERY_S = 1.0  # at the parent's number: a process that the parent forked may hold the lifeline open
KEPT_BYTES = 20_000  # of what it prints: a traceback, or what llama.cpp says as it aborts


class Child:
    """The parent's side."""

    def __init__(self, module: str, job: Mapping[str, Any], name: str, spins: int = ANSWERING_SPINS) -> None:
        """Start `python -m module` on `job`; `name` is what answers, for the user. `spins`: of threads that wait."""
        self._name, self._owner = name, os.getpid()
        self._closed = False
        self._errors = _unnamed_file()  # a pipe would have to be read all the time
        self._last = ""
        ours, theirs = os.pipe()
        self._output = os.fdopen(ours, encoding="utf-8")
        command = [sys.executable, "-P", "-m", module, str(theirs)]  # -P: a json.py in the working folder is not ours
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "pass_fds": [theirs]}
        pipes["stderr"] = self._errors
        no_trace = {"GGML_NO_BACKTRACE": "1"}  # an abort is one line, not a debugger's screens
        pipes["env"] = no_trace | os.environ | spinning(spins)
        try:
            # a session of its own: Ctrl+C in the terminal, or a notebook's interrupt, is for the parent to act on
            self._process = subprocess.Popen(command, start_new_session=True, text=True, encoding="utf-8", **pipes)
        finally:
            os.close(theirs)
        with contextlib.suppress(BrokenPipeError):  # it ended at once: said by the first read
            self._input.write(f"{json.dumps(job)}\n")
            self._input.flush()

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs, as far as this process can know."""
        return self._process.poll() if os.getpid() == self._owner else None

    @property
    def _input(self) -> Any:
        return self._process.stdin

    def read(self) -> dict[str, Any] | None:
        """Its next line; None where it has ended well.

        Raises the error that it tells of; ResourceError if it was killed.
        """
        if (text := self._output.readline()).endswith("\n"):  # a line that is cut is none: it was killed
            line: dict[str, Any] = json.loads(text)
            if "error" not in line:
                return line
            kind, what, fix, where = line["error"]
            raise getattr(errors, kind)(what, fix=fix, where=where)
        self.wait()
        return None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while (line := self.read()) is not None:
            yield line

    def give_turn(self) -> None:
        """Let it do one more piece of its job."""
        with contextlib.suppress(BrokenPipeError):  # it has ended: said by the next read
            self._input.write("\n")
            self._input.flush()

    def wait(self) -> None:
        """Until it ends. Raises ResourceError if that is not well, and not by `close`."""
        if (code := self._process.wait()) and not self._closed:
            raise ended(self._name, code, self._printed())

    def _printed(self) -> str:
        """The last of what it printed to standard error."""
        with contextlib.suppress(ValueError):  # closed: it was read then. No seek: the child's place would move too
            start = max(0, os.fstat(self._errors.fileno()).st_size - KEPT_BYTES)
            self._last = os.pread(self._errors.fileno(), KEPT_BYTES, start).decode(errors="replace")
        return self._last

    def close(self) -> None:
        """End it whatever it does; nothing where it has ended. It has nothing to save."""
        if os.getpid() != self._owner:  # a fork of the parent
            return
        if self._process.poll() is None:
            self._closed = True
            self._process.kill()
            self._process.wait()
        self._printed()
        for pipe in (self._input, self._output, self._errors):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def _unnamed_file() -> IO[bytes]:
    """A file for what is printed, always at its end; where there is no place for one, nothing is kept."""
    try:
        file = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
    except OSError:
        return open(os.devnull, "w+b")
    fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) | os.O_APPEND)  # also where it is cut meanwhile
    return file


def tell(line: Mapping[str, Any]) -> None:
    """The child's side: one line to the parent."""
    with open(_pipe(), "w", encoding="utf-8", closefd=False) as pipe:
        pipe.write(f"{json.dumps(line)}\n")


def _pipe() -> int:
    return int(sys.argv[1])


def wait_for_turn() -> None:
    """The child's side: until the parent gives a turn."""
    _turns.acquire()


def serve_parent(work: Callable[[dict[str, Any]], None]) -> None:
    """The child's side: do the job, tell of errors, end with the parent."""
    parent = os.getppid()
    os.set_inheritable(_pipe(), False)  # or a debugger that llama.cpp calls would hold it open
    job = json.loads(sys.stdin.readline() or "null")
    if job is None:
        return
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    try:
        work(job)
    except TunesmithError as error:
        tell({"error": [type(error).__name__, error.what, error.fix, error.where]})


def _end_with(parent: int) -> None:
    lifeline = sys.stdin.fileno()
    while os.getppid() == parent:
        ready, _, _ = select.select([lifeline], [], [], LOOK_EVERY_S)
        if ready:
            if not os.read(lifeline, 1):
                break
            _turns.release()
    os._exit(1)  # closing the engine waits for ever while a browser reads an answer (xllamacpp 2026.10.11549)
