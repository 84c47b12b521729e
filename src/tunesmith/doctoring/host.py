"""What is known of this machine at once: versions against what tunesmith needs, processor, memory, GPUs."""

import contextlib
import os
import platform
import re
import subprocess
from collections.abc import Iterator
from importlib import metadata

from tunesmith import __version__, machine
from tunesmith.doctoring.finding import Finding
from tunesmith.doctoring.tries import INSTALL

SHOWN = ("torch", "transformers", "tokenizers", "huggingface_hub", "xllamacpp", "gguf", "numpy")
"""Packages whose versions are named; the others only where they lack something."""
NEED = re.compile(r"""([\w.-]+)>=([\d.]+)(?:\s*;\s*extra\s*==\s*['"](\w+)['"])?""")
GPUS = [
    "nvidia-smi", "--query-gpu=name,memory.total,memory.free,compute_cap,driver_version",
    "--format=csv,noheader,nounits",
]  # fmt: skip
LOW_MEMORY = 3.2e9  # what training the built-in base takes at its peak (benchmarks/RESULTS.md)
OLDEST_GPU = (7, 5)  # a T4; README.md, "Platforms"


def host() -> Iterator[Finding]:
    """Findings that take no time to make, and nothing that can crash."""
    yield Finding("machine", "tunesmith", "ok", f"{__version__}, Python {platform.python_version()}, {_system()}")
    yield from packages()
    cores, allowed = os.cpu_count() or 1, machine.usable_cores()
    share = f"{allowed} core{'s' * (allowed != 1)}" + (f" of {cores} may be used" if allowed < cores else "")
    yield Finding("machine", "processor", "ok", f"{machine.processor()}, {share}", facts={"cores": allowed})
    yield _memory()
    yield from _gpus()


def _system() -> str:
    libc = " ".join(platform.libc_ver()).strip()
    return ", ".join(part for part in (f"{platform.system()} {platform.machine()}", libc) if part)


def packages() -> Iterator[Finding]:
    """Installed versions against the ranges that tunesmith's own metadata states."""
    try:
        needs = [NEED.match(text) for text in metadata.requires("tunesmith") or []]
    except metadata.PackageNotFoundError:
        says = "tunesmith is run from its source and not installed, so that nothing says which versions it needs"
        yield Finding("machine", "packages", "note", says, "pip install -e . in its folder")
        return
    found, absent, bad = dict[str, str](), list[str](), list[Finding]()
    for name, least, extra in (need.groups() for need in needs if need):
        if extra not in (None, "train"):
            continue
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            absent.append(name)
            continue
        if _release(found[name]) < _release(least):
            says = f"{found[name]} is installed, and {least} or newer is needed"
            bad.append(Finding("machine", name, "lacks", says, f"pip install '{name}>={least}'"))
    shown = ", ".join(f"{name} {found[name]}" for name in SHOWN if name in found)
    more = len([name for name in found if name not in SHOWN])
    enough = "" if absent or bad else "; all as needed"
    says = f"{shown} and {more} more{enough}"
    yield Finding("machine", "packages", "ok", says, facts={"versions": found})
    yield from bad
    if absent:
        yield Finding("machine", "missing", "lacks", f"not installed: {', '.join(absent)}", INSTALL)


def _release(version: str) -> list[int]:
    """The numbers that a version begins with, without zeros at the end: 2.13.0+cpu is [2, 13]."""
    begins = re.match(r"[\d.]*", version)
    numbers = [int(part) for part in re.findall(r"\d+", begins[0] if begins else "")]
    while numbers and not numbers[-1]:
        numbers.pop()
    return numbers


def _memory() -> Finding:
    free = machine.free_memory_bytes()
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    most = total
    for folder, limit in machine.group_limits():
        with contextlib.suppress(OSError, ValueError):
            most = min(most, int((folder / limit).read_text()))  # "max" is no number: no limit
    limited = ", the limit of its container" if most < total else ""
    facts = {"free_bytes": free, "total_bytes": most}
    says = f"{free / 1e9:.1f} GB free of {most / 1e9:.1f} GB{limited}"
    if free < LOW_MEMORY:
        return Finding("machine", "memory", "note", f"{says}: little to train with", "end other programs", facts)
    return Finding("machine", "memory", "ok", says, facts=facts)


def _gpus() -> Iterator[Finding]:
    """Each GPU as its driver has it: torch, which could crash, is tried elsewhere."""
    listed = _driver_says()
    if not listed:
        yield Finding("machine", "GPU", "note", "no NVIDIA GPU: training runs on the processor")
        return
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1")
    for number, line in enumerate(listed):
        name, total, free, capability, driver = [part.strip() for part in line.split(",")][:5]
        says = f"{name}, {_gigabytes(free)} GB free of {_gigabytes(total)} GB, compute capability {capability}"
        facts = {"name": name, "free_mib": free, "total_mib": total, "compute_capability": capability}
        old = re.fullmatch(r"(\d+)\.(\d+)", capability)
        says, fix = f"{says}, driver {driver}", ""
        if hidden:
            says, fix = f"{says}; CUDA_VISIBLE_DEVICES hides it", "unset CUDA_VISIBLE_DEVICES to train on it"
        elif old and tuple(map(int, old.groups())) < OLDEST_GPU:
            says, fix = f"{says}; it is older than what tunesmith is made for (7.5)", "train on the processor"
        yield Finding("machine", f"GPU {number}", "note" if fix else "ok", says, fix, facts)
    if len(listed) > 1:
        yield Finding("machine", "GPUs", "note", f"one of the {len(listed)} is used")


def _gigabytes(mebibytes: str) -> str:
    return f"{int(mebibytes) * 2**20 / 1e9:.1f}" if mebibytes.isdigit() else "?"


def _driver_says() -> list[str]:
    try:
        done = subprocess.run(GPUS, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line for line in done.stdout.splitlines() if line.count(",") >= 4] if not done.returncode else []
