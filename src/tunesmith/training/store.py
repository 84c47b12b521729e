"""A place for files, by URL: a folder, what fsspec knows (s3://, gs://, memory://, ...); hub_folder.py has the Hub.

A store raises what its library raises; `reason` says it in a line, without a credential. Names are those of files below
the store's root, with `/` between folders; hidden ones are none.
"""

import contextlib
import io
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Container, Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol, TypeVar

import fsspec

from tunesmith.boundary import why_unread, without_secrets
from tunesmith.errors import RecipeError, ResourceError, TunesmithError
from tunesmith.files import DRAFT, beside, bytes_of, flush, make_folder

Result = TypeVar("Result")
Source = bytes | Path
"""What is sent: bytes, or a file of this machine."""
CONNECT_S, READ_S = 10, 60
"""After which a connection, and an answer, that do not come are errors."""
OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl")
"""They have no folders, and their buckets are not ours to make."""
_S3 = {
    "use_listings_cache": False,  # others write there too
    "config_kwargs": {"connect_timeout": CONNECT_S, "read_timeout": READ_S, "retries": {"max_attempts": 2}},
}
_GCS = {"use_listings_cache": False, "requests_timeout": READ_S}
OPTIONS: dict[str, dict[str, Any]] = {"s3": _S3, "s3a": _S3, "gs": _GCS, "gcs": _GCS}
"""Protocol -> what its file system is opened with; credentials are found where its own tools find them."""
INSTALL = {
    **dict.fromkeys(("s3", "s3a"), "pip install 'tunesmith[s3]'"),
    **dict.fromkeys(("gs", "gcs"), "pip install 'tunesmith[gcs]'"),
}
READ_ONLY = ("http", "https", "data", "github", "zip", "tar")
FORMS = "a folder, file://, s3://BUCKET/..., gs://BUCKET/..., hf://datasets/USER/NAME, hf://USER/NAME@BRANCH"
LONGEST = 300
"""Letters of what a library says that are shown."""
SECRET_VARIABLES = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID")
_QUERY = re.compile(r"\?\S+")
"""Of an address in a message: signed addresses have their signature there."""


class Store(Protocol):
    """A place for files below one root."""

    place: str
    """What is said of where it is: no credential is in it."""
    pause_s: float
    """How long it wants to be left alone between two puts."""

    @property
    def folder(self) -> Path | None:
        """Where it is, if that is in this machine's folders."""

    def put(self, files: Mapping[str, Source], last: str, allowed: Callable[[], None], sent: set[str]) -> None:
        """Write files, `last` after all others and after `allowed`, which raises where that must not be.

        `sent`: what is there already, by an earlier call that failed; grows with what is written.
        """

    def read(self, name: str) -> bytes | None:
        """The bytes of a file as it is now; None if there is none."""

    def get(self, name: str, to: Path) -> None:
        """Fetch a file."""

    def names(self, under: str = "") -> list[str]:
        """Names of all files, or of those below a folder, sorted."""

    def delete(self, folders: Sequence[str], first: str, keep: Container[str] = ()) -> None:
        """Delete all below folders but what to `keep`, one after the other; in each the file named `first` first."""


class FileStore:
    """A store that fsspec opens."""

    pause_s = 0.0

    def __init__(self, url: str, name: str) -> None:
        """The folder `name` at a URL. Raises ResourceError for a package that is missing, RecipeError for what is no
        place to write to; nothing is asked yet.
        """
        self.place = said(f"{url.rstrip('/')}/{name}")
        self._url, self._name = url, name
        with contextlib.suppress(OSError):  # some connect as they are opened: that is tried again as they are used
            _ = self._opened

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """The file system, and the folder there that the URL names."""
        files, named = _opened(self._url, self.place)
        return files, named.rstrip("/")

    @property
    def _files(self) -> Any:
        return self._opened[0]

    @property
    def _named(self) -> str:
        return self._opened[1]

    @property
    def _root(self) -> str:
        return f"{self._named}/{self._name}"

    @property
    def _protocols(self) -> set[str]:
        protocol = self._files.protocol
        return {protocol} if isinstance(protocol, str) else {*protocol}

    @property
    def _is_local(self) -> bool:
        return "file" in self._protocols

    @property
    def folder(self) -> Path | None:
        """As Store's."""
        is_open = "_opened" in self.__dict__  # what could not be, as it is far away
        return Path(self._root).resolve() if is_open and self._is_local else None

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def put(self, files: Mapping[str, Source], last: str, allowed: Callable[[], None], sent: set[str]) -> None:
        """As Store's."""
        for name in [*(name for name in files if name != last), last]:
            if name == last:
                allowed()
            if name not in sent:
                self._write(name, files[name])
                sent.add(name)

    def _write(self, name: str, source: Source) -> None:
        """One file, complete or absent where the place can do that; where it cannot, digests tell."""
        path = self._path(name)
        if self._is_local:
            self._refuse_unmounted()
            return _write_local(Path(path), source)
        if not self._protocols & {*OBJECT_STORES}:
            self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
        if isinstance(source, bytes):
            self._files.pipe_file(path, source)
        else:
            self._files.put_file(str(source), path)
        return None

    def read(self, name: str) -> bytes | None:
        """As Store's."""
        try:
            return bytes(self._files.cat_file(self._path(name)))
        except FileNotFoundError:
            return None

    def get(self, name: str, to: Path) -> None:
        """As Store's."""
        self._files.get_file(self._path(name), str(to))

    def names(self, under: str = "") -> list[str]:
        """As Store's. A bucket that is not there is an error, and a folder in a folder that is not: of a drive that is
        not mounted.
        """
        if self._is_local:
            self._refuse_unmounted()
        self._files.invalidate_cache()
        start = self._path(under)
        try:
            found = self._files.find(start)
        except FileNotFoundError:
            if self._protocols & {*OBJECT_STORES}:
                raise
            return []
        names = (path.removeprefix(f"{self._root}/") for path in found if path.startswith(f"{start}/"))
        return sorted(name for name in names if is_plain(name))

    def _refuse_unmounted(self) -> None:
        """The folder that the URL names is made; nothing above that, which would be a drive's."""
        named = Path(self._named)
        if named.exists() and not named.is_dir():
            raise ResourceError(f"{named} is a file, where the mirror's folder is to be", fix="name another place")
        if not named.is_dir() and not named.parent.is_dir():
            fix = f"mount it, or make the folder {named.parent}"
            raise ResourceError(f"there is no folder {named.parent}: is its drive mounted?", fix=fix)

    def delete(self, folders: Sequence[str], first: str, keep: Container[str] = ()) -> None:
        """As Store's. What is gone already is no error: another may delete too."""
        for folder in folders:
            names = (name for name in self.names(folder) if name not in keep)
            for name in sorted(names, key=lambda name: name.rpartition("/")[2] != first):
                with contextlib.suppress(FileNotFoundError):
                    self._files.rm_file(self._path(name))
            if self._is_local:  # what a write that was killed has left
                for draft in Path(self._path(folder)).glob(f".*.{DRAFT}"):
                    draft.unlink(missing_ok=True)
            if not self._protocols & {*OBJECT_STORES}:
                with contextlib.suppress(OSError):  # something else is in it
                    self._files.rmdir(self._path(folder))


