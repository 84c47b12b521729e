"""Things that are tried in a process of their own, so that a crash or a hang is a verdict and not the end of doctor.

The child's side tells, for each try, its name before it begins and what was found after it. Where the child dies, the
parent gives the verdict on the try that was at work, and starts another child for the rest.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tunesmith.boundary import without_secrets
from tunesmith.doctoring.finding import Finding, Group
from tunesmith.errors import TunesmithError
from tunesmith.inference.child import Child, serve_parent, tell
from tunesmith.machine import TRAINING_SPINS

START_LIMIT_S = 60.0  # to import torch on a slow disk
LIMIT_S = 30.0
LONGEST = 300  # letters of what a library says
INSTALL = "pip install 'tunesmith[train]'"
MISSING = ("ModuleNotFoundError", "ImportError")


@dataclass(frozen=True)
class Try:
    """One thing to try; known by its group and name."""

    group: Group
    name: str
    do: Callable[[], Finding]
    fix: str = ""
    """What to do where it crashes or does not end."""
    limit_s: float = LIMIT_S


def first_line(error: BaseException) -> str:
    """What an error says, in a line and without secrets."""
    text = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return without_secrets(text)[:LONGEST]


def serve(tries_for: Callable[[dict[str, Any]], Iterable[Try]]) -> None:
    """The child's side: do each of the tries but those that job["done"] names."""

    def work(job: dict[str, Any]) -> None:
        for each in tries_for(job):
            if [each.group, each.name] in job["done"]:
                continue
            tell({"trying": [each.group, each.name], "fix": each.fix, "limit_s": each.limit_s})
            tell({"found": asdict(_found(each))})
        tell({"all": True})
        os._exit(0)  # all is told, and what torch does as it ends takes a second

    serve_parent(work)


def _found(each: Try) -> Finding:
    """What a try finds; an error that it raises is what lacks, with the fix where that is known."""
    try:
        return each.do()
    except TunesmithError as error:
        return Finding(each.group, each.name, "lacks", without_secrets(error.what), without_secrets(error.fix))
    except Exception as error:  # of any library: it does not work here, and doctor goes on
        return Finding(each.group, each.name, "lacks", first_line(error), each.fix)


def tried(module: str, job: Mapping[str, Any], unstarted: Try, start_limit_s: float = START_LIMIT_S) -> list[Finding]:
    """What the tries of `python -m module` find. `unstarted`: whose verdict it is where the child cannot begin."""
    return list(each_tried(module, job, unstarted, start_limit_s))


def each_tried(
    module: str, job: Mapping[str, Any], unstarted: Try, start_limit_s: float = START_LIMIT_S
) -> Iterator[Finding]:
    """The same, one by one, as they are found."""
    done: list[list[str]] = []
    while True:
        watched = _Watched(module, {**job, "done": done}, start_limit_s)
        with contextlib.closing(watched):
            for line in watched:
                if "found" in line:
                    done.append([line["found"]["group"], line["found"]["name"]])
                    yield Finding(**line["found"])
            if watched.ended_well:
                return
            end = watched.end(unstarted)
        yield end
        if watched.trying is None or [end.group, end.name] in done:
            return
        done.append([end.group, end.name])


class _Watched:
    """A child whose every line has a time limit; it is killed, with all that it started, where that is over."""

    def __init__(self, module: str, job: Mapping[str, Any], start_limit_s: float) -> None:
        self._child = Child(module, job, module, TRAINING_SPINS)
        self._limit_s, self._late = start_limit_s, False
        self.trying: dict[str, Any] | None = None
        self._error: TunesmithError | None = None
        self.ended_well = False  # until it has said that all was tried: one that leaves with 0 has not

    def __iter__(self) -> Iterator[dict[str, Any]]:
        try:
            while (line := self._read()) is not None:
                self.trying = line if "trying" in line else None
                self._limit_s = line.get("limit_s", self._limit_s)
                self.ended_well = self.ended_well or "all" in line
                yield line
        except TunesmithError as error:
            self._error = error

    def _read(self) -> dict[str, Any] | None:
        clock = threading.Timer(self._limit_s, self._end_it)
        clock.daemon = True
        clock.start()
        try:
            return self._child.read()
        finally:
            clock.cancel()

    def _end_it(self) -> None:
        self._late = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)  # a session of its own: torch's compiler starts processes too

    def end(self, unstarted: Try) -> Finding:
        """The verdict on what was tried as the child died, or on `unstarted` where nothing was."""
        group, name = self.trying["trying"] if self.trying else (unstarted.group, unstarted.name)
        fix = (self.trying or {}).get("fix") or unstarted.fix
        notes = getattr(self._error, "__notes__", [""])
        printed = notes[0].strip().rpartition("\n")[2].strip()
        code = self._child.code
        if self._late:
            return Finding(group, name, "crashed", f"did not end within {self._limit_s:g} s", fix)
        if self.trying is None and printed.startswith(MISSING):
            said = without_secrets(printed.partition(": ")[2])[:LONGEST]
            return Finding(group, name, "lacks", f"cannot be loaded: {said}", INSTALL)
        number = -(code or 0)
        how = f"signal {number}, {signal.strsignal(number)}" if number > 0 else f"exit code {code}"
        last = f": {without_secrets(printed)[:LONGEST]}" if printed and number != signal.SIGKILL else ""
        return Finding(group, name, "crashed", f"the process died ({how}){last}", fix)

    def close(self) -> None:
        """End the child, whatever it does."""
        self._child.close()
