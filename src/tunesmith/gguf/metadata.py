"""The single values in a GGUF file's metadata; arrays are stepped over.

The gguf package's reader makes numpy objects of every token and merge, 4 to 6 s for 49,152 tokens, where a proof asks
for two numbers. The layout is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

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


def read_singles(path: Path) -> dict[str, Single]:
    """Numbers, texts and truth values by key. Raises BaseError where the file ends early or is no GGUF."""
    found: dict[str, Single] = {}
    try:
        with path.open("rb") as file:
            magic, _, _, keys = _take(file, "4sIQQ")
            if magic != b"GGUF":
                raise ValueError("it does not begin with GGUF")
            for _ in range(keys):
                key, kind = _text(file), Type(*_take(file, "I"))
                if kind == Type.ARRAY:
                    _step_over(file)
                else:
                    found[key] = _text(file) if kind == Type.STRING else _take(file, CODES[kind])[0]
    except (ValueError, OverflowError, MemoryError) as error:
        what = f"{path.name} is no whole GGUF file: {error}"
        raise BaseError(what, fix="delete it, and type the command that makes it", where=str(path)) from error
    return found


def _take(file: BinaryIO, codes: str) -> tuple[Any, ...]:
    layout = struct.Struct(f"<{codes}")
    return layout.unpack(_read(file, layout.size))


def _read(file: BinaryIO, size: int) -> bytes:
    content = file.read(size)
    if len(content) < size:
        raise ValueError("it ends inside its metadata")
    return content


def _text(file: BinaryIO) -> str:
    return _read(file, *_take(file, "Q")).decode()


def _step_over(file: BinaryIO) -> None:
    """An array: the type of its items, how many they are, the items."""
    kind, count = _take(file, "IQ")
    if kind == Type.STRING:
        for _ in range(count):
            _read(file, *_take(file, "Q"))
    elif kind == Type.ARRAY:
        for _ in range(count):
            _step_over(file)
    else:
        _read(file, count * struct.calcsize(CODES[Type(kind)]))
