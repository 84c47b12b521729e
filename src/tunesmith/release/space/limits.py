"""What a free Space has, as far as it can be had here: another user, two cores, 16 GB of memory."""

import contextlib
import ctypes
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import ResourceError
from tunesmith.machine import group_limits

CORES, MEMORY_BYTES = 2, 16 << 30
GROUP = "tunesmith-space-"
PR_SET_PDEATHSIG = 1  # its number in linux/prctl.h

GUARD = """\
end() { trap : TERM; kill -TERM 0; (trap "" TERM; sleep GRACE_S; kill -KILL 0) & wait $program; kill -KILL 0; }
trap end TERM
"$@" & program=$!
wait $program"""
"""What is started has GRACE_S to end in."""
GRACE_S = 5  # seconds; a container has ten


@dataclass(frozen=True)
class Limits:
    """How a process is started so, and in words what could be had."""

    start: Mapping[str, Any]
    """Arguments of subprocess.Popen."""
    says: str


def as_user(uid: int) -> dict[str, Any]:
    """Arguments of subprocess.Popen for another user; none where we are not root."""
    return {"user": uid, "group": uid, "extra_groups": []} if os.geteuid() == 0 else {}


@contextlib.contextmanager
def limits(uid: int) -> Iterator[Limits]:
    """Those of a Space for the processes that are started with them; the group of the memory limit ends with the block.

    Another user only where we are root; a group of processes (cgroup) only where the system lets us make one, else
    the address space of each process is limited, which holds more than its memory.
    """
    root = os.geteuid() == 0
    cores = sorted(os.sched_getaffinity(0))[:CORES] if hasattr(os, "sched_getaffinity") else []
    with _group() as members:
        said = [f"user {uid}" if root else f"your own user {os.geteuid()}, since only root can start another one"]
        said.append(f"{len(cores)} core{'s' * (len(cores) != 1)}" if cores else "all cores")
        said.append("16 GB of memory" if members is not None else "16 GB of address space for each process")
        yield Limits(as_user(uid) | {"preexec_fn": _limiter(cores, members)}, ", ".join(said))


def is_running(number: str) -> bool:
    """Whether there is a process of this number, of any user."""
    try:
        os.kill(int(number), 0)
    except (ProcessLookupError, ValueError):
        return False
    except (OSError, OverflowError):
        return True
    return True


def guarded(words: Sequence[str]) -> list[str]:
    """A command to be started in a session of its own: told to end, it ends with all that it has started.

    What a shell of a step starts would go on where the shell alone is ended.
    """
    return ["sh", "-c", GUARD.replace("GRACE_S", str(GRACE_S)), "sh", *words]


def _limiter(cores: list[int], members: int | None) -> Callable[[], None]:
    """What a new process does before its program begins."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)  # Linux alone has it

    def limit() -> None:
        if prctl:
            prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # where we were killed, `guarded` ends what goes on
        if cores:
            os.sched_setaffinity(0, cores)
        if members is not None:
            os.write(members, b"0")  # itself, and with it all that it starts
        else:
            _, most = resource.getrlimit(resource.RLIMIT_AS)
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, most))

    return limit


@contextlib.contextmanager
def _group() -> Iterator[int | None]:
    """The open list of members of a new control group with the memory limit; None where none can be made."""
    for folder, limit in group_limits():
        for left in folder.glob(f"{GROUP}*"):
            if not is_running(left.name.removeprefix(GROUP)):  # of a command that was killed
                _remove(left)
        group = folder / f"{GROUP}{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / limit).write_text(str(MEMORY_BYTES))
            members = os.open(group / "cgroup.procs", os.O_WRONLY)
        except OSError:
            _remove(group)
            continue
        try:
            yield members
        finally:
            os.close(members)
            _remove(group)
        return
    yield None


def _remove(group: Path) -> None:
    with contextlib.suppress(OSError):
        group.rmdir()  # its files are the system's own; one whose last process has just ended may be busy


def python_for(version: str, uid: int, found: list[str]) -> str:
    """The first of some interpreters that is Python of this version, and that the user may run and make a venv with.

    Raises ResourceError where there is none.
    """
    test = f"import sys, venv, ensurepip; sys.exit('%d.%d' % sys.version_info[:2] != '{version}')"
    for path in filter(None, map(shutil.which, found)):
        with contextlib.suppress(OSError):
            if (
                subprocess.run(
                    [path, "-I", "-c", test], capture_output=True, cwd="/", check=False, **as_user(uid)
                ).returncode
                == 0
            ):
                return path
    what = f"no Python {version} here can be run by user {uid} and make a venv"
    raise ResourceError(what, fix=f"install it for all users, as with apt-get install python{version}-venv")
