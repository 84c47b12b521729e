"""The single values in a GGUF file's metadata; arrays are stepped over.

The gguf package's reader makes numpy objects of every token and merge, 4 to 6 s for 49,152 tokens, where a proof asks
for two numbers. The layout is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

from gguf import GGUFValueType as Type

from tunesmith.errors import BaseError

Single = int | float | bool | str
CODES = {
    Type.UINT8: "B", Type.INT8: "b", Type.UINT16: "H", Type.INT16: "h", Type.UINT32: "I", Type.INT32: "i",
    Type.UINT64: "Q", Type.INT64: "q", Type.FLOAT32: "f", Type.FLOAT64: "d", Type.BOOL: "?",
}  # fmt: skip
LEAST = {Type.STRING: "Q", Type.ARRAY: "IQ"} | CODES
"""The fewest bytes of an item: an empty text is its length, an empty array its type and length."""
LARGE = 1 << 20  # bytes; to ask for the file's size before each of 100,000 texts takes as long as reading them
MADE_HERE = "delete it, and type the command that makes it"


def read_singles(path: Path, fix: str = MADE_HERE) -> dict[str, Single]:
    """Numbers, texts and truth values by key.

    Raises BaseError where the file ends early, counts more items than it can hold, is big-endian or is no GGUF.
    """
    found: dict[str, Single] = {}
    try:
        with path.open("rb") as file:
            magic, version, _, keys = _take(file, "4sIQQ")
            if magic != b"GGUF":
                raise ValueError("it does not begin with GGUF")
            refuse_big_endian(path, version)
            for _ in range(keys):
                key, kind = _text(file), Type(*_take(file, "I"))
                if kind == Type.ARRAY:
                    _step_over(file, key)
                else:
                    found[key] = _text(file) if kind == Type.STRING else _take(file, CODES[kind])[0]
    except (ValueError, RecursionError) as error:
        raise BaseError(f"{path.name} is no whole GGUF file: {error}", fix=fix, where=str(path)) from error
    return found


def refuse_big_endian(path: Path, version: int) -> None:
    """Raise BaseError if a GGUF's version, read as little-endian, has its bytes the other way round."""
    if version and version % 2**16 == 0:
        raise BaseError(
            f"{path.name} is a big-endian GGUF file, and little-endian ones are read",
            fix="fetch the little-endian file of this model, or convert a copy in place with the gguf package: "
            "gguf-convert-endian FILE little",
            where=str(path),
        )


def _take(file: BinaryIO, codes: str) -> tuple[Any, ...]:
    layout = struct.Struct(f"<{codes}")
    return layout.unpack(_read(file, layout.size))


def _read(file: BinaryIO, size: int) -> bytes:
    if size > LARGE and size > _left(file):  # it would be made room for
        raise ValueError("it ends inside its metadata")
    if len(data := file.read(size)) < size:
        raise ValueError("it ends inside its metadata")
    return data


def _left(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size - file.tell()


def _text(file: BinaryIO) -> str:
    return _read(file, *_take(file, "Q")).decode()


def _step_over(file: BinaryIO, key: str) -> None:
    """An array: the type of its items, how many they are, the items."""
    kind, count = _take(file, "IQ")
    if count * struct.calcsize(f"<{LEAST[Type(kind)]}") > _left(file):
        raise ValueError(f"its {key} counts {count} items, more than the file can hold")
    if kind == Type.STRING:
        for _ in range(count):
            _read(file, *_take(file, "Q"))
    elif kind == Type.ARRAY:
        for _ in range(count):
            _step_over(file, key)
    else:
        file.seek(count * struct.calcsize(CODES[Type(kind)]), os.SEEK_CUR)
