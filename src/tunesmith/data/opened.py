"""A file's bytes in order, unpacked where its name says that it is compressed; never more than a part of it is held."""

import io
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from shutil import copyfileobj
from typing import IO

import pyarrow

from tunesmith.data_files import kind_of

BUFFER_BYTES = 1 << 16
READ: ContextVar[Callable[[int], None]] = ContextVar("read", default=lambda size: None)
"""Is told of bytes of files as they are read; of a compressed one, of those on the disk."""


class Damaged(Exception):  # noqa: N818 (becomes a DataError where the line is known)
    """Why a compressed file cannot be unpacked from some place on."""


@contextmanager
def counted(count: Callable[[int], None]) -> Iterator[None]:
    """`count` is told of the bytes of all files that are read within, for the time left."""
    token = READ.set(count)
    try:
        yield
    finally:
        READ.reset(token)


class _Plain(io.FileIO):
    """A file that is as it is."""

    def readinto(self, buffer: memoryview) -> int | None:  # type: ignore[override]
        size = super().readinto(buffer)
        READ.get()(size or 0)
        return size


class _Unpacked(io.RawIOBase):
    """What is in a compressed file. Raises Damaged where it is cut or damaged."""

    def __init__(self, path: Path, packed: str) -> None:
        super().__init__()
        self._file = pyarrow.OSFile(str(path))
        self._stream = pyarrow.CompressedInputStream(self._file, packed)
        self._place = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            return int(self._stream.readinto(buffer))
        except OSError as error:
            if error.errno is not None:  # the disk's fault
                raise
            raise Damaged(str(error)) from error
        finally:
            READ.get()(self._file.tell() - self._place)
            self._place = self._file.tell()

    def close(self) -> None:
        if not self.closed:
            with suppress(OSError):  # what is left unread of a damaged file
                self._stream.close()
            self._file.close()
        super().close()


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The bytes that a file holds, to be read once from start to end."""
    packed = kind_of(path).packed
    with io.BufferedReader(_Unpacked(path, packed) if packed else _Plain(path), BUFFER_BYTES) as file:
        yield file


@contextmanager
def opened_whole(path: Path) -> Iterator[pyarrow.NativeFile]:
    """The same for formats that are read from their end: a compressed file is unpacked to disk first."""
    if not kind_of(path).packed:
        with pyarrow.OSFile(str(path)) as file:
            yield file
        return
    with opened(path) as data, tempfile.TemporaryFile() as unpacked:
        copyfileobj(data, unpacked, BUFFER_BYTES)
        unpacked.seek(0)
        yield pyarrow.PythonFile(unpacked, "r")


class Lines:
    """Lines of a file, and what was read too far is given back: a compressed file cannot be read again."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self._file, self._again = file, io.BytesIO()
        self._size = None if kind_of(path).packed else os.fstat(file.fileno()).st_size
        self.place = 0
        """Bytes that were read."""

    def readline(self, limit: int) -> bytes:
        """The next line, or its first `limit` bytes."""
        line = self._again.readline(limit)
        if len(line) < limit and not line.endswith(b"\n"):
            line += self._file.readline(limit - len(line))
        self.place += len(line)
        return line

    def read(self, size: int) -> bytes:
        """Some bytes, as many as `size` or fewer; none at the end."""
        piece = self._again.read(size) or self._file.read(size)
        self.place += len(piece)
        return piece

    def give_back(self, data: bytes) -> None:
        """What is read next again."""
        self.place -= len(data)
        self._again = io.BytesIO(data + self._again.read())

    def size(self) -> int:
        """Bytes of all that the file holds; of a compressed one, they are counted to its end."""
        if self._size is None:
            place = self.place
            while self.read(BUFFER_BYTES):
                pass
            self._size, self.place = self.place, place
        return self._size
