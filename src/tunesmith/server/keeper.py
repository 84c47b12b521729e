"""The engine in a process of its own, started again where it dies; the front goes on and says so meanwhile."""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.errors import ResourceError, TunesmithError
from tunesmith.inference.child import Child

MODULE = "tunesmith.inference.serving"
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 10.0  # before it is started again: at once, then twice as long each time
MOST_DEATHS, WITHIN_S = 5, 120.0  # a model that kills it again and again is no accident


@dataclass(frozen=True)
class Reached:
    """Where an engine answers."""

    url: str
    headers: Mapping[str, str]


class Keeper:
    """Keeps one engine alive. `engine` is where it answers; None while it does not."""

    def __init__(
        self, job: Mapping[str, Any], on_event: Callable[[str], None], on_end: Callable[[], None], *,
        patient: bool = False,
    ) -> None:  # fmt: skip
        """Start it, and wait until it answers. `on_event` gets what the user should know, `on_end` tells the end of it.
        `patient`: it is given up only where it does not start any more, since one of many who ask may be to blame, and
        the others should find it again.

        Raises what the engine raises on its first start.
        """
        self._job, self._on_event, self._on_end, self._patient = job, on_event, on_end, patient
        self._deaths = deque[float](maxlen=MOST_DEATHS)
        self.restarts = self._failed_starts = 0
        self.reason: TunesmithError | None = None
        """Why it was given up; None: it was not."""
        self.engine: Reached | None = None
        self.first = self._start()
        """What the engine told of itself on its first start."""
        threading.Thread(target=self._keep, daemon=True).start()

    def _start(self) -> dict[str, Any]:
        self._child = Child(MODULE, self._job, self._job["alias"])
        try:
            told = self._child.read()
        except BaseException:
            self._child.close()
            raise
        assert told is not None, "an engine ends only with its parent"
        self.engine = Reached(told["url"], {"Authorization": f"Bearer {told['key']}"})
        return told

    def _keep(self) -> None:
        while True:
            why: TunesmithError | None = self._ended()
            while why:
                self.engine = None
                self._child.close()
                self._deaths.append(time.monotonic())
                if self._is_hopeless() and (not self._patient or self._failed_starts >= MOST_DEATHS):
                    self._give_up(why)
                    return
                self._on_event(f"{why.what}; it is started again")
                time.sleep(min(LONGEST_WAIT_S, FIRST_WAIT_S * 4 ** (len(self._deaths) - 1)))
                why = self._started_again()

    def _is_hopeless(self) -> bool:
        return len(self._deaths) == MOST_DEATHS and self._deaths[-1] - self._deaths[0] < WITHIN_S

    def _ended(self) -> TunesmithError:
        """Wait until it ends, and why it did: nobody else closes it."""
        try:
            self._child.wait()
        except ResourceError as error:
            return error
        return ResourceError("the engine ended by itself", fix="start the chat again")

    def _started_again(self) -> TunesmithError | None:
        try:
            self._start()
        except TunesmithError as error:
            self._failed_starts += 1
            return error
        self.restarts += 1
        self._failed_starts = 0
        self._on_event("the engine answers again")
        return None

    def _give_up(self, why: TunesmithError) -> None:
        what = f"the engine ended {MOST_DEATHS} times within {WITHIN_S:.0f} s, the last time so: {why.what}"
        self.reason = ResourceError(what, fix=why.fix)
        self._on_end()
