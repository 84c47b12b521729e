"""Being told to stop: SIGTERM, Ctrl+C, or train.stop_after. The state is saved and the same command goes on."""

import signal
import time
from types import FrameType, TracebackType

from tunesmith.recipe import cadence


class Paused(Exception):  # noqa: N818 - not an error: the run goes on with the same command
    """Training stopped before its end, with a checkpoint."""

    def __init__(self, step: int, exit_code: int) -> None:
        super().__init__(f"paused at step {step}")
        self.step = step
        self.exit_code = exit_code
        """What a command ends with: 128 + signal, or 0 for stop_after."""


class StopRequested(Exception):  # noqa: N818 - not an error: it unwinds to the point where the state is whole
    """Raised between micro-batches once the process has been told to stop."""


class StopWatch:
    """Remembers SIGTERM and SIGINT while it is entered; a second SIGINT acts at once."""

    def __init__(self, stop_after: str | None) -> None:
        limit = cadence(stop_after) if stop_after else None
        self.steps_left = limit.steps if limit else None
        self.deadline_s = time.monotonic() + limit.seconds if limit and limit.seconds else None
        self.signal = 0

    def __enter__(self) -> "StopWatch":
        self._old = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
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

    def step_done(self) -> None:
        """Count one optimizer step of this command."""
        if self.steps_left is not None:
            self.steps_left -= 1

    @property
    def exit_code(self) -> int:
        """What the command ends with."""
        return 128 + self.signal if self.signal else 0