def is_plain(name: str) -> bool:
    """Whether a file's name is one of ours: nothing hidden, and no way out of the folder."""
    return not any(part.startswith(".") or not part for part in PurePosixPath(name).parts) and not name.startswith("/")


def _opened(url: str, place: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in it."""
    protocol, colon, _ = url.partition("://")
    if not colon:
        return fsspec.filesystem("file"), os.path.abspath(os.path.expanduser(url))
    if protocol in READ_ONLY:
        raise RecipeError(f"checkpoint.mirror: nothing can be written to {place}", fix=f"name {FORMS}")
    for library in ("gcsfs", "s3fs"):  # what fails is said by us, in a line
        logging.getLogger(library).setLevel(logging.CRITICAL)
    try:
        files, root = fsspec.core.url_to_fs(url, skip_instance_cache=True, **OPTIONS.get(protocol, {}))
    except ImportError as error:
        what = f"{protocol}:// needs a package that is not installed: {_short(error)}"
        install = INSTALL.get(protocol, "pip install the package that is named here")
        raise ResourceError(f"checkpoint.mirror: {what}", fix=f"{install}, or name another place") from error
    except ValueError as error:
        raise RecipeError(f"checkpoint.mirror: {place} is no place: {_short(error)}", fix=f"name {FORMS}") from error
    return files, root


def opened(source: Source) -> BinaryIO:
    """What is to be sent, as a file."""
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")


def _write_local(target: Path, source: Source) -> None:
    make_folder(target.parent)
    draft = beside(target, DRAFT)
    try:
        with opened(source) as content, draft.open("wb") as file:
            shutil.copyfileobj(content, file, 1 << 20)
        flush(draft)
        draft.replace(target)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
    flush(target.parent)


def within(limit_s: float, do: Callable[[], Result], growing: Path | None = None) -> Result:
    """What `do` returns, done in another thread. Raises TimeoutError where that takes longer, which then goes on alone.

    `growing`: a file or folder; the limit is for the time in which it does not grow.
    """
    found: list[Result] = []
    wrong: list[BaseException] = []
    done = threading.Event()

    def work() -> None:
        try:
            found.append(do())
        except BaseException as error:
            wrong.append(error)
        done.set()

    threading.Thread(target=work, daemon=True, name="tunesmith-store").start()
    size, since = -1, time.monotonic()
    while not done.wait(min(1.0, limit_s)):
        if growing is not None and (now := _size(growing)) != size:
            size, since = now, time.monotonic()
        if time.monotonic() - since >= limit_s:
            raise TimeoutError(f"no answer for {limit_s:.0f} s")
    if wrong:
        raise wrong[0]
    return found[0]


def _size(path: Path) -> int:
    try:
        return bytes_of(path)
    except OSError:  # a file was renamed while it was looked at
        return -1


def said(text: str) -> str:
    """A text of a library, or a URL, without what nobody may see."""
    return without_secrets(_QUERY.sub("?***", text), *map(os.environ.get, SECRET_VARIABLES))


def reason(error: BaseException) -> str:
    """Why a store did not do something, in a line."""
    if isinstance(error, TunesmithError):
        return error.what
    place = f" ({error.filename})" if isinstance(error, OSError) and isinstance(error.filename, str) else ""
    text = why_unread(error) if isinstance(error, Exception) else str(error)
    return said(f"{_short(text) or type(error).__name__}{place}")


def _short(text: object) -> str:
    """The first two lines that say something: of the Hub's errors the first is but a number."""
    lines = [" ".join(line.split()) for line in str(text).splitlines() if line.strip()]
    return "; ".join(lines[:2])[:LONGEST]
