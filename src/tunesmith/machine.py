"""The machine: disk, memory, processor, versions. Limits of containers count; nothing here imports torch."""

import contextlib
import ctypes
import math
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from tunesmith import __version__
from tunesmith.boundary import ANOTHER_CACHE, ANOTHER_RUN_DIR, of_cache
from tunesmith.errors import ResourceError

VERSIONED = ("torch", "transformers", "tokenizers", "gguf", "xllamacpp", "numpy", "pyarrow")
GPU_NAMES = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
CGROUPS = Path("/sys/fs/cgroup")
GIVEN_BACK = ("inactive_file", "active_file")  # page cache: a GGUF that was mapped before would count twice
TRAINING_SPINS, ANSWERING_SPINS = 5000, 1000
"""How often a thread looks whether the others are done before it sleeps (libgomp's GOMP_SPINCOUNT), for torch and for
llama.cpp. libgomp's own, some hundred thousand times, is no faster on two free cores, and beside two busy processes
takes 1.5 (training) and 3 times (answers) as long, now and then a hundred times: docs/log.md. Sleeping at once, which
OMP_WAIT_POLICY=PASSIVE asks for, makes answers three times slower on free cores."""
M_MMAP_THRESHOLD = -3  # its number in malloc.h of glibc


def spinning(spins: int) -> dict[str, str]:
    """What the environment needs to say so that threads spin so often; nothing where the user has said how they wait.

    Read by libgomp as it is loaded: set it before torch or llama.cpp is.
    """
    said = os.environ.get("GOMP_SPINCOUNT", str(TRAINING_SPINS)) != str(TRAINING_SPINS)
    return {} if said or "OMP_WAIT_POLICY" in os.environ else {"GOMP_SPINCOUNT": str(spins)}


def disk_of(folder: Path) -> Path:
    """The folder itself, or the nearest above it that is there."""
    return next(p for p in [folder, *folder.resolve().parents] if p.exists())


def need_disk(folder: Path, needed_bytes: int, purpose: str, fix: str = "") -> None:
    """Raise ResourceError before work starts if its files would not fit. `fix`: where there is more to say."""
    place = disk_of(folder)
    free_bytes = shutil.disk_usage(place).free
    if free_bytes < needed_bytes:
        kept = of_cache(folder)
        raise ResourceError(
            f"{purpose} needs {needed_bytes / 1e9:.1f} GB of disk, {free_bytes / 1e9:.1f} GB are free"
            f"{kept and f'; {kept}'}",
            fix=fix or f"free some space, or {ANOTHER_CACHE if kept else ANOTHER_RUN_DIR}",
            where=str(place),
        )


def need_utf8(path: Path) -> None:
    """Raise ResourceError for a name that is no text: llama.cpp cannot open it, and no recipe can keep it."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        name = str(path).encode(errors="backslashreplace").decode()
        fix = "rename it; a run can also be elsewhere, with --run-dir"
        raise ResourceError(f"{name} is no name in UTF-8, which recipes and llama.cpp need", fix=fix) from error


def usable_cores() -> int:
    """Processor cores that this process may use, or what its container gives it if that is less.

    Containers: cgroup v2 cpu.max, microseconds of each period (Linux, Documentation/admin-guide/cgroup-v2.rst).
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder, _, _ in _cgroup_files():
        with contextlib.suppress(OSError, ValueError):
            share, period = map(int, (folder / "cpu.max").read_text().split())  # "max" is no number: no limit
            cores = min(cores, math.ceil(share / period))
    return cores


def free_memory_bytes() -> int:
    """Memory that this process can take without swapping: what the machine has free, or its container if that is less.

    Containers: cgroup v2 memory.max and memory.current (Linux, Documentation/admin-guide/cgroup-v2.rst), and v1's
    memory.limit_in_bytes; page cache that can be given back is not counted as used.
    """
    return min(_machine_free_bytes(), *_container_free_bytes())


def _machine_free_bytes() -> int:
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable")))
    with contextlib.suppress(OSError, ValueError):  # macOS has no count of free pages here; half of all is a guess
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return 1 << 62


def _container_free_bytes() -> list[int]:
    """What each limit above this process leaves; at least one number, large where there is no limit."""
    found = [1 << 62]
    for folder, limit, used in _cgroup_files():
        with contextlib.suppress(OSError, ValueError):
            said = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            cache = sum(int(said.get(f"total_{name}", said.get(name, 0))) for name in GIVEN_BACK)
            used_bytes = int((folder / used).read_text()) - cache
            found.append(max(0, int((folder / limit).read_text()) - used_bytes))  # "max" is no number: no limit
    return found


def group_limits() -> list[tuple[Path, str]]:
    """(folder, file of the memory limit) of this process's control groups, innermost first."""
    return [(folder, limit) for folder, limit, _ in _cgroup_files()]


def _cgroup_files() -> list[tuple[Path, str, str]]:
    """(folder, file of the limit, file of the use) of this process's control groups, innermost first."""
    found = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            root, limit, used = CGROUPS, "memory.max", "memory.current"
            if controllers == "memory":
                root, limit, used = CGROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            elif controllers:
                continue
            inner = root / path.lstrip("/")
            found += [(folder, limit, used) for folder in (inner, *inner.parents) if folder.is_relative_to(root)]
    return found


def peak_memory_bytes() -> int:
    """Largest resident memory of this process so far."""
    with contextlib.suppress(OSError):  # on Linux getrusage also counts what the parent had before this one started
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        if found:
            return 1024 * int(found[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # bytes on macOS, KiB elsewhere


def peak_memory_of(pid: int) -> int | None:
    """The largest resident memory of a process and of those that it has started, summed; None where /proc is not."""
    parents: dict[int, int] = {}
    with contextlib.suppress(OSError):
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError, ValueError, IndexError):  # it ended meanwhile
                parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    family, peak = {pid}, 0
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    for each in family:
        with contextlib.suppress(OSError):
            found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{each}/status").read_text())
            peak += 1024 * int(found[1]) if found else 0
    return peak or None


def give_back_what_is_freed() -> None:
    """From now on, memory of 1 MB and more goes back to the system as soon as it is freed, where libc is glibc.

    It keeps up to 32 MB each for later otherwise (mallopt(3), M_MMAP_THRESHOLD), and where sizes vary the holes between
    them add up: 0.9 GB in ten layers of Llama 3.2 3B's shape.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another libc
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 20)


def processor() -> str:
    """Name of this machine's processor: speeds of two processors are not compared."""
    with contextlib.suppress(OSError):
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def gpu() -> str | None:
    """Name of the first NVIDIA GPU, as its driver has it; None where there is none, or torch could not use it."""
    try:
        said = subprocess.run(GPU_NAMES, capture_output=True, text=True, check=False, timeout=10).stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired):
        return None
    return said[0].strip() if said and os.environ.get("CUDA_VISIBLE_DEVICES", "0") not in ("", "-1") else None


def training_device() -> str:
    """What trains on this machine, as the records of training name it."""
    return gpu() or f"CPU {processor()}"


def versions() -> dict[str, str]:
    """Versions of the packages that can change a result."""
    found = {"tunesmith": __version__}  # not the installed metadata's, which an editable install leaves behind
    for name in VERSIONED:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
