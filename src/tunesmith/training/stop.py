"""Being told to stop: SIGTERM, SIGHUP, Ctrl+C, or train.stop_after. The state is saved and the same command goes on.

Signals belong to whoever owns the process: the command line heeds them, a notebook that calls us keeps its own.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar
from types import FrameType, TracebackType
from typing import Any

from tunesmith.values import cadence

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_heeded = ContextVar("signals_heeded", default=False)
_anew = ContextVar("begun_anew", default=False)


@contextlib.contextmanager
def signals_heeded() -> Iterator[None]:
    """While this is entered, training takes a signal as the wish to stop after the state is saved."""
    token = _heeded.set(True)
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
    """Remembers a signal while it is entered, where signals are heeded; a second SIGINT acts at once.

    A signal that was ignored when we came (nohup ignores SIGHUP, a shell SIGINT for what it starts with &) stays so.
    """

    def __init__(self, stop_after: str | None) -> None:
        limit = cadence(stop_after) if stop_after else None
        self.steps_left = limit.steps if limit else None
        self.deadline_s = time.monotonic() + limit.seconds if limit and limit.seconds else None
        self.signal = 0

    def __enter__(self) -> "StopWatch":
        ours = _heeded.get() and threading.current_thread() is threading.main_thread()  # others may not set handlers
        untouchable = (signal.SIG_IGN, None)  # None: set by something that is not Python, and could not be put back
        heard = [number for number in SIGNALS if ours and signal.getsignal(number) not in untouchable]
        self._old = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def check(self) -> None:
        """Raise StopRequested if it is time to stop. Called where no update is half done."""
        if self.signal or (self.deadline_s is not None and time.monotonic() >= self.deadline_s) or self.steps_left == 0:
            raise StopRequested

    def check_signal(self) -> None:
        """Raise StopRequested if a signal came, also where nothing is left to do: what comes next would not see it."""
        if self.signal:
            raise StopRequested

    def step_done(self) -> None:
        """Count one optimizer step of this command."""
        if self.steps_left is not None:
            self.steps_left -= 1

    @property
    def exit_code(self) -> int:
        """What the command ends with."""
        return 128 + self.signal if self.signal else 0
