"""Being told to stop: SIGTERM, SIGHUP, SIGUSR1, Ctrl+C, or train.stop_after. The state is saved and the same command
goes on.

Signals belong to whoever owns the process: the command line heeds them, a notebook that calls us keeps its own. A
thread of its own learns of one at once, through the descriptor that signal.set_wakeup_fd writes to, whatever the thread
that trains is computing: docs/decisions/0008-survival.md says why not by a mask.
"""

import contextlib
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from types import FrameType, TracebackType
from typing import Any

from tunesmith.console import say, warn
from tunesmith.values import cadence

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
"""The last is what Slurm sends before a time limit where it is asked to (sbatch --signal)."""
STEP_S = 5.0
"""How long the thread that trains has, once a signal came, to get to where the state is whole."""
LEAVE_S = 9.5
"""After a signal the process is gone within 10 s, saved or not."""
LAST_S = 1.0
"""What comes after the last checkpoint before the time of train.stop_after is up: the plot, the manifest, the end."""
_heeded = ContextVar("signals_heeded", default=0.0)
_anew = ContextVar("begun_anew", default=False)


@contextlib.contextmanager
def signals_heeded() -> Iterator[None]:
    """While this is entered, training takes a signal as the wish to stop after the state is saved; the time of
    train.stop_after counts from here.
    """
    token = _heeded.set(time.monotonic())
    try:
        yield
    finally:
        _heeded.reset(token)


@contextlib.contextmanager
def begun_anew(is_so: bool) -> Iterator[None]:
    """While this is entered, a training that stops says, where it `is_so`, that --fresh would delete it again."""
    token = _anew.set(is_so)
    try:
        yield
    finally:
        _anew.reset(token)


def goes_on() -> str:
    """What goes on with a training that stopped."""
    return "the same command goes on" + (", without --fresh, which would delete it again" if _anew.get() else "")


class Paused(Exception):  # noqa: N818 - not an error: the run goes on with the same command
    """Training stopped before its end, with a checkpoint."""

    def __init__(self, step: int, exit_code: int) -> None:
        super().__init__(f"paused at step {step}")
        self.step = step
        self.exit_code = exit_code
        """What a command ends with: 128 + signal, or 0 for stop_after."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.step, self.exit_code), self.__dict__


class StopRequested(Exception):  # noqa: N818 - not an error: it unwinds to the point where the state is whole
    """Raised between micro-batches once the process has been told to stop."""


class StopWatch:
    """Remembers a signal while it is entered, where signals are heeded; a second SIGINT ends the process at once.

    Where the thread that trains does not come by within STEP_S, `rescue` saves the state from beside it and the process
    ends. A signal that was ignored when we came (nohup ignores SIGHUP, a shell SIGINT for what it starts with &) stays
    so.
    """

    def __init__(self, stop_after: str | None) -> None:
        limit = cadence(stop_after) if stop_after else None
        self.steps_left = limit.steps if limit else None
        self._limit_s = limit.seconds if limit else None
        self._began_s = _heeded.get() or time.monotonic()
        self._stepped = False
        self.reserve_s = 0.0
        """What a checkpoint takes, within a step too."""
        self.signal = 0
        self._told_s = 0.0
        self.rescue: Callable[[], str] | None = None
        """Saves the state from another thread, and says where; None while there is no state that could be lost."""
        self.taken_over: Callable[[], str] = str
        """Which other machine goes on with the run; nothing while none does."""
        self._old: dict[signal.Signals, Any] = {}
        self._seen = threading.Event()
        """Set once the thread that trains has seen the signal: it saves the state itself."""
        self._left = threading.Event()

    def __enter__(self) -> "StopWatch":
        if not _heeded.get() or threading.current_thread() is not threading.main_thread():
            return self  # only the main thread may set handlers
        untouchable = (signal.SIG_IGN, None)  # None: set by something that is not Python, and could not be put back
        heard = [number for number in SIGNALS if signal.getsignal(number) not in untouchable]
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        self._old = {number: signal.signal(number, self._note) for number in heard}
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        if not self._old:
            return
        for number, handler in self._old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        self._write.close()  # which ends the thread
        self._thread.join()
        self._read.close()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or number  # the thread that listens may not have come to it yet

    def _listen(self) -> None:
        """Heed each signal as it comes; ends as the watch is left."""
        while came := self._read.recv(1):
            number = came[0]
            if number not in self._old:  # of another handler in this process
                continue
            if self.signal and number == signal.SIGINT and self._told_s:
                say("train: interrupted again; the run goes on from what is on disk")
                _end(number)
            self.signal = self.signal or number
            if not self._told_s:
                self._told_s = time.monotonic()
                threading.Thread(target=self._hurry, name="hurry", daemon=True).start()

    def _hurry(self) -> None:
        """See that the process ends in time, once it was told to."""
        if not self._seen.wait(STEP_S) and not self._left.is_set():
            if self.rescue is None:
                say(f"train: stopped before a step; {goes_on()}")
                _end(self.signal)
            threading.Thread(target=self._rescue, args=(self.rescue,), name="rescue", daemon=True).start()
        if not self._left.wait(max(0.0, self._told_s + LEAVE_S - time.monotonic())):
            warn(f"the state could not be written within {LEAVE_S:g} s; the run goes on from what is on disk")
            _end(self.signal)

    def _rescue(self, rescue: Callable[[], str]) -> None:
        try:
            saved = rescue()
        except Exception as error:
            warn(f"the state could not be saved: {error}")
        else:
            say(f"train: stopped within a long step, {saved} is saved; {goes_on()}")
        _end(self.signal)

    def check(self, ahead_s: float = 0.0) -> None:
        """Raise StopRequested if it is time to stop, or will be in `ahead_s`. Called where no update is half done."""
        limit_s = self._began_s + self._limit_s - LAST_S - self.reserve_s - ahead_s if self._limit_s else None
        late = limit_s is not None and self._stepped and time.monotonic() >= limit_s
        if late or self.steps_left == 0 or self.taken_over():
            raise StopRequested
        self.check_signal()

    def check_signal(self) -> None:
        """Raise StopRequested if a signal came, also where nothing is left to do: what comes next would not see it."""
        if self.signal:
            self._seen.set()
            raise StopRequested

    def step_done(self) -> None:
        """Count one optimizer step of this command: from the first on its time may be up."""
        self._stepped = True
        if self.steps_left is not None:
            self.steps_left -= 1

    @property
    def left_s(self) -> float:
        """How long what comes after the last checkpoint may take."""
        if not self._told_s:
            return math.inf
        return max(0.5, self._told_s + LEAVE_S - 1 - time.monotonic())

    @property
    def exit_code(self) -> int:
        """What the command ends with."""
        return 128 + self.signal if self.signal else 0


def _end(number: int) -> None:
    """End the process, which locks nothing and leaves nothing half there that the next start does not clear."""
    os._exit(128 + number)
