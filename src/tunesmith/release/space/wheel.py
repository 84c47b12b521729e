"""A wheel of the tunesmith that runs here, and the exact versions of what it needs to serve.

Written without a build tool or network, so that a tunesmith that was installed with pip can do it as well as a
checkout. The layout is that of PyPA's binary distribution format (PEP 427); the same files give the same bytes.
"""

import base64
import hashlib
import io
import re
import tomllib
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from tunesmith import __version__
from tunesmith.errors import ResourceError

NAME = "tunesmith"
PACKAGE = Path(__file__).parents[2]
FILE = f"{NAME}-{__version__}-py3-none-any.whl"
INFO = f"{NAME}-{__version__}.dist-info"
LEFT_OUT = re.compile(r"__pycache__|\..*|.*~|.*\.(?:pyc|pyo|orig|rej)")
NEED = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[([^\]]*)\])?")
EXTRA = re.compile(r"""extra\s*==\s*['"]([^'"]+)['"]""")
INSTALL = "pip install --force-reinstall tunesmith, or in a checkout pip install -e ."


@dataclass(frozen=True)
class Declared:
    """What tunesmith says of itself to installers."""

    summary: str
    python: str
    needs: list[str]
    """Lines as Requires-Dist has them."""
    licence: bytes


def declared() -> Declared:
    """Of the checkout that runs, else of the installed package: an editable install's own metadata may be older.

    Raises ResourceError where there is neither.
    """
    root = PACKAGE.parents[1]
    if (root / "pyproject.toml").is_file():
        project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8")).get("project", {})
        if project.get("name") == NAME:
            needs, text = list(_needs(project)), (root / "LICENSE").read_bytes()
            return Declared(project["description"], project["requires-python"], needs, text)
    try:
        found = metadata.distribution(NAME)
    except metadata.PackageNotFoundError as error:
        what = f"{PACKAGE} is no installed package and no checkout, so no wheel can be made of it"
        raise ResourceError(what, fix=INSTALL) from error
    licences = [file for file in found.files or () if file.name == "LICENSE" and INFO in file.parts]
    if not licences:
        raise ResourceError(f"the installed {NAME} has no LICENSE, which its wheel must carry", fix=INSTALL)
    licence = Path(str(found.locate_file(licences[0]))).read_bytes()
    return Declared(found.metadata["Summary"], found.metadata["Requires-Python"], found.requires or [], licence)


def _needs(project: dict[str, Any]) -> Iterator[str]:
    """Lines of pyproject.toml as Requires-Dist has them."""
    yield from project["dependencies"]
    for extra, needs in project["optional-dependencies"].items():
        for need in needs:
            name, _, marker = need.partition(";")
            yield f"{name.strip()}; " + (f"({marker.strip()}) and " if marker else "") + f'extra == "{extra}"'


def wheel() -> bytes:
    """The wheel's bytes."""
    files = [(f"{NAME}/{path.relative_to(PACKAGE).as_posix()}", path.read_bytes()) for path in _package_files()]
    said = declared()
    files += [(f"{INFO}/{name}", text) for name, text in _info_files(said)]
    lines = [f"{name},sha256={_digest(content)},{len(content)}" for name, content in files]
    record = "\n".join([*lines, f"{INFO}/RECORD,,", ""]).encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in [*files, (f"{INFO}/RECORD", record)]:
            entry = zipfile.ZipInfo(name)  # its time is 1980-01-01: no clock decides the bytes
            entry.external_attr, entry.compress_type = 0o100644 << 16, zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return packed.getvalue()


def _package_files() -> list[Path]:
    files = (path for path in sorted(PACKAGE.rglob("*")) if path.is_file())
    return [path for path in files if not any(map(LEFT_OUT.fullmatch, path.relative_to(PACKAGE).parts))]


def _info_files(said: Declared) -> Iterator[tuple[str, bytes]]:
    extras = sorted({extra for need in said.needs for extra in EXTRA.findall(need)})
    lines = [
        "Metadata-Version: 2.4", f"Name: {NAME}", f"Version: {__version__}", f"Summary: {said.summary}",
        "License-Expression: Apache-2.0", "License-File: LICENSE", f"Requires-Python: {said.python}",
        *(f"Requires-Dist: {need}" for need in said.needs), *(f"Provides-Extra: {extra}" for extra in extras), "",
    ]  # fmt: skip
    yield "METADATA", "\n".join(lines).encode()
    yield (
        "WHEEL",
        f"Wheel-Version: 1.0\nGenerator: {NAME} ({__version__})\nRoot-Is-Purelib: true\nTag: py3-none-any\n".encode(),
    )
    yield "entry_points.txt", f"[console_scripts]\n{NAME} = {NAME}.cli:main\n".encode()
    yield "licenses/LICENSE", said.licence


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def pinned() -> list[str]:
    """`name==version` of every package that serving needs, without any extra of tunesmith's, as it is installed here.

    What a condition asks for, such as another system, counts where it is installed. Raises ResourceError for a
    package that is needed and is not there.
    """
    found: dict[str, str] = {}
    _follow(declared().needs, (), found, set())
    return [f"{name}=={found[name]}" for name in sorted(found)]


def _follow(needs: Iterable[str], extras: Sequence[str], found: dict[str, str], seen: set[str]) -> None:
    """Add to `found` what these lines ask for, and what that needs in turn."""
    for need in needs:
        text, _, marker = need.partition(";")
        asked = EXTRA.findall(marker)
        match = NEED.match(text)
        if match is None or (asked and not set(asked) & set(extras)):
            continue
        name, more = re.sub(r"[-_.]+", "-", match[1]).lower(), [part.strip() for part in (match[2] or "").split(",")]
        if (key := f"{name}[{','.join(more)}]") in seen:
            continue
        seen.add(key)
        try:
            installed = metadata.distribution(name)
        except metadata.PackageNotFoundError as error:
            if marker and not asked:  # for another system or version of Python
                continue
            raise ResourceError(f"{name} is not installed, and a chat needs it", fix=INSTALL) from error
        found[name] = installed.version
        _follow(installed.requires or (), more, found, seen)
